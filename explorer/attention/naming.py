"""What the axes of both products mean, told from the ways of query, key, value and result; all is named after that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx_ir as ir

from explorer.attention.block import Block, Factor, Layout, MaskTerm, Operand, Step, View, layout_name
from explorer.attention.heads import Roles, assign, names
from explorer.attention.layouts import Axes
from explorer.attention.logits import Logits, with_causality
from explorer.attention.mask import is_gate, summarize
from explorer.attention.operands import Trail, peel_operand
from explorer.attention.probabilities import follow_output
from explorer.attention.upstream import traits
from explorer.attention.walk import Notes, is_op, shape_words
from explorer.model import Dim

Rename = Callable[[str], str]
"""From letters without a meaning to the field's."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What lies at the two products, in letters without a meaning."""

    qk: ir.Node
    pv: ir.Node
    query: tuple[ir.Value, Layout]
    key: tuple[ir.Value, Layout]
    value: tuple[ir.Value, Layout]
    result: Layout
    head: str
    v_head: str
    keys: str


def name_block(notes: Notes, axes: Axes, block: Block, ends: Ends, logits: Logits) -> tuple[Block, tuple[ir.Node, ...]]:
    """`block` with operands, result, sizes and masks in the field's letters, and the nodes that merge its heads."""
    trails, outputs, merges = _follow(notes, axes, ends)
    layouts = [[axes.current(view.layout) for view in trail.views] for trail in trails]
    of_output = [axes.current(view.layout) for view in outputs]
    keys = axes.now(ends.keys)
    roles = assign(layouts[0], of_output, layouts[1], layouts[2], ends.head, ends.v_head, keys)
    letters = names(roles, ends.head, ends.v_head)

    def rename(group: str) -> str:
        return "".join(letters[letter] for letter in axes.now(group))

    dtype = _dtype(notes, ends, trails, outputs)
    best = _best(outputs, of_output, (roles.batch, roles.rows, roles.heads + ends.v_head), dtype)
    _take_merge(notes, merges[best])
    query, key, value = (_operand(notes, trail, dtype, rename) for trail in trails)
    # operands come first in the explanation
    notes.steps[:0] = [step for trail in trails for step in _explained(notes, axes, trail, rename)]
    if value.source.scale != 1.0:
        # a factor on V would have to move behind the block: look no further than V as it is without it
        value = replace(value, views=tuple(view for view in value.views if view.scale == 1.0))
    terms = tuple(
        with_causality(notes.model, replace(term, layout=tuple(rename(axis) for axis in term.layout)), hop)
        for term, hop in logits.terms
    )
    named = replace(
        _sized(notes, axes, ends, block, roles, rename),
        query=query,
        key=key,
        value=value,
        output=_renamed(outputs[best], rename),
        taken_for=axes.taken_for,
        sizes=tuple(sorted((new, axes.sizes[old]) for old, new in letters.items())),
        scale=logits.scale * query.source.scale * key.source.scale,
        factor=_factor(notes, logits, terms, rename),
        mask=summarize(notes.model, terms),
        dtype=dtype,
    )
    _check_factor(notes, ends, named)
    return named, merges[best]


def _follow(notes: Notes, axes: Axes, ends: Ends) -> tuple[list[Trail], list[View], list[tuple[ir.Node, ...]]]:
    """The trails of query, key and value, and the views of the result, each with the nodes that lead to it."""
    of_query, of_key = (set(axes.now("".join(layout))) for _, layout in (ends.query, ends.key))
    shared = "".join(sorted((of_query & of_key) - {ends.head}))
    rows = "".join(sorted(of_query - of_key))
    trails = [
        peel_operand(notes, axes, name, value, axes.current(layout), shared, own)
        for name, (value, layout), own in (
            ("Q", ends.query, rows), ("K", ends.key, ends.keys), ("V", ends.value, ends.keys),
        )
    ]  # fmt: skip
    # where batch and heads are one axis, only what comes behind the positions' own split may tell them apart
    splittable = shared + rows if len(axes.now(shared)) == 1 else shared
    merged = follow_output(notes, axes, ends.pv, axes.current(ends.result), lambda x: x in axes.now(splittable))
    return trails, [view for view, _ in merged], [nodes for _, nodes in merged]


def _dtype(notes: Notes, ends: Ends, trails: Sequence[Trail], outputs: Sequence[View]) -> str:
    """The element type in which the block can be computed: the narrow one if it is cast up and back again."""
    have = set.intersection(*({view.dtype for view in trail.views} for trail in trails))
    product = trails[2].views[0].dtype
    back = [view.dtype for view in outputs if view.dtype != product and view.dtype in have]
    if back or product in have:
        return back[0] if back else product
    found = ", ".join(trail.views[0].dtype or "?" for trail in trails)
    notes.obstacle("mixed-dtypes", ends.qk, "Q, K and V of one element type", found)
    return ""


