"""From Softmax forward: casts and guards on the probabilities, and the way the heads of the result are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from explorer.attention.block import Layout, View
from explorer.attention.layouts import Axes, move
from explorer.attention.logits import nan_guard
from explorer.attention.paths import Hop, Way
from explorer.attention.walk import Notes, cast_target, factor_of, is_op, name_of, origin, passes_through
from explorer.model import dtype_name

_MAX_MERGES = 8
_MAX_GUARD_NODES = 12


def read_probabilities(
    notes: Notes, axes: Axes, way: Way, layout: Layout, hidden: Sequence[str]
) -> tuple[Layout, bool] | None:
    """Follow the hops of `way`, from Softmax to the product with V, and note what they do.

    `hidden` names the boolean masks of the logits: where a row sees nothing at all they may zero it here again.
    Returns the layout in which the probabilities enter the product, and whether a guard zeroes rows that see no key;
    None (and an obstacle) where a hop does something else.
    """
    guarded = False
    for hop in way.hops:
        node = hop.node
        if passes_through(notes.model, node) or factor_of(notes.model, node, hop.value) == 1.0 or _bounds(notes, hop):
            notes.take(node, "guard")
        elif is_op(node, "Where") and (helpers := _infinity_guard(hop)) is not None:
            for part in (*helpers, node):
                notes.take(part, "guard")
        elif is_op(node, "Cast") and cast_target(node).is_floating_point():
            notes.take(node, "cast")
            notes.step(f"The probabilities are cast to {dtype_name(cast_target(node))}.", node)
        elif is_op(node, "Where") and (helpers := _zeroes(notes, hop, hidden)) is not None:
            guarded = True
            for part in (*helpers, node):
                notes.take(part, "guard")
            notes.step("A query that sees no key gets zeros (a guard against NaN).", *helpers, node)
        elif (step := move(notes.model, node)) is not None and (
            after := step.forward(axes, axes.current(layout), lambda letter: True)
        ) is not None:
            notes.take(node, "layout")
            layout = after
        else:
            notes.obstacle(*_why_not(node))
            return None
    return axes.current(layout), guarded


def _bounds(notes: Notes, hop: Hop) -> bool:
    """True for a Clip that leaves all numbers from 0 to 1."""
    node = hop.node
    if not is_op(node, "Clip") or hop.index != 0:
        return False
    low, high = (notes.model.scalar(node.inputs[at]) if len(node.inputs) > at else None for at in (1, 2))
    low, high = (
        found if found is not None else node.attributes[name].value if name in node.attributes else None
        for found, name in ((low, "min"), (high, "max"))
    )
    given = [value for value in node.inputs[1:3] if value is not None]
    if any(notes.model.scalar(value) is None for value in given):
        return False
    return (low is None or low <= 0) and (high is None or high >= 1)


def _infinity_guard(hop: Hop) -> tuple[ir.Node, ...] | None:
    """The nodes behind a Where on `IsInf(p) and …`, which no probability p meets; None if it is something else."""
    pending, found = ([hop.node.inputs[0]] if hop.index == 2 else []), list[ir.Node]()
    infinite = False
    while pending and len(found) < _MAX_GUARD_NODES:
        value = pending.pop()
        node = None if value is None or value is hop.value else value.producer()
        if node is None or is_op(node, "Constant"):
            continue
        if not is_op(node, "And", "Cast", "IsInf", "Greater", "Less"):
            return None
        infinite |= node.op_type == "IsInf"
        found.append(node)
        pending += node.inputs
    return tuple(found) if infinite else None


def _zeroes(notes: Notes, hop: Hop, hidden: Sequence[str]) -> tuple[ir.Node, ...] | None:
    """Nodes that belong to a Where that turns rows without any key into zeros; None if it does something else."""
    node = hop.node
    other = node.inputs[3 - hop.index] if hop.index in (1, 2) else None
    if other is None or notes.model.scalar(other) != 0.0:
        return None
    if (test := nan_guard(node, hop)) is not None:
        return test
    # the same mask once more: it zeroes what the softmax gave no weight, and rows that see nothing
    condition = node.inputs[0]
    return () if condition is not None and name_of(origin(notes.model, condition)) in hidden else None


def _why_not(node: ir.Node) -> tuple[str, ir.Node, str, str, str]:
    """An obstacle for a node that does something to the probabilities."""
    if is_op(node, "Conv", "Einsum", "MatMul", "Gemm"):
        what = f"a {node.op_type} with a weight that mixes the heads"
        return (
            "talking-heads",
            node,
            "probabilities that stay within their head",
            what,
            "no attention operator mixes heads",
        )
    if is_op(node, "Dropout"):
        return "dropout", node, "a Dropout that is off", "one that is told to train", "export the model in eval mode"
    if is_op(node, "Slice"):
        what = "a Slice that leaves some of them out, as an attention sink does"
        return "attention-sink", node, "all probabilities multiplied with V", what, "the operator has no place for it"
    return (
        "probabilities-operator",
        node,
        "a cast, a guard or nothing between Softmax and the product with V",
        f"a {node.op_type}",
        "the fused operator has no place for it",
    )


def follow_output(
    notes: Notes, axes: Axes, product: ir.Node, layout: Layout, may_split: Callable[[str], bool]
) -> list[tuple[View, tuple[ir.Node, ...]]]:
    """Views of the block's result from the product with V downstream, each with the nodes that lead to it.

    The way goes through Transposes, Reshapes and Casts as long as nobody else reads more than the shape of what it
    passes.
    """
    value = product.outputs[0]
    nodes: tuple[ir.Node, ...] = ()
    found: list[tuple[View, tuple[ir.Node, ...]]] = []
    for _ in range(_MAX_MERGES):
        found.append((View(name_of(value), layout, dtype=dtype_name(notes.model.dtype(value))), nodes))
        uses = [use for use in value.uses() if not is_op(use.node, "Shape")]
        if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
            break
        node = uses[0].node
        if node.graph is not product.graph:
            break
        if passes_through(notes.model, node) or is_op(node, "Cast"):
            after: Layout | None = layout
        else:
            step = move(notes.model, node)
            after = None if step is None else step.forward(axes, axes.current(layout), may_split)
        if after is None:
            break
        value, layout, nodes = node.outputs[0], after, (*nodes, node)
    return found
