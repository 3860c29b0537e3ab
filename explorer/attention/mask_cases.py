"""Numbers that depend on conditions, and their arithmetic: the elements of a mask.

A `Leaf` is an integer made of positions and sizes (`Affine`), another number (float: fractions, ±inf, NaN) or an
`Unknown`. `Cases` says which leaf an element is under which condition. Functions of leaves return None for "unknown".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from explorer.attention.mask_predicates import (
    FALSE,
    TRUE,
    Affine,
    Condition,
    Sizes,
    TooComplex,
    Unknown,
    at_least_zero,
)

Leaf = Affine | float | Unknown
Index = tuple[Affine, ...]

_MAX_CASES = 12
# Up to here a double holds every integer
_MAX_WHOLE = 1 << 53
# Types that hold every position of a sequence; in fp16 the positions above 2048 fall together
_EXACT = frozenset((ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE))


@dataclass(frozen=True, slots=True)
class Cases:
    """What a number is, under conditions of which exactly one holds at each position."""

    parts: tuple[tuple[Leaf, Condition], ...]

    @staticmethod
    def of(parts: Iterable[tuple[Leaf, Condition]]) -> Cases:
        """These parts, equal leaves put together and impossible ones left out."""
        merged: dict[Leaf, Condition] = {}
        for leaf, condition in parts:
            if condition != FALSE:
                merged[leaf] = merged.get(leaf, FALSE) | condition
        if len(merged) > _MAX_CASES:
            raise TooComplex
        return Cases(tuple(merged.items()))

    @property
    def only(self) -> Leaf | None:
        """The one leaf that this number always is, or None."""
        return self.parts[0][0] if len(self.parts) == 1 else None

    def map(self, function: Callable[[Leaf], Leaf]) -> Cases:
        """The cases of a function of this number."""
        return Cases.of((function(leaf), condition) for leaf, condition in self.parts)


Element = Condition | Cases
"""One element of a tensor: of a boolean one a condition, of any other one cases."""


def number(value: float) -> Leaf:
    """The leaf that is this number."""
    whole = abs(value) <= _MAX_WHOLE and float(value).is_integer()
    return Affine(offset=int(value)) if whole else float(value)


def plain(leaf: Leaf) -> int | float | None:
    """The number that a leaf is, or None if it depends on anything."""
    return leaf.number if isinstance(leaf, Affine) else leaf if isinstance(leaf, float) else None


def as_cases(element: Element) -> Cases:
    """An element as a number: 1 where a condition holds, 0 elsewhere."""
    if isinstance(element, Cases):
        return element
    return Cases.of(((Affine(offset=1), element), (Affine(), ~element)))


def as_condition(element: Element, sizes: Sizes) -> Condition | None:
    """An element as a truth: a number is true unless it is 0. None if it may be anything."""
    if isinstance(element, Condition):
        return element
    zero = compare(equal, element, as_cases(FALSE), sizes)
    return None if zero is None else ~zero


def choose(condition: Condition, yes: Element, no: Element) -> Element:
    """`yes` where the condition holds, `no` elsewhere."""
    if isinstance(yes, Condition) and isinstance(no, Condition):
        return condition & yes | ~condition & no
    return Cases.of(
        (
            *((leaf, condition & where) for leaf, where in as_cases(yes).parts),
            *((leaf, ~condition & where) for leaf, where in as_cases(no).parts),
        )
    )


Comparison = Callable[[Leaf, Leaf, Sizes], "Condition | None"]


def compare(comparison: Comparison, left: Cases, right: Cases, sizes: Sizes) -> Condition | None:
    """Where a comparison of two numbers holds; None if that is unknown in any case."""
    result = FALSE
    for a, where_a in left.parts:
        for b, where_b in right.parts:
            where = where_a & where_b
            if where == FALSE:
                continue
            holds = comparison(a, b, sizes)
            if holds is None:
                return None
            result = result | where & holds
    return result


def less(a: Leaf, b: Leaf, sizes: Sizes) -> Condition | None:
    """a < b."""
    x, y = plain(a), plain(b)
    if x is not None and y is not None:
        return TRUE if x < y else FALSE
    if isinstance(a, Affine) and isinstance(b, Affine):
        return at_least_zero(b - a + Affine(offset=-1), sizes)
    return None


def less_or_equal(a: Leaf, b: Leaf, sizes: Sizes) -> Condition | None:
    """a ≤ b; not the opposite of b < a, since a NaN compares with nothing."""
    x, y = plain(a), plain(b)
    if x is not None and y is not None:
        return TRUE if x <= y else FALSE
    return at_least_zero(b - a, sizes) if isinstance(a, Affine) and isinstance(b, Affine) else None


def equal(a: Leaf, b: Leaf, sizes: Sizes) -> Condition | None:
    """a = b."""
    below, above = less_or_equal(a, b, sizes), less_or_equal(b, a, sizes)
    return None if below is None or above is None else below & above


def add(a: Leaf, b: Leaf) -> Leaf | None:
    """a + b."""
    if isinstance(a, Affine) and isinstance(b, Affine):
        return a + b
    x, y = plain(a), plain(b)
    return None if x is None or y is None else number(x + y)


def subtract(a: Leaf, b: Leaf) -> Leaf | None:
    """a − b."""
    opposite = multiply(b, Affine(offset=-1))
    return None if opposite is None else add(a, opposite)


def multiply(a: Leaf, b: Leaf) -> Leaf | None:
    """a · b; 0 · inf is NaN, as in the graph."""
    if isinstance(a, Affine) and isinstance(b, Affine):
        factor, form = (a, b) if not a.terms else (b, a)
        return None if factor.terms else form.times(factor.offset)
    x, y = plain(a), plain(b)
    return None if x is None or y is None else number(x * y)


def divide(a: Leaf, b: Leaf) -> Leaf | None:
    """a / b of two numbers that are no integers."""
    x, y = plain(a), plain(b)
    return None if x is None or not y else number(x / y)


def quotient(a: Leaf, b: Leaf, sizes: Sizes) -> tuple[Affine, Affine] | None:
    """a // b and a mod b of two integers that are not negative."""
    if not isinstance(a, Affine) or not isinstance(b, Affine) or b.terms or b.offset == 0:
        return None
    return a.split(b.offset, sizes)


