"""Operators that pick elements (Slice, Gather, TopK …), reduce axes, or make arrays out of sizes."""

from __future__ import annotations

import onnx_ir as ir

from explorer.model.dims import Dim, add, at_least, ceil_divide, maximum, minimum, modulo, multiply, subtract
from explorer.model.ratios import Ratio
from explorer.model.shapes.call import Call, Rules, Shapes, UnknownError, axis_of
from explorer.model.shapes.elementwise import like, target

BOOL, INT64, FLOAT = ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.FLOAT

# Exporters write "to the end" as the largest number of one integer type or another.
_END = (1 << 31) - 1


def _slice(call: Call) -> Shapes:
    x = list(call.shape(0))
    starts = call.attribute("starts") or call.elements(1)
    ends = call.attribute("ends") or call.elements(2)
    steps = call.elements(4) if call.given(4) else None
    axes = call.numbers("axes", 3)
    count = _count(call, starts, ends)
    axes = list(range(count)) if axes is None else [axis_of(axis, len(x)) for axis in axes]
    if call.given(4) and steps is None:
        steps = [None] * count
    for at, axis in enumerate(axes):
        start = None if starts is None else starts[at]
        end = None if ends is None else ends[at]
        length = _length(call, x[axis], start, end, 1 if steps is None else steps[at])
        x[axis] = call.fresh(axis) if length is None else length
    return [tuple(x)]


def _count(call: Call, *lists: list[Dim | None] | None) -> int:
    for numbers in lists:
        if numbers is not None:
            return len(numbers)
    (length,) = call.shape(1)
    if not isinstance(length, int):
        raise UnknownError
    return length


