"""Arithmetic, comparison and logic on arrays of numbers and of what dimensions are part of.

Elements of an object array are numbers, dimensions (str), floats computed from dimensions (Ratio), or None where
nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import numpy as np

from explorer.model import dims, ratios
from explorer.model.dims import at_least, subtract
from explorer.model.ratios import Ratio

Element = int | str | bool | float | Ratio | None
Function = Callable[..., np.ndarray]


def _on_known(function: Callable[..., Element]) -> Callable[..., Element]:
    """An element is not known if one that it is computed from is not."""
    return lambda *elements: None if None in elements else function(*elements)


add = _on_known(dims.add)
multiply = _on_known(dims.multiply)
minimum = _on_known(dims.minimum)
maximum = _on_known(dims.maximum)


def _quotient(a: Any, b: Any) -> Element:
    """ONNX rounds towards zero: the same as down where nothing is negative."""
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if (exact := dims.divide(a, b)) is not None:
        return exact
    return dims.floor_divide(a, b) if at_least(a, 0) and at_least(b, 1) else None


def _remainder(a: Any, b: Any) -> Element:
    return dims.modulo(a, b) if at_least(b, 1) else None


def _magnitude(a: Any) -> Element:
    negative = subtract(0, a)
    return a if at_least(a, 0) else negative if at_least(negative, 0) else None


def _power(a: Any, b: Any) -> Element:
    return dims.multiply(*[a] * b) if isinstance(b, int) and 0 <= b <= 4 else None


def _equal(a: Any, b: Any) -> Element:
    if a == b:
        return True
    return False if _less(a, b) or _less(b, a) else None


def _less(a: Any, b: Any) -> Element:
    if at_least(subtract(b, a), 1):
        return True
    return False if at_least(subtract(a, b), 0) else None


def _not(a: Element) -> Element:
    return None if a is None else not a


def _and(a: Element, b: Element) -> Element:
    return False if a is False or b is False else None if a is None or b is None else True


def _or(a: Element, b: Element) -> Element:
    return _not(_and(_not(a), _not(b)))


def _where(condition: Element, a: Element, b: Element) -> Element:
    return a if condition or a == b else b if condition is not None else None


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("division by zero")
    # ONNX rounds towards zero, // towards minus infinity
    quotient = a // b
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)))


def _modulo(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not np.issubdtype(a.dtype, np.integer) or not np.all(b):
        raise ValueError("only whole numbers, and not by zero")
    return np.asarray(np.mod(a, b))


def _on_arrays(
    numeric: Callable[..., Any],
    symbolic: Callable[..., Element] | None,
    real: Callable[..., Element] | None = None,
    *,
    keeps: bool = True,
) -> Function:
    """A function of arrays from one on numbers, one on dimensions and one on Ratios (None: it cannot be said).

    Numbers keep the type of the first operand if `keeps`: numpy widens where ONNX does not.
    """

    def apply(*arrays: np.ndarray) -> np.ndarray:
        if all(array.dtype != object for array in arrays):
            result = np.asarray(numeric(*arrays))
            return result.astype(arrays[0].dtype) if keeps else result
        function = real if any(map(_holds_floats, arrays)) else symbolic
        if function is None:
            raise TypeError("not an operation on dimensions")
        rows = np.broadcast_arrays(*(array.astype(object) for array in arrays))
        result = np.empty(rows[0].shape, dtype=object)
        for at in np.ndindex(result.shape):
            result[at] = function(*(row[at] for row in rows))
        return result

    return apply


def _holds_floats(array: np.ndarray) -> bool:
    if array.dtype != object:
        return not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_)
    return any(isinstance(element, Ratio) for element in array.flat)


def _folded(function: Function) -> Function:
    """A function of any number of arrays from one of two."""
    return lambda *arrays: reduce(function, arrays)


ELEMENTWISE: Mapping[str, Function] = {
    "Add": _on_arrays(np.add, add, ratios.add),
    "Sub": _on_arrays(np.subtract, _on_known(dims.subtract), partial(ratios.add, sign=-1)),
    "Mul": _on_arrays(np.multiply, multiply, ratios.multiply),
    "Div": _on_arrays(_divide, _on_known(_quotient), ratios.divide),
    "Mod": _on_arrays(_modulo, _on_known(_remainder)),
    "Pow": _on_arrays(lambda a, b: np.power(a, b).astype(a.dtype), _on_known(_power)),
    "Neg": _on_arrays(np.negative, _on_known(lambda a: subtract(0, a))),
    "Abs": _on_arrays(np.abs, _on_known(_magnitude)),
    "Min": _folded(_on_arrays(np.minimum, minimum)),
    "Max": _folded(_on_arrays(np.maximum, maximum)),
    "Equal": _on_arrays(np.equal, _on_known(_equal), keeps=False),
    "Less": _on_arrays(np.less, _on_known(_less), keeps=False),
    "Greater": _on_arrays(np.greater, _on_known(lambda a, b: _less(b, a)), keeps=False),
    "LessOrEqual": _on_arrays(np.less_equal, _on_known(lambda a, b: _not(_less(b, a))), keeps=False),
    "GreaterOrEqual": _on_arrays(np.greater_equal, _on_known(lambda a, b: _not(_less(a, b))), keeps=False),
    "Not": _on_arrays(np.logical_not, _not, keeps=False),
    "And": _on_arrays(np.logical_and, _and, keeps=False),
    "Or": _on_arrays(np.logical_or, _or, keeps=False),
    "Where": _on_arrays(np.where, _where, keeps=False),
    "Sqrt": _on_arrays(np.sqrt, None),
    "Reciprocal": _on_arrays(lambda a: 1 / a, None),
    "Exp": _on_arrays(np.exp, None),
    "Log": _on_arrays(np.log, None),
    "Floor": _on_arrays(np.floor, None, _on_known(ratios.floor)),
    "Ceil": _on_arrays(np.ceil, None, _on_known(ratios.ceil)),
}
