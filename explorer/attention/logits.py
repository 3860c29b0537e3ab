"""From Softmax back to the product QKᵀ: peel scale, casts, masks, softcap and guards, in whatever order they come."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from explorer.attention.block import MaskTerm
from explorer.attention.mask import additive_term, boolean_term
from explorer.attention.walk import Notes, cast_target, is_op, is_product, name_of, passes_through, scaled_input
from explorer.model import dtype_name

# Between QKᵀ and Softmax real exporters put at most about ten nodes.
_MAX_NODES = 24


@dataclass
class Logits:
    """What lies between the product and Softmax: logits = scale·QKᵀ + masks.

    `scale` multiplies the product; `terms` are already multiplied by what comes after them.
    """

    product: ir.Node | None = None
    scale: float = 1.0
    terms: list[MaskTerm] = field(default_factory=list)


def peel_logits(notes: Notes, softmax: ir.Node) -> Logits:
    """Walk backwards from the input of `softmax` to the product, noting each role on the way.

    The result has no product if there is none upstream; an unknown operator on the way is an obstacle.
    """
    model = notes.model
    found = Logits()
    start = softmax.inputs[0]
    value: ir.Value | None = start
    for _ in range(_MAX_NODES):
        node = None if value is None else value.producer()
        if node is None or value is None:
            return found
        if is_product(node):
            notes.must_be_private(value)
            found.product = node
            return found
        previous = value
        if passes_through(node):
            notes.take(node, "guard")
            value = node.inputs[0]
        elif is_op(node, "Cast"):
            notes.take(node, "cast")
            value = node.inputs[0]
            notes.step(f"The logits are cast to {dtype_name(cast_target(node))}.", node)
        elif (scaled := scaled_input(model, node)) is not None:
            notes.take(node, "scale")
            value, factor = scaled
            found.scale *= factor
            notes.step(f"The logits are multiplied by {factor:g}.", node)
        elif is_op(node, "Add", "Sub", "Where"):
            value = _peel_mask(notes, node, found)
        else:
            value = None
        if value is None:
            product = product_upstream(node, _MAX_NODES)
            if product is not None:
                found.product = product
                notes.obstacle(
                    "logits-operator",
                    node,
                    "scale, mask, cast or guard between QKᵀ and Softmax",
                    f"a {node.op_type} whose effect on the logits is not known",
                    "this is another function than attention unless that node changes nothing",
                )
            return found
        notes.must_be_private(previous)
    return found


def _peel_mask(notes: Notes, node: ir.Node, found: Logits) -> ir.Value | None:
    """Split a mask off `node` and return the value that carries the logits on, or None if that is unclear."""
    candidates = [value for value in node.inputs if value is not None]
    if is_op(node, "Where"):
        candidates = candidates[1:]
    near = [(distance, value) for value in candidates if (distance := _distance(value)) is not None]
    if not near:
        return None
    logits = min(near, key=lambda pair: pair[0])[1]
    if is_op(node, "Where"):
        term = boolean_term(notes.model, node, logits, found.scale)
        if term is None:
            return None
        words = f"Where {name_of(node.inputs[0])!r} is {'false' if term.keep_when else 'true'}"  # type: ignore[arg-type]
        kind = "a causal mask" if term.kind == "causal" else "a boolean mask"
        notes.step(f"{words} the logits are replaced by {term.fill:g}: {kind}.", node)
    else:
        if is_op(node, "Sub") and logits is not node.inputs[0]:
            return None
        other = next(value for value in candidates if value is not logits)
        term = additive_term(notes.model, other, found.scale * (-1.0 if is_op(node, "Sub") else 1.0))
        if term is None:
            return None
        notes.step(f"{term.value!r} is added to the logits: {_mask_words(term)}.", node)
    found.terms.append(term)
    notes.take(node, "mask")
    return logits


def _mask_words(term: MaskTerm) -> str:
    shape = "×".join("?" if dim is None else str(dim) for dim in term.shape)
    return f"an additive mask of shape {shape}" if shape else "an additive mask"


def _distance(value: ir.Value) -> int | None:
    """How many nodes lie between `value` and the nearest product of two computed tensors upstream; None if far."""
    frontier, seen = [value], {id(value)}
    for distance in range(_MAX_NODES):
        next_frontier: list[ir.Value] = []
        for item in frontier:
            node = item.producer()
            if node is None:
                continue
            if is_product(node):
                if _computed(node):
                    return distance
                continue
            # Only operators that keep the shape of the logits lead back to their product
            if node.op_type in _SHAPE_KEEPING:
                for source in node.inputs:
                    if source is not None and id(source) not in seen:
                        seen.add(id(source))
                        next_frontier.append(source)
        frontier = next_frontier
        if not frontier:
            return None
    return None


def product_upstream(node: ir.Node, limit: int) -> ir.Node | None:
    """The nearest product of two computed tensors above `node`, through operators that keep the logits' shape."""
    frontier, seen = [node], {id(node)}
    for _ in range(limit):
        above: list[ir.Node] = []
        for item in frontier:
            for value in item.inputs:
                source = None if value is None else value.producer()
                if source is None or id(source) in seen:
                    continue
                seen.add(id(source))
                if is_product(source) and _computed(source):
                    return source
                if source.op_type in _SHAPE_KEEPING:
                    above.append(source)
        frontier = above
    return None


def _computed(product: ir.Node) -> bool:
    """True if both factors are computed: a product with a weight is a projection, not QKᵀ."""
    factors = [value for value in product.inputs[:2] if value is not None]
    return len(factors) == 2 and all(value.const_value is None for value in factors)


_SHAPE_KEEPING = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Cast",
        "Where",
        "Identity",
        "Dropout",
        "Tanh",
        "Clip",
        "Min",
        "Max",
        "Abs",
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Exp",
        "Pow",
        "Sqrt",
        "Softplus",
        "Softsign",
        "Elu",
        "Gelu",
        "Erf",
        "Round",
        "Floor",
        "Ceil",
        "Sign",
        "Reciprocal",
        "LayerNormalization",
        "BatchNormalization",
        "InstanceNormalization",
        "Softmax",
        "LogSoftmax",
        "Reshape",
        "Transpose",
        "Concat",
        "Slice",
        "Pad",
        "Expand",
        "Squeeze",
        "Unsqueeze",
        "Conv",
        "IsNaN",
        "Equal",
        "Not",
        "And",
        "Or",
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
    ]
)
