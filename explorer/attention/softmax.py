"""Softmax in every spelling: the operator, and its formula written out."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from explorer.attention.walk import is_op, softmax_axis
from explorer.model import Model
from explorer.model.constants import attribute


@dataclass(frozen=True, slots=True)
class Softmax:
    """The nodes that normalise `value` over `axis`; the last of them gives the result.

    `onward` is True if, as until opset 12, it normalises over all axes from `axis` on.
    """

    nodes: tuple[ir.Node, ...]
    value: ir.Value
    axis: int
    onward: bool = False

    @property
    def node(self) -> ir.Node:
        """The node that gives the result."""
        return self.nodes[-1]

    @property
    def result(self) -> ir.Value:
        """The probabilities."""
        return self.node.outputs[0]


def softmax_at(model: Model, node: ir.Node) -> Softmax | None:
    """The Softmax whose result `node` gives: Softmax itself, exp(x)/Σexp(x), exp(log softmax); None if it is none."""
    if not is_op(node, "Softmax", "Div", "Exp") or node.inputs[0] is None:
        return None
    if node.op_type == "Softmax":
        return Softmax((node,), node.inputs[0], softmax_axis(model, node), model.opset < 13)
    source = node.inputs[0].producer()
    if node.op_type == "Exp":
        if not is_op(source, "LogSoftmax") or source is None or source.inputs[0] is None:
            return None
        return Softmax((source, node), source.inputs[0], softmax_axis(model, source), model.opset < 13)
    total = None if node.inputs[1] is None else node.inputs[1].producer()
    if not is_op(source, "Exp") or not is_op(total, "ReduceSum") or source is None or total is None:
        return None
    axis = _summed_axis(model, total)
    if total.inputs[0] is not node.inputs[0] or axis is None or source.inputs[0] is None:
        return None
    return Softmax((source, total, node), source.inputs[0], axis)


def _summed_axis(model: Model, node: ir.Node) -> int | None:
    """The one axis that a ReduceSum sums and keeps as an axis of size 1, or None."""
    if not attribute(node, "keepdims", 1):
        return None
    axes = attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1:
        axes = model.constant(node.inputs[1])
    return int(axes[0]) if axes is not None and len(axes) == 1 else None
