"""What was done to an operand before attention (RoPE, normalisation): kept as it is, named for the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from explorer.attention.walk import is_op
from explorer.model import Model

_MAX_NODES = 40
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"))
# They hand on their first input, in another layout or in part; Concat joins all of its inputs.
_LAYOUT = frozenset(
    (
        *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Cast", "CastLike", "Identity"),
        *("Slice", "Split", "SplitToSequence", "SequenceAt", "Gather", "GatherND", "Concat"),
    )
)
_MEAN = frozenset(("Mul", "Div", "Add", "Sub", "Pow", "Sqrt", "Reciprocal", "Cast"))


def traits(model: Model, value: ir.Value) -> tuple[str, ...]:
    """Names of what produced `value`: "rope" for x·cos + rotate(x)·sin, "norm" for a normalisation per head."""
    found: list[str] = []
    ends = list(_behind_layout([value]))
    ropes = [node for node in ends if _is_rope(node)]
    if ropes:
        found.append("rope")
        ends = [node for rope in ropes for node in _before_rope(rope)]
    if any(_is_norm(model, node) for node in ends):
        found.append("norm")
    return tuple(found)


def _upstream(
    values: Iterable[ir.Value | None], passes: Callable[[ir.Node], Iterable[ir.Value | None]]
) -> Iterator[ir.Node]:
    """Nodes upstream of `values`, nearest first, going on through what `passes` gives for each: a bounded walk."""
    pending, seen = list(values), set[int]()
    while pending and len(seen) < _MAX_NODES:
        value = pending.pop(0)
        node = None if value is None else value.producer()
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            yield node
            pending += passes(node)


def _layout_sources(node: ir.Node) -> Iterable[ir.Value | None]:
    if node.op_type not in _LAYOUT:
        return ()
    return node.inputs if node.op_type == "Concat" else node.inputs[:1]


def _behind_layout(values: Iterable[ir.Value | None]) -> Iterator[ir.Node]:
    """The nodes that computed the parts of which `values` are laid out."""
    return (node for node in _upstream(values, _layout_sources) if node.op_type not in _LAYOUT)


def _is_rope(node: ir.Node) -> bool:
    """A rotary operator, x·cos + rotate(x)·sin, or the half x₁·cos − x₂·sin of it."""
    if node.op_type == "RotaryEmbedding":
        return True
    halves = list(_behind_layout(node.inputs)) if is_op(node, "Add", "Sub") else []
    if len(halves) != 2 or not all(is_op(half, "Mul") for half in halves):
        return False
    # the rotated half is assembled from parts of which one is negated
    return is_op(node, "Sub") or any(is_op(part, "Neg") for half in halves for part in _behind_layout(half.inputs))


def _before_rope(node: ir.Node) -> Iterator[ir.Node]:
    """What computed the factors of a rotary embedding: x, and cosine and sine, which are no norms."""
    if node.op_type == "RotaryEmbedding":
        yield from _behind_layout(node.inputs[:1])
    else:
        for half in _behind_layout(node.inputs):
            yield from _behind_layout(half.inputs)


def _is_norm(model: Model, node: ir.Node) -> bool:
    """A fused normalisation over the head size, or x·rsqrt(mean(x²)) written out."""
    if node.op_type in _NORMS:
        shape = model.shape(node.outputs[0])
        return shape is not None and len(shape) == 4
    if not is_op(node, "Mul", "Div", "Add"):
        return False
    before = _upstream(node.inputs, lambda reached: reached.inputs if is_op(reached, *_MEAN) else ())
    return any(is_op(reached, "ReduceMean") for reached in before)
