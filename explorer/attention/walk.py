"""Small questions about nodes that every role asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from explorer.attention.block import Obstacle, RegionNode, Role, Step
from explorer.model import Dim, Model
from explorer.model.constants import attribute
from explorer.model.dims import is_known

_STANDARD = ("", "ai.onnx")


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """True if `node` is one of these operators of the standard domain."""
    return node is not None and node.domain in _STANDARD and node.op_type in op_types


def passes_through(model: Model, node: ir.Node) -> bool:
    """True for nodes that hand on their first input unchanged at inference: Identity, Dropout that is off."""
    if is_op(node, "Identity"):
        return True
    if not is_op(node, "Dropout"):
        return False
    # Dropout acts only where it is told to train: by its third input since opset 12, never before as a mere export
    return len(node.inputs) < 3 or node.inputs[2] is None or model.scalar(node.inputs[2]) == 0


def factor_of(model: Model, node: ir.Node, value: ir.Value) -> float | None:
    """The c for which `node` computes c·value (Mul or Div by a constant scalar, Neg), or None if it does not."""
    if is_op(node, "Neg"):
        return -1.0
    if is_op(node, "Mul"):
        left, right = node.inputs
        return model.scalar(right if left is value else left)
    if is_op(node, "Div") and node.inputs[0] is value:
        divisor = model.scalar(node.inputs[1])
        return 1.0 / divisor if divisor else None
    return None


def scaled_input(model: Model, node: ir.Node) -> tuple[ir.Value, float] | None:
    """The input x and the constant c for which `node` computes c·x, or None."""
    for value in node.inputs[:2]:
        if value is not None and (factor := factor_of(model, node, value)) is not None:
            return value, factor
    return None


def cast_target(node: ir.Node) -> ir.DataType:
    """The element type that a Cast node casts to."""
    return ir.DataType(attribute(node, "to", ir.DataType.FLOAT))


def softmax_axis(model: Model, node: ir.Node) -> int:
    """The axis of a Softmax; its default was 1 until opset 12."""
    return int(attribute(node, "axis", -1 if model.opset >= 13 else 1))


def origin(model: Model, value: ir.Value) -> ir.Value:
    """The value that `value` is a mere copy of: behind Identity and Casts that change nothing."""
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        same = is_op(node, "Cast") and model.dtype(node.inputs[0]) == model.dtype(value)
        if not (same or is_op(node, "Identity")):
            break
        value = node.inputs[0]
    return value


def name_of(value: ir.Value) -> str:
    """The name of a value; ONNX gives one to every tensor."""
    return value.name or ""


@dataclass
class Notes:
    """What the walk over one block has found so far: region, evidence, obstacles."""

    model: Model
    claimed: frozenset[str] = frozenset()
    """Keys of nodes that are the inside or the end of a block further up: no walk enters them."""
    region: dict[str, RegionNode] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def take(self, node: ir.Node, role: Role) -> str:
        """Make `node` part of the region and return its key."""
        key = self.model.key(node)
        self.region.setdefault(key, RegionNode(key, node.op_type, role))
        return key

    def step(self, text: str, *nodes: ir.Node) -> None:
        """Add a step of evidence about these nodes."""
        self.steps.append(Step(text, tuple(self.model.key(node) for node in nodes)))

    def obstacle(self, code: str, at: ir.Node | ir.Value | str, expected: str, found: str, hint: str = "") -> None:
        """Record why this is no (fusable) attention."""
        place = at if isinstance(at, str) else self.model.key(at) if isinstance(at, ir.Node) else name_of(at)
        self.obstacles.append(Obstacle(code, place, expected, found, hint))

    def must_be_private(self, value: ir.Value) -> None:
        """Record an obstacle if someone outside the walk reads `value`: fusing would leave them without it."""
        if value.is_graph_output():
            self.obstacle(
                "interior-output",
                value,
                "a value that only the attention itself reads",
                f"that {name_of(value)!r} is also an output of the graph",
                "remove that output if you do not need it",
            )
        others = [use.node for use in value.uses() if self.model.key(use.node) not in self.region]
        if others:
            readers = ", ".join(self.model.key(node) for node in others[:4])
            self.obstacle(
                "interior-used",
                value,
                "a value that only the attention itself reads",
                f"that {name_of(value)!r} has {len(others)} readers ({readers})",
                "the fused operator does not compute it, so that reader must go first",
            )


_MAX_UPSTREAM = 64


def leads_to(value: ir.Value, node: ir.Node) -> bool:
    """True if `value` is computed from the results of `node` (not of their shape), as a short walk upstream tells."""
    pending, seen = [value], {id(value)}
    while pending and len(seen) < _MAX_UPSTREAM:
        producer = pending.pop().producer()
        if producer is node:
            return True
        for source in () if producer is None or is_op(producer, "Shape", "Size") else producer.inputs:
            if source is not None and id(source) not in seen:
                seen.add(id(source))
                pending.append(source)
    return False


def shape_words(shape: tuple[Dim, ...] | None) -> str:
    """A shape for people: "[2, seq, ?]"."""
    if shape is None:
        return "unknown"
    return "[" + ", ".join(str(dim) if is_known(dim) else "?" for dim in shape) + "]"