def _length(call: Call, dim: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many elements start:end:step takes of `dim`; None if that cannot be said."""
    if start is None or end is None or not isinstance(step, int) or step == 0:
        return None
    lowest = 0 if step > 0 else -1
    first, last = _bound(call, dim, start, lowest), _bound(call, dim, end, lowest)
    if first is None or last is None:
        return None
    span = subtract(last, first) if step > 0 else subtract(first, last)
    return _natural(call, span if abs(step) == 1 else ceil_divide(span, abs(step)))


def _natural(call: Call, dim: Dim) -> Dim:
    return dim if call.is_size(dim) else maximum(0, dim)


def _bound(call: Call, dim: Dim, at: Dim, lowest: int) -> Dim | None:
    """Where a start or end falls: counted from the front, between `lowest` and the last place it may name."""
    highest = add(dim, lowest)
    if isinstance(at, int) and at >= _END:
        return highest
    if isinstance(at, int) and at <= -_END:
        return lowest
    if call.is_size(at):
        return minimum(at, highest)
    if at_least(subtract(0, at), 1):
        return maximum(add(dim, at), lowest)
    if isinstance(dim, int) and dim > 0 and lowest == 0 and at_least(subtract(dim - 1, at), 0):
        return modulo(
            maximum(at, -dim), dim
        )  # it may have either sign; from −dim to dim − 1 that is what counting does
    return None


def _gather(call: Call) -> Shapes:
    x, indices = call.shape(0), call.shape(1)
    axis = axis_of(call.attribute("axis", 0), len(x))
    return [x[:axis] + indices + x[axis + 1 :]]


def _gather_nd(call: Call) -> Shapes:
    x, indices = call.shape(0), call.shape(1)
    batch, depth = call.attribute("batch_dims", 0), indices[-1]
    if not isinstance(depth, int):
        raise UnknownError
    return [indices[:-1] + x[batch + depth :]]


def _compress(call: Call) -> Shapes:
    axis = call.attribute("axis")
    x = call.shape(0)
    if axis is None:
        return [(call.fresh(0),)]
    axis = axis_of(axis, len(x))
    return [(*x[:axis], call.fresh(axis), *x[axis + 1 :])]


def _top_k(call: Call) -> Shapes:
    x = call.shape(0)
    axis = axis_of(call.attribute("axis", -1), len(x))
    (k,) = (call.attribute("k"),) if call.attribute("k") is not None else call.elements(1) or (None,)
    shape = (*x[:axis], call.fresh(axis) if k is None else k, *x[axis + 1 :])
    return [shape, shape]


def _one_hot(call: Call) -> Shapes:
    indices = call.shape(0)
    axis = axis_of(call.attribute("axis", -1), len(indices) + 1)
    (depth,) = call.elements(1) or (None,)
    size = call.fresh(axis) if depth is None else int(depth)
    return [(*indices[:axis], size, *indices[axis:])]


def _unique(call: Call) -> Shapes:
    x, axis = call.shape(0), call.attribute("axis")
    count = call.fresh(0)
    if axis is None:
        return [(count,), (count,), (multiply(*x),), (count,)]
    axis = axis_of(axis, len(x))
    return [(*x[:axis], count, *x[axis + 1 :]), (count,), (x[axis],), (count,)]


def _reduce(call: Call) -> Shapes:
    x = call.shape(0)
    keep = call.attribute("keepdims", 1)
    axes = call.numbers("axes", 1)
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return [x]
        axes = list(range(len(x)))
    gone = {axis_of(axis, len(x)) for axis in axes}
    return [tuple(1 if axis in gone else dim for axis, dim in enumerate(x) if keep or axis not in gone)]


def _arg_extreme(call: Call) -> Shapes:
    x = call.shape(0)
    axis = axis_of(call.attribute("axis", 0), len(x))
    return [x[:axis] + ((1,) if call.attribute("keepdims", 1) else ()) + x[axis + 1 :]]


def _shape_of(call: Call) -> Shapes:
    return [(len(call.shape(0)[call.attribute("start", 0) : call.attribute("end")]),)]


def _constant_of_shape(call: Call) -> Shapes:
    wanted = call.elements(0)
    if wanted is None:
        (length,) = call.shape(0)
        if not isinstance(length, int):
            raise UnknownError
        wanted = [None] * length
    return [tuple(call.fresh(axis) if dim is None else dim for axis, dim in enumerate(wanted))]


def _fill_type(call: Call) -> ir.DataType | None:
    value = call.attribute("value")
    return FLOAT if value is None else ir.DataType(value.dtype)


def _range(call: Call) -> Shapes:
    numbers = [(call.elements(position) or (None,))[0] for position in range(3)]
    floats = [number for number in numbers if isinstance(number, float)]
    if len(floats) == 3:
        return [(max(-int((floats[0] - floats[1]) // floats[2]), 0),)]
    start, limit, step = map(_whole, numbers)
    if not isinstance(step, int) or start is None or limit is None or step == 0:
        return [(call.fresh(0),)]
    span = subtract(limit, start) if step > 0 else subtract(start, limit)
    return [(_natural(call, ceil_divide(span, abs(step))),)]


def _whole(number: int | float | str | Ratio | None) -> Dim | None:
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number.whole() if isinstance(number, Ratio) else number


def _non_zero(call: Call) -> Shapes:
    rank = call.rank_or_none(0)
    return [(call.fresh(0) if rank is None else max(rank, 1), call.fresh(1))]


def _constant(call: Call) -> Shapes:
    for name in ("value", "value_floats", "value_ints", "value_strings"):
        value = call.attribute(name)
        if value is not None:
            return [tuple(map(int, value.shape)) if name == "value" else (len(value),)]
    if call.attribute("sparse_value") is not None:
        raise UnknownError
    return [()]


def _constant_type(call: Call) -> ir.DataType | None:
    (name,) = call.node.attributes
    if name in ("value", "sparse_value"):
        return ir.DataType(call.attribute(name).dtype)
    return {"f": FLOAT, "i": INT64, "s": ir.DataType.STRING}[name.removeprefix("value_")[0]]


def _given_shape(call: Call) -> Shapes:
    return [tuple(call.attribute("shape"))]


_REDUCED = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

RULES: Rules = {
    "Slice": ((0,), _slice),
    "Gather": ((0,), _gather),
    "GatherElements": ((0,), lambda call: like(call, 1)),
    "GatherND": ((0,), _gather_nd),
    "Compress": ((0,), _compress),
    "TopK": ((0, INT64), _top_k),
    "OneHot": ((2,), _one_hot),
    "Unique": ((0, INT64), _unique),
    **{f"Reduce{name}": ((0,), _reduce) for name in _REDUCED.split()},
    "ArgMax": ((INT64,), _arg_extreme),
    "ArgMin": ((INT64,), _arg_extreme),
    "Shape": ((INT64,), _shape_of),
    "Size": ((INT64,), lambda call: [()]),
    "ConstantOfShape": ((_fill_type,), _constant_of_shape),
    "Range": ((0,), _range),
    "NonZero": ((INT64,), _non_zero),
    "Constant": ((_constant_type,), _constant),
    "EyeLike": ((lambda call: target(call) or call.dtype(0),), like),
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike"), ((lambda call: target(call) or call.dtype(0),), like)),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), ((lambda call: target(call) or FLOAT,), _given_shape)),
    "NonMaxSuppression": ((INT64,), lambda call: [(call.fresh(0), 3)]),
    "Det": ((0,), lambda call: [call.shape(0)[:-2]]),
}
