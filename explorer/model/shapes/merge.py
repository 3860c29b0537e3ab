"""Two opinions about one value brought together."""

from __future__ import annotations

import onnx_ir as ir

from explorer.model.dims import Dim, is_known
from explorer.model.shapes.call import Shape
from explorer.model.types import TensorType, unknown


def merge(dtype: ir.DataType | None, shape: Shape | None, known: TensorType | None) -> TensorType | None:
    """What a rule found, completed by what was `known` beforehand; None if neither says anything.

    A dimension that the rule leaves open is taken from there. If the two contradict each other in numbers, the rule is
    not believed.
    """
    if known is None:
        return None if dtype is None and shape is None else TensorType(dtype, _possible(shape))
    dtype = known.dtype if dtype is None else dtype
    if shape == known.shape:
        return known if dtype == known.dtype else TensorType(dtype, shape)
    shape = _possible(shape)
    if shape is None or known.shape is None:
        return TensorType(dtype, known.shape if shape is None else shape)
    if len(shape) != len(known.shape):
        return TensorType(dtype, known.shape)
    dims: list[Dim] = []
    for ours, theirs in zip(shape, known.shape, strict=True):
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            return TensorType(dtype, known.shape)
        dims.append(ours if ours == theirs or is_known(ours) or not is_known(theirs) else theirs)
    return TensorType(dtype, tuple(dims))


def _possible(shape: Shape | None) -> Shape | None:
    """`shape`, or None if no array can have it."""
    for dim in shape or ():
        if isinstance(dim, int) and dim < 0:
            return None
    return shape


def agree(a: TensorType, b: TensorType, name: str) -> TensorType:
    """What is true of a value of one type or another; `name` is for what that leaves open."""
    dtype = a.dtype if a.dtype == b.dtype else None
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return TensorType(dtype, None)
    dims: list[Dim] = [
        ours if ours == theirs else unknown(f"{name}.{axis}")
        for axis, (ours, theirs) in enumerate(zip(a.shape, b.shape, strict=True))
    ]
    return TensorType(dtype, tuple(dims))
