"""Operators that move, repeat or regroup elements: Reshape, Transpose, Concat, Expand, Pad and their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from explorer.model.dims import Dim, add, ceil_divide, divide, floor_divide, is_known, multiply, subtract
from explorer.model.shapes.call import (
    Call,
    Rules,
    Shape,
    Shapes,
    UnknownError,
    axis_of,
    broadcast_dim,
    same,
)


def _reshape(call: Call) -> Shapes:
    wanted = call.attribute("shape") or call.elements(1)
    if wanted is None:
        (length,) = call.shape(1)
        if not isinstance(length, int):
            raise UnknownError
        wanted = [None] * length
    x = call.shape(0) if call.rank_or_none(0) is not None else None
    copied = not call.attribute("allowzero", 0)
    dims: list[Dim | None] = [
        x[axis] if size == 0 and copied and x is not None else None if size == -1 or (size == 0 and copied) else size
        for axis, size in enumerate(wanted)
    ]
    open_axes = [axis for axis, dim in enumerate(dims) if dim is None]
    if len(open_axes) == 1 and x is not None:
        dims[open_axes[0]] = _rest(x, [dim for dim in dims if dim is not None])
    return [tuple(call.fresh(axis) if dim is None else dim for axis, dim in enumerate(dims))]


def _rest(x: Shape, others: Sequence[Dim]) -> Dim | None:
    """What the other dimensions leave of the elements of x."""
    total, taken = multiply(*x), multiply(*others)
    exact = divide(total, taken)
    if exact is not None:
        return exact
    return floor_divide(total, taken) if is_known(total) and is_known(taken) else None


def _transpose(call: Call) -> Shapes:
    x = call.shape(0)
    perm = call.attribute("perm")
    return [x[::-1] if perm is None else tuple(x[axis] for axis in perm)]


def _squeeze(call: Call) -> Shapes:
    x = call.shape(0)
    axes = call.numbers("axes", 1)
    if axes is None:
        if not all(isinstance(dim, int) for dim in x):
            raise UnknownError  # any of them may be 1
        return [tuple(dim for dim in x if dim != 1)]
    gone = {axis_of(axis, len(x)) for axis in axes}
    return [tuple(dim for axis, dim in enumerate(x) if axis not in gone)]


def _unsqueeze(call: Call) -> Shapes:
    rest = list(call.shape(0))
    axes = call.numbers("axes", 1)
    if axes is None:
        raise UnknownError
    rank = len(rest) + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    dims = iter(rest)
    return [tuple(1 if axis in new else next(dims) for axis in range(rank))]


def _flatten(call: Call) -> Shapes:
    x = call.shape(0)
    axis = call.attribute("axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    return [(multiply(*x[:axis]), multiply(*x[axis:]))]


def _concat(call: Call) -> Shapes:
    first, *others = (call.shape(position) for position in range(len(call.inputs)))
    along = axis_of(call.attribute("axis", 1), len(first))
    dims = list(first)
    for other in others:
        for axis, dim in enumerate(other):
            if axis == along:
                dims[axis] = add(dims[axis], dim)
            elif dims[axis] != dim:
                dims[axis] = same(dims[axis], dim)
    return [tuple(dims)]


def _split(call: Call) -> Shapes:
    x = call.shape(0)
    axis = axis_of(call.attribute("axis", 0), len(x))
    parts = len(call.node.outputs)
    sizes = call.attribute("split") or (call.elements(1) if call.given(1) else _equal_parts(call, x[axis], parts))
    if sizes is None:
        sizes = [None] * parts
    return [
        (*x[:axis], call.fresh(axis, output) if size is None else size, *x[axis + 1 :])
        for output, size in enumerate(sizes)
    ]


def _equal_parts(call: Call, size: Dim, parts: int) -> list[Dim]:
    if call.attribute("num_outputs") is None or divide(size, parts) is not None:
        return [floor_divide(size, parts)] * parts
    part = ceil_divide(size, parts)
    return [part] * (parts - 1) + [subtract(size, multiply(parts - 1, part))]


def _expand(call: Call) -> Shapes:
    x = call.shape(0)
    wanted = call.elements(1)
    if wanted is None:
        (length,) = call.shape(1)
        if not isinstance(length, int):
            raise UnknownError
        wanted = [None] * length
    rank = max(len(x), len(wanted))
    left, right = (1,) * (rank - len(x)) + x, [1] * (rank - len(wanted)) + wanted
    return [tuple(_expanded(call, axis, *pair) for axis, pair in enumerate(zip(left, right, strict=True)))]


def _expanded(call: Call, axis: int, dim: Dim, size: Dim | None) -> Dim:
    if size is not None:
        return broadcast_dim(dim, size)
    return dim if isinstance(dim, int) and dim != 1 else call.fresh(axis)


def _tile(call: Call) -> Shapes:
    x = call.shape(0)
    repeats = call.elements(1) or [None] * len(x)
    return [
        tuple(
            call.fresh(axis) if count is None else multiply(dim, count)
            for axis, (dim, count) in enumerate(zip(x, repeats, strict=True))
        )
    ]


def _pad(call: Call) -> Shapes:
    x = call.shape(0)
    pads: list[Any] | None = call.attribute("pads") or call.elements(1)
    axes = call.numbers("axes", 3)
    axes = list(range(len(x))) if axes is None else [axis_of(axis, len(x)) for axis in axes]
    dims = list(x)
    for at, axis in enumerate(axes):
        ends = (None, None) if pads is None else (pads[at], pads[at + len(axes)])
        dims[axis] = call.fresh(axis) if None in ends else add(add(dims[axis], ends[0]), ends[1])
    return [tuple(dims)]


def _depth_to_space(call: Call) -> Shapes:
    batch, channels, *space = call.shape(0)
    block = call.attribute("blocksize")
    return [(batch, floor_divide(channels, block**2), *(multiply(dim, block) for dim in space))]


def _space_to_depth(call: Call) -> Shapes:
    batch, channels, *space = call.shape(0)
    block = call.attribute("blocksize")
    return [(batch, multiply(channels, block**2), *(floor_divide(dim, block) for dim in space))]


RULES: Rules = {
    "Reshape": ((0,), _reshape),
    "Transpose": ((0,), _transpose),
    "Squeeze": ((0,), _squeeze),
    "Unsqueeze": ((0,), _unsqueeze),
    "Flatten": ((0,), _flatten),
    "Concat": ((0,), _concat),
    "Split": ((0,), _split),
    "Expand": ((0,), _expand),
    "Tile": ((0,), _tile),
    "Pad": ((0,), _pad),
    "DepthToSpace": ((0,), _depth_to_space),
    "SpaceToDepth": ((0,), _space_to_depth),
}