def _best(outputs: Sequence[View], layouts: Sequence[Layout], wanted: Layout, dtype: str) -> int:
    """Index of the view furthest downstream among those that take the fewest layout nodes to reach."""

    def cost(index: int) -> int:
        if layouts[index] == wanted:
            return 0
        return 1 if "".join(layouts[index]) == "".join(wanted) else 2

    usable = [index for index, view in enumerate(outputs) if not dtype or view.dtype == dtype]
    return min(usable, key=lambda index: (cost(index), -index), default=0)


def _take_merge(notes: Notes, nodes: tuple[ir.Node, ...]) -> None:
    for node in nodes:
        notes.take(node, "cast" if is_op(node, "Cast") else "merge")
    if nodes:
        notes.step("The heads are put back side by side (the output layout of the fused operator).", *nodes)


def _operand(notes: Notes, trail: Trail, dtype: str, rename: Rename) -> Operand:
    views = tuple(_renamed(view, rename) for view in trail.views if view.dtype == dtype or not dtype)
    return Operand(views, traits(notes.model, trail.values[-1]))


def _explained(notes: Notes, axes: Axes, trail: Trail, rename: Rename) -> list[Step]:
    """What happens to an operand on its way to the product, in the direction of the data."""
    steps = []
    layouts = [tuple(rename(axis) for axis in axes.current(view.layout)) for view in trail.views]
    for hoist, (after, before) in zip(trail.hoists, pairwise(layouts), strict=True):
        change = f"{trail.name} goes from {layout_name(before)} to {layout_name(after)}."
        steps.append(Step(hoist.words or change, (notes.model.key(hoist.node),)))
    if trail.name == "K" and all("".join(layout).endswith("HT") for layout in layouts):
        steps.append(Step("K comes as BNHS already: what lies before worked on transposed K.", ()))
    return steps[::-1]


def _renamed(view: View, rename: Rename) -> View:
    return replace(view, layout=tuple(rename(axis) for axis in view.layout))


def _sized(notes: Notes, axes: Axes, ends: Ends, block: Block, roles: Roles, rename: Rename) -> Block:
    """`block` with its letters, its numbers of heads and its head sizes, and an obstacle if one is no number."""
    heads, kv_heads, head_size, v_head_size = (
        axes.size(letters) for letters in (roles.heads, roles.kv_heads, ends.head, ends.v_head)
    )
    if not all(isinstance(size, int) for size in (heads, kv_heads, head_size, v_head_size)):
        notes.obstacle(
            "heads-unknown",
            ends.qk,
            "a fixed number of heads and head size",
            f"{shape_words((heads,))} heads of {shape_words((head_size,))}",
            "give the shapes of the model's inputs (--shape)",
        )
    return replace(
        block,
        batch=rename(roles.batch),
        heads=rename(roles.heads),
        kv_heads=rename(roles.kv_heads),
        rows=rename(roles.rows),
        keys=rename(roles.keys),
        num_heads=_number(heads),
        kv_num_heads=_number(kv_heads),
        head_size=_number(head_size),
        v_head_size=_number(v_head_size),
    )


def _number(size: Dim) -> int | None:
    return size if isinstance(size, int) else None


def _factor(notes: Notes, logits: Logits, terms: Sequence[MaskTerm], rename: Rename) -> Factor | None:
    """The factor on the logits; None if there is none or it only touches logits that a mask hides anyway."""
    if logits.factor is None:
        return None
    factor = replace(logits.factor, layout=tuple(rename(axis) for axis in logits.factor.layout))
    value = notes.model.value(factor.value)
    for term in terms:
        if term.layout == factor.layout and term.dtype != "bool" and is_gate(notes.model, value, term):
            notes.step(f"{factor.value!r} is 1 wherever {term.value!r} hides nothing, so it changes nothing.")
            return None
    return factor


def _check_factor(notes: Notes, ends: Ends, block: Block) -> None:
    """A factor that differs from key to key cannot be moved to the query."""
    factor = block.factor
    if factor is not None and set("".join(block.term_layout(factor))) & set(block.keys):
        found = f"{factor.value!r} of shape {shape_words(factor.shape)}, another factor for each key"
        notes.obstacle("scale-unknown", ends.qk, "a factor that is the same for all keys", found)
