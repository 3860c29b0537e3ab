"""Query, key and value: from what a product reads, upstream through factors, Transposes and Reshapes."""

from __future__ import annotations

import onnx_ir as ir

from explorer.attention.block import Layout, Operand, View, layout_name
from explorer.attention.layouts import Sizes, move
from explorer.attention.upstream import traits
from explorer.attention.walk import Notes, name_of, passes_through, scaled_input

_MAX_NODES = 16


def peel_operand(notes: Notes, name: str, value: ir.Value, layout: Layout, sizes: Sizes) -> Operand:
    """Views of the operand called `name` ("Q", "K", "V"), from the product upstream; `layout` is what it reads."""
    model = notes.model
    views = [View(name_of(value), layout)]
    scale = 1.0
    for _ in range(_MAX_NODES):
        node = value.producer()
        if node is None or model.key(node) in notes.claimed:
            break
        if passes_through(node) and node.inputs[0] is not None:
            value = node.inputs[0]
        elif (scaled := scaled_input(model, node)) is not None:
            if len(model.shape(scaled[0]) or ()) != len(layout):
                break  # a factor of higher rank adds axes
            value, factor = scaled
            scale *= factor
            notes.take(node, "scale")
            notes.step(f"{name} is multiplied by {factor:g}.", node)
        elif (step := move(model, node)) is not None and node.inputs[0] is not None:
            before = step.backward(layout, sizes)
            if before is None:
                break
            notes.take(node, "layout")
            notes.step(f"{name} goes from {layout_name(before)} to {layout_name(layout)}.", node)
            value, layout = node.inputs[0], before
        else:
            break
        views.append(View(name_of(value), layout, scale))
    return Operand(tuple(views), traits(model, value))
