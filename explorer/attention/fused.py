"""Attention that already is one operator: listed with the same fields, so that a fused model reads like its source."""

from __future__ import annotations

import math

import onnx_ir as ir

from explorer.attention.block import BNSH, BSD, Block, Layout, Mask, Operand, RegionNode, Step, View
from explorer.attention.walk import name_of
from explorer.model import Model, dtype_name
from explorer.model.constants import attribute

# operator → position of its mask input
_OPERATORS = {("com.microsoft", "MultiHeadAttention"): 5, ("", "Attention"): 3, ("ai.onnx", "Attention"): 3}


def is_fused(node: ir.Node) -> bool:
    """True if `node` is an operator that computes a whole attention block."""
    return (node.domain, node.op_type) in _OPERATORS


def fused_block(model: Model, node: ir.Node, label: str) -> Block:
    """The Block that a fused operator is; fields it does not state stay None."""
    key, output = model.key(node), name_of(node.outputs[0])
    operator = f"{node.domain or 'ai.onnx'}.{node.op_type}"
    q, k, v = (value if value is not None else None for value in (*node.inputs, None, None, None)[:3])
    heads = attribute(node, "num_heads", None) or attribute(node, "q_num_heads", None) or _heads(model, q)
    kv_heads = attribute(node, "kv_num_heads", None) or _heads(model, k) or heads
    head_size = _head_size(model, q, heads)
    scale = attribute(node, "scale", None) or (1 / math.sqrt(head_size) if head_size else None)
    causal = bool(attribute(node, "unidirectional", 0) or attribute(node, "is_causal", 0))
    at = _OPERATORS[node.domain, node.op_type]
    masked = len(node.inputs) > at and node.inputs[at] is not None
    dtype = None if q is None else model.dtype(q)
    return Block(
        label=label,
        anchor=key,
        anchor_output=output,
        region=(RegionNode(key, node.op_type, "fused"),),
        query=_operand(model, q),
        key=_operand(model, k),
        value=_operand(model, v),
        output=View(output, _layout(model, node.outputs[0])),
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=head_size,
        v_head_size=_head_size(model, v, kv_heads) or head_size,
        scale=scale,
        mask=Mask("causal" if causal else "additive" if masked else "none"),
        softcap=attribute(node, "softcap", None) or None,
        dtype=dtype_name(dtype),
        evidence=(Step(f"{operator} computes the whole block in one node.", (key,)),),
        fused_as=operator,
    )


def _layout(model: Model, value: ir.Value) -> Layout:
    shape = model.shape(value)
    return BNSH if shape is not None and len(shape) == 4 else BSD


def _operand(model: Model, value: ir.Value | None) -> Operand | None:
    return None if value is None else Operand((View(name_of(value), _layout(model, value)),))


def _heads(model: Model, value: ir.Value | None) -> int | None:
    shape = None if value is None else model.shape(value)
    return shape[1] if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else None


def _head_size(model: Model, value: ir.Value | None, heads: int | None) -> int | None:
    shape = None if value is None else model.shape(value)
    if shape is None or not isinstance(shape[-1], int):
        return None
    if len(shape) == 4:
        return shape[-1]
    return shape[-1] // heads if heads and len(shape) == 3 else None
