"""From Softmax forward: casts and guards on the probabilities, the product with V, and the way its heads are merged."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from explorer.attention.block import BNSH, Layout, View
from explorer.attention.layouts import Sizes, move
from explorer.attention.walk import Notes, cast_target, is_op, is_product, name_of, passes_through
from explorer.model import dtype_name

_MAX_NODES = 16


@dataclass(frozen=True, slots=True)
class Product:
    """The product with V: its node, which of its inputs the probabilities are, and V."""

    node: ir.Node
    probabilities: ir.Value
    value: ir.Value | None


def follow_probabilities(notes: Notes, softmax: ir.Node) -> Product | None:
    """Walk forward from the output of `softmax` to the product with V; None if no product follows."""
    value = softmax.outputs[0]
    for _ in range(_MAX_NODES):
        readers = [use.node for use in value.uses()]
        onward = [node for node in readers if is_product(node) or passes_through(node) or is_op(node, "Cast")]
        if not onward:
            return _product_behind(notes, value)
        node = onward[0]
        notes.must_be_private(value)
        if is_product(node):
            other = [item for item in node.inputs[:2] if item is not value]
            return Product(node, value, other[0] if other else None)
        notes.take(node, "cast" if is_op(node, "Cast") else "guard")
        if is_op(node, "Cast"):
            notes.step(f"The probabilities are cast to {dtype_name(cast_target(node))}.", node)
        value = node.outputs[0]
    return None


def _product_behind(notes: Notes, value: ir.Value) -> Product | None:
    """A product behind one operator that attention does not have: an obstacle, not a non-match."""
    for use in value.uses():
        for output in use.node.outputs:
            for next_use in output.uses():
                if is_product(next_use.node):
                    notes.obstacle(
                        "probabilities-operator",
                        use.node,
                        "a cast or nothing between Softmax and the product with V",
                        f"a {use.node.op_type}",
                        "the fused operator has no place for it",
                    )
                    return Product(next_use.node, output, None)
    return None


def follow_merge(notes: Notes, product: ir.Node, sizes: Sizes) -> View:
    """Follow the product's result (BNSH) through the Transposes and Reshapes that merge its heads.

    Returns the value to replace. A Reshape that does not provably give BSD is left outside: it stays in the graph.
    """
    value, layout = product.outputs[0], BNSH
    best: tuple[ir.Value, Layout, list[ir.Node]] = (value, layout, [])
    nodes: list[ir.Node] = []
    for _ in range(_MAX_NODES):
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            break
        node = uses[0].node
        step = move(notes.model, node)
        after = None if step is None or uses[0].idx != 0 else step.forward(layout, sizes)
        if after is None:
            break
        nodes.append(node)
        value, layout = node.outputs[0], after
        if _mergeable(layout):
            best = (value, layout, list(nodes))
    for node in best[2]:
        notes.take(node, "merge")
    if best[2]:
        notes.step("The heads are put back side by side (the output layout of the fused operator).", *best[2])
    return View(name_of(best[0]), best[1])


def _mergeable(layout: Layout) -> bool:
    """True for the layouts that a block may end in: heads split or merged, batch and sequence apart."""
    return layout in (BNSH, ("B", "S", "N", "H"), ("B", "S", "NH"))
