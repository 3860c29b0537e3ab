"""A factor on the logits that is the same for all keys, moved to the query: the operators have a number for it only."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from explorer.attention import Block, Factor
from explorer.attention.block import Layout, merged_size
from explorer.fusion.emit import Emitter
from explorer.model import TensorType, dtype_name


def split_query(block: Block) -> Layout:
    """BSNH: the layout in which the query is multiplied."""
    return (block.batch, block.rows, block.heads, "H")


def apply_factor(
    emit: Emitter,
    block: Block,
    factor: Factor,
    query: ir.Value,
    layout: Layout,
    value: Callable[[str], ir.Value],
    dtype: ir.DataType,
) -> ir.Value:
    """Write factor·query and return it in the layout of `split_query`."""
    sizes, wanted = dict(block.sizes), split_query(block)
    query = emit.relayout(query, layout, wanted, sizes, dtype)
    own = block.term_layout(factor)
    have = "".join(own)
    short = tuple("".join(letter for letter in group if letter in have) for group in wanted)
    scale = value(factor.value)
    if factor.dtype != dtype_name(dtype):
        scale = emit.node("Cast", [scale], TensorType(dtype, factor.shape), {"to": dtype})
    scale = emit.relayout(scale, own, short, sizes, dtype)
    return emit.node("Mul", [query, scale], TensorType(dtype, tuple(merged_size(group, sizes) for group in wanted)))
