"""Values that never change: initializers, Constant nodes, and small arithmetic on those and on known dimensions.

Exporters compute scales and Reshape targets at run time (Shape → Gather → Cast → Sqrt → Div …). Folding them lazily,
one value at a time, tells recognition what they are without running the model. Arrays that come from shapes may be
partly unknown: they hold symbols or None in an object array, and arithmetic on an unknown element is not constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.model.types import TensorType

# Sub-graphs that fold are short; a longer chain is not a constant that an exporter wrote down.
_MAX_DEPTH = 64
# What is folded on the way; weights never are.
_MAX_ELEMENTS = 1 << 16
_ONNX_DOMAINS = ("", "ai.onnx")

Arrays = Sequence[np.ndarray | None]
_Fold = Callable[[ir.Node, Arrays], "np.ndarray | None"]


class Folder:
    """Folds values of one model; results are remembered, and read-only."""

    def __init__(self, type_of: Callable[[ir.Value], TensorType | None]) -> None:
        self._type_of = type_of
        self._known: dict[int, np.ndarray | None] = {}

    def array(self, value: ir.Value, max_elements: int) -> np.ndarray | None:
        """The constant array of `value`, or None if it is not constant, not fully known, or too large."""
        if (tensor := _tensor(value)) is not None:
            return _read_only(tensor.numpy()) if tensor.size <= max_elements else None
        array = self._fold(value, _MAX_DEPTH)
        if array is None or array.size > max_elements:
            return None
        if array.dtype != object:
            return array
        if all(isinstance(item, int) for item in array.flat):
            return _read_only(array.astype(np.int64))
        return None

    def partial(self, value: ir.Value) -> np.ndarray | None:
        """Like `array`, for a small value some of whose elements may be symbols or None."""
        return self._fold(value, _MAX_DEPTH)

    def _fold(self, value: ir.Value, depth: int) -> np.ndarray | None:
        if (tensor := _tensor(value)) is not None:
            return _read_only(tensor.numpy()) if tensor.size <= _MAX_ELEMENTS else None
        node = value.producer()
        if node is None or depth == 0 or node.domain not in _ONNX_DOMAINS or node.outputs[0] is not value:
            return None
        if id(value) not in self._known:
            array = self._compute(node, depth)
            if array is None and depth < _MAX_DEPTH:
                return None  # asked from further down, it may only have been too far away
            self._known[id(value)] = None if array is None else _read_only(array)
        return self._known[id(value)]

    def _compute(self, node: ir.Node, depth: int) -> np.ndarray | None:
        if node.op_type == "Shape":
            return self._shape(node)
        fold = _FOLDS.get(node.op_type)
        if fold is None:
            return None
        inputs = [None if item is None else self._fold(item, depth - 1) for item in node.inputs]
        if any(array is None and item is not None for array, item in zip(inputs, node.inputs, strict=True)):
            return None
        try:
            with np.errstate(all="ignore"):
                return fold(node, inputs)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None  # arithmetic on an unknown dimension, or an ill-typed graph: not a constant

    def _shape(self, node: ir.Node) -> np.ndarray | None:
        source = node.inputs[0]
        known = None if source is None else self._type_of(source)
        if known is None or known.shape is None:
            return None
        start, end = attribute(node, "start", 0), attribute(node, "end", None)
        dims = known.shape[start:end]
        array = np.empty(len(dims), dtype=object)
        array[:] = dims
        return array


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default` if it is not there."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a value is bound to: an initializer that no input overrides, or a Constant's."""
    if value.const_value is not None:
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in _ONNX_DOMAINS:
        return None
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if (found := attribute(node, name, None)) is not None:
            if name == "value":
                return found if isinstance(found, ir.TensorProtocol) else None
            return ir.tensor(np.array(found, dtype=np.float32 if "float" in name else np.int64))
    return None


def _given(inputs: Arrays) -> list[np.ndarray]:
    return [array for array in inputs if array is not None]


def _axes(node: ir.Node, inputs: Arrays) -> list[int]:
    """Axes of Squeeze/Unsqueeze: an attribute until opset 12, an input since."""
    axes = attribute(node, "axes", None)
    if axes is None and len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1]
    return [] if axes is None else [int(axis) for axis in axes]


def _cast(node: ir.Node, inputs: Arrays) -> np.ndarray:
    (x,) = _given(inputs)
    dtype = ir.DataType(attribute(node, "to", 1)).numpy()
    return x if x.dtype == object and np.issubdtype(dtype, np.integer) else x.astype(dtype)


def _gather(node: ir.Node, inputs: Arrays) -> np.ndarray:
    data, indices = _given(inputs)
    return np.asarray(np.take(data, indices.astype(np.int64), axis=attribute(node, "axis", 0)), dtype=data.dtype)


def _unsqueeze(node: ir.Node, inputs: Arrays) -> np.ndarray:
    return np.expand_dims(_given(inputs)[0], tuple(_axes(node, inputs)))


def _squeeze(node: ir.Node, inputs: Arrays) -> np.ndarray:
    axes = _axes(node, inputs)
    return np.squeeze(_given(inputs)[0], tuple(axes) if axes else None)


def _concat(node: ir.Node, inputs: Arrays) -> np.ndarray:
    return np.concatenate(_given(inputs), axis=attribute(node, "axis", 0))


def _slice(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    if "starts" in node.attributes:
        return None  # opset 9 and before
    data, starts, ends = _given(inputs[:3])
    axes, steps = (*inputs[3:], None, None)[:2]
    where = range(len(starts)) if axes is None else axes
    index = [slice(None)] * data.ndim
    for at, axis in enumerate(where):
        index[int(axis)] = slice(int(starts[at]), int(ends[at]), 1 if steps is None else int(steps[at]))
    return data[tuple(index)]


def _reshape(node: ir.Node, inputs: Arrays) -> np.ndarray:
    x, shape = _given(inputs)
    dims = [x.shape[i] if d == 0 and not attribute(node, "allowzero", 0) else int(d) for i, d in enumerate(shape)]
    return x.reshape(dims)


def _constant_of_shape(node: ir.Node, inputs: Arrays) -> np.ndarray:
    (shape,) = _given(inputs)
    fill = attribute(node, "value", None)
    value = np.zeros(1, np.float32) if fill is None else fill.numpy()
    if np.prod([int(d) for d in shape]) > _MAX_ELEMENTS:
        raise ValueError("too large to fold")
    return np.full([int(d) for d in shape], value.reshape(-1)[0], dtype=value.dtype)


def _elementwise(function: Callable[..., Any]) -> _Fold:
    def fold(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
        arrays = _given(inputs)
        if any(x.dtype == object and not all(isinstance(i, int) for i in x.flat) for x in arrays):
            return None
        arrays = [x.astype(np.int64) if x.dtype == object else x for x in arrays]
        result = np.asarray(function(*arrays))
        # numpy widens where ONNX does not: there the result has the type of the operands
        return result.astype(arrays[0].dtype)

    return fold


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("division by zero")
    # ONNX rounds towards zero, // towards minus infinity
    quotient = a // b
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


_FOLDS: dict[str, _Fold] = {
    "Identity": lambda node, inputs: inputs[0],
    "Cast": _cast,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Reshape": _reshape,
    "ConstantOfShape": _constant_of_shape,
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Pow": _elementwise(lambda a, b: np.power(a, b).astype(a.dtype)),
    "Sqrt": _elementwise(np.sqrt),
    "Reciprocal": _elementwise(lambda a: 1 / a),
    "Neg": _elementwise(np.negative),
    "Floor": _elementwise(np.floor),
}
