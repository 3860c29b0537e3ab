"""From the terms of a mask to one attention_bias: 4-D [1|B, 1|N, S, T], in the element type of the query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, MaskTerm
from explorer.attention.block import Layout, merged_size
from explorer.fusion.emit import Emitter, Ruler, Sizes, can_relayout
from explorer.model import TensorType, dtype_name

# The most negative number of a type: a mask that was added in a wider type is clamped to it before it is cast.
_LOWEST = {"float16": -65504.0, "bfloat16": -3.3895313892515355e38, "float32": -3.4028234663852886e38}

BiasCache = dict[tuple[object, ...], ir.Value]
"""Biases already written, by what they were made of: layers that share a mask share its bias."""


def bias_layout(block: Block, term: MaskTerm) -> Layout:
    """The layout that a term takes in the bias: batch and heads as far as it names them, all rows, all keys."""
    have = "".join(block.term_layout(term))
    batch, heads = (letters if set(letters) & set(have) else "" for letters in (block.batch, block.heads))
    return (batch, heads, block.rows, block.keys)


def expressible(block: Block, term: MaskTerm) -> bool:
    """True for a term that can be brought into the bias' layout: it has one entry for several keys only in a number."""
    before = block.term_layout(term)
    have = "".join(before)
    if not all(letter in have or isinstance(block.size(letter), int) for letter in block.keys):
        return False
    for group, dim in zip(term.layout[len(term.layout) - len(term.shape) :], term.shape, strict=True):
        size = block.size(group)
        if isinstance(dim, int) and isinstance(size, int) and dim not in (1, size):
            return False
    sizes = dict(block.sizes)
    after = bias_layout(block, term)
    return can_relayout(before, tuple("".join(x for x in group if x in have) for group in after), sizes)


def build_bias(
    emit: Emitter,
    block: Block,
    value: Callable[[str], ir.Value],
    ruler: Ruler,
    dtype: ir.DataType,
    cache: BiasCache,
) -> ir.Value:
    """Write the nodes that turn the mask of `block` into one bias; `ruler` is its query as the operator reads it."""
    terms, sizes = block.mask.terms, dict(block.sizes)
    key = (terms, dtype, block.sizes, block.nan_guard, id(emit.graph))
    if key not in cache:
        layouts = [bias_layout(block, term) for term in terms]
        parts = [
            emit.relayout(
                _addend(emit, term, value(term.value), dtype, clamp=not block.nan_guard),
                block.term_layout(term), layout, sizes, dtype, ruler,
            )
            for term, layout in zip(terms, layouts, strict=True)
        ]  # fmt: skip
        bias, layout = parts[0], layouts[0]
        for other, other_layout in zip(parts[1:], layouts[1:], strict=True):
            layout = tuple(a or b for a, b in zip(layout, other_layout, strict=True))
            bias = emit.node("Add", [bias, other], _type(layout, sizes, dtype))
        if len(parts) > 1 and dtype == ir.DataType.FLOAT16 and not block.nan_guard:
            bias = _clamp(emit, bias, _type(layout, sizes, dtype), "float16")  # two fp16 minima add up to −inf
        cache[key] = bias
    return cache[key]


def _type(layout: Layout, sizes: Sizes, dtype: ir.DataType) -> TensorType:
    return TensorType(dtype, tuple(merged_size(group, sizes) for group in layout))


def _addend(emit: Emitter, term: MaskTerm, value: ir.Value, dtype: ir.DataType, *, clamp: bool) -> ir.Value:
    """The term as numbers to add, in `dtype`, in its own shape. Without `clamp` what does not fit becomes −inf."""
    kind = TensorType(dtype, term.shape)
    name = dtype_name(dtype)
    if term.dtype == "bool":
        hide = max(term.fill, _LOWEST[name]) if clamp and np.isfinite(term.fill) else term.fill
        keep = emit.constant(_scalar(0.0, dtype), "keep")
        fill = emit.constant(_scalar(hide, dtype), "hide")
        return emit.node("Where", [value, *((keep, fill) if term.keep_when else (fill, keep))], kind)
    own = ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE"}.get(term.dtype, term.dtype.upper())]
    if term.coefficient != 1.0:
        factor = emit.constant(_scalar(term.coefficient, own), "factor")
        value = emit.node("Mul", [value, factor], TensorType(own, term.shape))
    if own == dtype:
        return value
    if clamp and _LOWEST.get(term.dtype, -np.inf) < _LOWEST[name]:
        value = _clamp(emit, value, TensorType(own, term.shape), name)
    return emit.node("Cast", [value], kind, {"to": dtype})


def _clamp(emit: Emitter, value: ir.Value, type_: TensorType, name: str) -> ir.Value:
    """Bound `value` by what the type called `name` can hold."""
    assert type_.dtype is not None
    low, high = (emit.constant(_scalar(sign * _LOWEST[name], type_.dtype), "bound") for sign in (1, -1))
    return emit.node("Clip", [value, low, high], type_)


def _scalar(number: float, dtype: ir.DataType) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(number, dtype=dtype.numpy())
