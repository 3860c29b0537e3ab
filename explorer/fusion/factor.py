"""A factor on the logits that is the same for all keys, moved to the query: the operators have a number for it only."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from explorer.attention import Block, Factor
from explorer.attention.block import Layout, merged_size
from explorer.fusion.emit import Emitter, Ruler
from explorer.model import TensorType, dtype_name


def beside(own: Layout, layout: Layout) -> Layout:
    """The layout in which a factor of layout `own` multiplies a query of `layout`."""
    have = set("".join(own))
    return tuple(group if set(group) & have else "" for group in layout)


def apply_factor(
    emit: Emitter,
    block: Block,
    factor: Factor,
    query: ir.Value,
    layout: Layout,
    value: Callable[[str], ir.Value],
    dtype: ir.DataType,
) -> ir.Value:
    """Write factor·query, whose `layout` has an axis of its own for the heads."""
    sizes, own = dict(block.sizes), block.term_layout(factor)
    scale = value(factor.value)
    if factor.dtype != dtype_name(dtype):
        scale = emit.node("Cast", [scale], TensorType(dtype, factor.shape), {"to": dtype})
    scale = emit.relayout(scale, own, beside(own, layout), sizes, dtype, Ruler(query, layout))
    return emit.node("Mul", [query, scale], TensorType(dtype, tuple(merged_size(group, sizes) for group in layout)))
