"""Where a softmax stands: the products of two computed tensors upstream and downstream of it, and the way to them.

Only the way is found here, through every operator that could keep the shape of the logits; what the operators on it
mean is read afterwards (`logits`, `probabilities`), and what they must not do is an obstacle there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from explorer.attention.contraction import is_product
from explorer.attention.walk import is_op
from explorer.model import Model

# Between QKᵀ and Softmax, or Softmax and P·V, real exporters put at most some twenty nodes.
_MAX_STEPS = 24
_MAX_VISITED = 400
_MAX_WEIGHT_STEPS = 12


@dataclass(frozen=True, slots=True)
class Hop:
    """A node on the way and the index of its input that carries the logits or probabilities."""

    node: ir.Node
    index: int

    @property
    def value(self) -> ir.Value:
        """The input that carries them."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value


@dataclass(frozen=True, slots=True)
class Way:
    """A product and the hops between it and the softmax, in the direction of the data."""

    product: ir.Node
    hops: tuple[Hop, ...]
    index: int = 0
    """Input of the product through which the probabilities enter it, on the way down."""


def ways_up(model: Model, value: ir.Value) -> Iterator[Way]:
    """Ways from products of two computed tensors down to `value`, the nearest product first."""
    seen: set[int] = {id(value)}
    frontier: list[tuple[ir.Value, tuple[Hop, ...], bool]] = [(value, (), False)]
    for _ in range(_MAX_STEPS):
        above: list[tuple[ir.Value, tuple[Hop, ...], bool]] = []
        for item, hops, mixed in frontier:
            node = item.producer()
            if node is None or item is not node.outputs[0]:
                continue
            if is_product(node):
                computed = [index for index in (0, 1) if not _is_weight(model, node.inputs[index])]
                if len(computed) == 2:
                    yield Way(node, hops)
                elif len(computed) == 1 and not mixed and _keeps_rank(model, node, computed[0]):
                    above.append((node.inputs[computed[0]], (Hop(node, computed[0]), *hops), True))  # type: ignore[arg-type]
                continue
            for index in _carriers(node):
                source = node.inputs[index] if index < len(node.inputs) else None
                if source is not None and id(source) not in seen and len(seen) < _MAX_VISITED:
                    seen.add(id(source))
                    above.append((source, (Hop(node, index), *hops), mixed))
        frontier = above


def ways_down(model: Model, value: ir.Value) -> Iterator[Way]:
    """Ways from `value` down to products with another computed tensor, the nearest product first."""
    seen: set[int] = {id(value)}
    frontier: list[tuple[ir.Value, tuple[Hop, ...], bool]] = [(value, (), False)]
    for _ in range(_MAX_STEPS):
        below: list[tuple[ir.Value, tuple[Hop, ...], bool]] = []
        for item, hops, mixed in frontier:
            for use in item.uses():
                node, index = use.node, use.idx
                if is_product(node) and index < 2:
                    if not _is_weight(model, node.inputs[1 - index]):
                        yield Way(node, hops, index)
                        continue
                    if mixed or not _keeps_rank(model, node, index):
                        continue
                elif index not in _carriers(node):
                    continue
                result = node.outputs[0]
                if id(result) not in seen and len(seen) < _MAX_VISITED:
                    seen.add(id(result))
                    below.append((result, (*hops, Hop(node, index)), mixed or is_product(node)))
        frontier = below


def _keeps_rank(model: Model, product: ir.Node, index: int) -> bool:
    """True if a product with a weight gives as many axes (at least 3) as it reads: heads mixed, not a projection."""
    before = model.shape(product.inputs[index])  # type: ignore[arg-type]
    after = model.shape(product.outputs[0])
    return before is not None and after is not None and len(before) == len(after) > 3


def _is_weight(model: Model, value: ir.Value | None) -> bool:
    """True if `value` is made of initializers and constants alone: a product with it is a projection, not QKᵀ."""
    for _ in range(_MAX_WEIGHT_STEPS):
        if value is None or value.const_value is not None:
            return True
        node = value.producer()
        if node is None:
            return False
        if is_op(node, "Constant"):
            return True
        if node.op_type not in ("Transpose", "Cast", "Reshape", "DequantizeLinear", "Identity", "Squeeze", "Unsqueeze"):
            return model.constant(value) is not None
        value = node.inputs[0]
    return False


def _carriers(node: ir.Node) -> tuple[int, ...]:
    """Indices of the inputs of `node` whose shape its result could have kept."""
    if node.op_type in _FIRST_INPUT:
        return (0,)
    if node.op_type == "Where":
        return (1, 2)
    if node.op_type in _ANY_INPUT:
        return tuple(range(len(node.inputs)))
    return ()


_FIRST_INPUT = frozenset((
    "Abs", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip", "Conv", "CumSum", "Dropout", "Elu", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "Gelu", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "Log", "LogSoftmax", "Neg", "Pad", "Reciprocal", "Relu", "Reshape", "Round", "ScatterElements",
    "ScatterND", "Sigmoid", "Sign", "Slice", "Softmax", "Softplus", "Softsign", "Sqrt", "Squeeze", "Tanh", "Transpose",
    "Trilu", "Unsqueeze",
))  # fmt: skip
_ANY_INPUT = frozenset(("Add", "Concat", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"))