def held(leaf: Leaf, dtype: ir.DataType | None) -> Leaf | None:
    """What remains of a leaf in a tensor of this type: rounded, None if it does not fit."""
    if dtype is None or isinstance(leaf, Unknown):
        return None if dtype is None else leaf
    value = plain(leaf)
    if value is None:
        return leaf if dtype in _EXACT else None
    if dtype.is_integer():
        bounds = np.iinfo(dtype.numpy())
        return leaf if isinstance(leaf, Affine) and bounds.min <= value <= bounds.max else None
    try:
        with np.errstate(all="ignore"):
            return number(float(np.asarray(float(value)).astype(dtype.numpy())))
    except OverflowError:
        return None


def constant_element(array: np.ndarray, index: Index, sizes: Sizes) -> Element | None:
    """The element of a constant array at a position; None if the array follows no rule that is known here.

    Known are arrays of one number, integers that grow evenly along each axis, and two numbers parted by a diagonal
    (a triangle) or at one place of an axis. The whole array is compared with the rule.
    """
    fixed = [0 if size == 1 else at.number for at, size in zip(index, array.shape, strict=True)]
    if any(at is not None and not 0 <= at < size for at, size in zip(fixed, array.shape, strict=True)):
        return None
    array = _narrowed(array[tuple(slice(None) if at is None else at for at in fixed)])
    open_axes = [at for at, known in zip(index, fixed, strict=True) if known is None]
    varying = tuple(at for at, size in zip(open_axes, array.shape, strict=True) if size != 1)
    array = array.squeeze()
    if array.size == 0:
        return None
    if array.ndim == 0:
        return _literal(array.reshape(1)[0])
    element = None if array.dtype == bool else _even(array, varying)
    return element if element is not None else _parted(array, varying, sizes)


def _narrowed(array: np.ndarray) -> np.ndarray:
    """One of the entries along each axis on which all are alike."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1 and np.array_equal(first := array.take([0], axis), array.take([1], axis)):
            array = first if np.all(array == first) else array
    return array


def _literal(item: np.generic) -> Element:
    if item.dtype == bool:
        return TRUE if item else FALSE
    return Cases.of(((number(float(item)) if item.dtype.kind not in "iu" else Affine(offset=int(item)), TRUE),))


def _even(array: np.ndarray, index: Index) -> Element | None:
    """first + Σ step·position, if that is what the array holds."""
    corner = array[(slice(3),) * array.ndim]
    if corner.size < array.size and _even(corner, index) is None:
        return None
    with np.errstate(all="ignore"):
        whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        return None
    predicted = first = whole[(0,) * whole.ndim]
    form = Affine(offset=int(first))
    for axis, at in enumerate(index):
        step = int(whole[tuple(int(axis == other) for other in range(whole.ndim))] - first)
        shape = [-1 if axis == other else 1 for other in range(whole.ndim)]
        predicted = predicted + step * np.arange(whole.shape[axis]).reshape(shape)
        form = form + at.times(step)
    return Cases.of(((form, TRUE),)) if np.array_equal(predicted, whole) else None


def _parted(array: np.ndarray, index: Index, sizes: Sizes) -> Element | None:
    """One number on and below a diagonal and another above it; an array of one axis is one row of that."""
    if array.ndim > 2:
        return None
    table = array.reshape(-1, array.shape[-1])
    low, high = table[-1, 0], table[0, -1]
    # The diagonal that row 0 leaves: as many columns as hold `low`, less one; or, if none does, as many rows above it
    ahead = int(np.argmax(table[0] != low))
    diagonal = ahead - 1 if ahead else -int(np.argmax(table[:, 0] == low))
    if not np.array_equal(table, np.where(np.tri(*table.shape, diagonal, dtype=bool), low, high)):
        return None
    row = index[0] if array.ndim == 2 else Affine()
    below = at_least_zero(row - index[-1] + Affine(offset=diagonal), sizes)
    return choose(below, _literal(low), _literal(high))
