"""What was done to an operand before attention (RoPE, normalisation): kept as it is, named for the reader."""

from __future__ import annotations

import onnx_ir as ir

from explorer.attention.walk import is_op
from explorer.model import Model

_MAX_NODES = 40
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"))
_LAYOUT = frozenset(("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity", "Slice", "Split", "Concat"))


def traits(model: Model, value: ir.Value) -> tuple[str, ...]:
    """Names of what produced `value`: "rope" for x·cos + rotate(x)·sin, "norm" for a normalisation per head."""
    found: list[str] = []
    node = _producer_behind_layout(value)
    if node is not None and (_is_rotary_operator(node) or _is_rope(node)):
        found.append("rope")
        node = _before_rope(node)
    if node is not None and _is_norm(model, node):
        found.append("norm")
    return tuple(found)


def _producer_behind_layout(value: ir.Value | None) -> ir.Node | None:
    for _ in range(_MAX_NODES):
        node = None if value is None else value.producer()
        if node is None or node.op_type not in _LAYOUT:
            return node
        value = node.inputs[0]
    return None


def _is_rotary_operator(node: ir.Node) -> bool:
    return node.op_type == "RotaryEmbedding"


def _is_rope(node: ir.Node) -> bool:
    """x·cos + rotate(x)·sin: a sum of two products, one of which reads x with a part of it negated."""
    if not is_op(node, "Add"):
        return False
    halves = [_producer_behind_layout(value) for value in node.inputs]
    if not all(is_op(half, "Mul") for half in halves):
        return False
    return any(_negates_part(half) for half in halves if half is not None)


def _negates_part(product: ir.Node) -> bool:
    """True if a factor is assembled (Concat, or a stack by Reshape) from parts of which one is negated."""
    pending = [value.producer() for value in product.inputs if value is not None]
    for _ in range(_MAX_NODES):
        if not pending:
            return False
        node = pending.pop()
        if node is None:
            continue
        if is_op(node, "Neg"):
            return True
        if node.op_type in _LAYOUT or is_op(node, "Mul", "Gather"):
            pending.extend(value.producer() for value in node.inputs if value is not None)
    return False


def _before_rope(node: ir.Node) -> ir.Node | None:
    if _is_rotary_operator(node):
        return _producer_behind_layout(node.inputs[0])
    for value in node.inputs:
        half = _producer_behind_layout(value)
        if half is None:
            continue
        for factor in half.inputs:
            source = _producer_behind_layout(factor)
            if source is not None and not is_op(source, "Neg", "Cos", "Sin"):
                return source
    return None


def _is_norm(model: Model, node: ir.Node) -> bool:
    """A fused normalisation over the head size, or x·rsqrt(mean(x²)) written out."""
    if node.op_type in _NORMS:
        shape = model.shape(node.outputs[0])
        return shape is not None and len(shape) == 4
    if is_op(node, "Mul", "Div", "Add"):
        return any(_reaches_mean(value) for value in node.inputs if value is not None)
    return False


def _reaches_mean(value: ir.Value) -> bool:
    pending, seen = [value.producer()], 0
    while pending and seen < _MAX_NODES // 2:
        node = pending.pop()
        seen += 1
        if node is None:
            continue
        if is_op(node, "ReduceMean"):
            return True
        if is_op(node, "Mul", "Div", "Add", "Sub", "Pow", "Sqrt", "Reciprocal", "Cast"):
            pending.extend(item.producer() for item in node.inputs if item is not None)
    return False
