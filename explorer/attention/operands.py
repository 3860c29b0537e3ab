"""Query, key and value: from what a product reads, upstream through factors, Casts, repeats and changes of layout."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from explorer.attention.block import Layout, Role, View
from explorer.attention.layouts import Axes, MaySplit, move
from explorer.attention.walk import Notes, cast_target, is_op, name_of, passes_through, scaled_input
from explorer.model import Model, dtype_name
from explorer.model.constants import attribute

_MAX_NODES = 24


@dataclass(frozen=True, slots=True)
class Hoist:
    """One step upstream: the node that is left behind, its role, its input, and that input's layout.

    `factor` multiplies the input; `words` say what the node does, but for a change of layout, whose letters have no
    names yet.
    """

    node: ir.Node
    source: ir.Value
    before: Layout
    role: Role
    words: str = ""
    factor: float = 1.0


@dataclass
class Trail:
    """One operand ("Q", "K" or "V") from the product upstream: its views, their values, and the steps between them."""

    name: str
    views: list[View]
    values: list[ir.Value]
    hoists: list[Hoist] = field(default_factory=list)


def peel_operand(notes: Notes, axes: Axes, name: str, value: ir.Value, layout: Layout, shared: str, own: str) -> Trail:
    """The trail of the operand called `name`, from the product upstream.

    Letters in `shared` (batch and heads) are split wherever a Reshape demands it; those in `own` (positions) only where
    that takes no further axis: rows and heads folded into one are taken apart, a picture's height and width are not.
    """
    model = notes.model
    trail = Trail(name, [View(name_of(value), layout, 1.0, dtype_name(model.dtype(value)))], [value])
    scale = 1.0
    while len(trail.hoists) < _MAX_NODES:
        node = value.producer()
        if node is None or model.key(node) in notes.claimed or not node.inputs or node.inputs[0] is None:
            break
        hoist = _hoist(model, axes, node, node.inputs[0], axes.current(layout), name, shared, own)
        if hoist is None:
            break
        notes.take(node, hoist.role)
        value, layout, scale = hoist.source, hoist.before, scale * hoist.factor
        trail.hoists.append(hoist)
        trail.views.append(View(name_of(value), layout, scale, dtype_name(model.dtype(value))))
        trail.values.append(value)
    return trail


def _hoist(
    model: Model, axes: Axes, node: ir.Node, source: ir.Value, layout: Layout, name: str, shared: str, own: str
) -> Hoist | None:
    """The step over `node`, or None if the operand is no mere rearrangement of what goes into it."""
    if passes_through(model, node):
        return Hoist(node, source, layout, "guard", f"{name} passes unchanged.")
    if is_op(node, "Cast"):
        words = f"{name} is cast to {dtype_name(cast_target(node))}."
        return Hoist(node, source, layout, "cast", words) if _widens(model, node) else None
    if (scaled := scaled_input(model, node)) is not None:
        source, factor = scaled
        if len(model.shape(source) or ()) != len(layout):
            return None  # a factor of higher rank adds axes
        return Hoist(node, source, layout, "scale", f"{name} is multiplied by {factor:g}.", factor)
    if (before := _repeated(model, axes, node, layout, shared)) is not None:
        return Hoist(node, source, before, "repeat", f"{name} is repeated: one entry serves several.")
    if (step := move(model, node)) is not None:
        before = step.backward(axes, layout, _rule(axes, shared, own, len(step.before) <= len(layout)))
        return None if before is None else Hoist(node, source, before, "layout")
    return None


def _rule(axes: Axes, shared: str, own: str, no_further_axis: bool) -> MaySplit:
    def may_split(letter: str) -> bool:
        return letter in axes.now(shared) or (no_further_axis and letter in axes.now(own))

    return may_split


def _widens(model: Model, cast: ir.Node) -> bool:
    """True if a Cast loses nothing: what comes before it can then stand for what comes after."""
    source = cast.inputs[0]
    before, after = None if source is None else model.dtype(source), cast_target(cast)
    if before is None or not before.is_floating_point() or not after.is_floating_point():
        return False
    return before == after or (before.itemsize < after.itemsize)


def _repeated(model: Model, axes: Axes, node: ir.Node, layout: Layout, shared: str) -> Layout | None:
    """The layout before `node` if it only repeats batch entries or heads (Expand, Tile, Gather, Concat); else None."""
    source = node.inputs[0]
    before = None if source is None else model.shape(source)
    after = model.shape(node.outputs[0])
    if before is None or after is None or len(after) != len(layout) or len(before) > len(after):
        return None
    if is_op(node, "Expand"):
        missing = len(after) - len(before)
        result: list[str] = []
        for axis, group in enumerate(layout):
            if axis < missing or (before[axis - missing] == 1 and after[axis] != 1):
                if not set(group) <= set(axes.now(shared)):
                    return None
                if axis >= missing:
                    result.append("")
            elif before[axis - missing] != after[axis]:
                return None
            else:
                result.append(group)
        return tuple(result)
    changed = [axis for axis in range(len(layout)) if before[axis] != after[axis]] if len(before) == len(after) else []
    if len(changed) != 1 or not set(layout[changed[0]]) <= set(axes.now(shared)):
        return None
    at = changed[0]
    times = _times(model, node, at, before[at], after[at])
    if times is None:
        return None
    count, inner = times
    group = layout[at]
    if before[at] == 1:
        kept = ""
    else:
        if len(group) == 1:
            axes.split(group, (before[at], count) if inner else (count, before[at]))
        parts = axes.now(group)
        cuts = [cut for cut in range(1, len(parts)) if axes.size(parts[:cut]) == (before[at] if inner else count)]
        if not cuts:
            return None
        kept = parts[: cuts[0]] if inner else parts[cuts[0] :]
    return tuple(kept if axis == at else axes.now(group) for axis, group in enumerate(layout))


def _times(model: Model, node: ir.Node, axis: int, before: object, after: object) -> tuple[int, bool] | None:
    """How often each entry of `axis` is there, and True if its copies are neighbours (False: the whole is repeated)."""
    if not isinstance(before, int) or not isinstance(after, int) or after % before:
        return None
    count = after // before
    if is_op(node, "Tile"):
        return count, False
    if is_op(node, "Concat"):
        same = all(value is node.inputs[0] for value in node.inputs) and len(node.inputs) == count
        return (count, False) if same else None
    if is_op(node, "Gather") and attribute(node, "axis", 0) % len(model.shape(node.outputs[0]) or (0,)) == axis:
        indices = model.constant(node.inputs[1])
        if indices is None or indices.ndim != 1:
            return None
        if np.array_equal(indices, np.repeat(np.arange(before), count)):
            return count, True
        if np.array_equal(indices, np.tile(np.arange(before), count)):
            return count, False
    return None
