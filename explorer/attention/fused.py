"""Attention that already is one operator: listed with the same fields, so that a fused model reads like its source."""

from __future__ import annotations

import math

import onnx_ir as ir

from explorer.attention.block import Block, Layout, Mask, MaskKind, MaskTerm, Operand, RegionNode, Step, View
from explorer.attention.fused_operators import Facts, is_fused, read
from explorer.attention.heads import Roles, names
from explorer.attention.layouts import Axes
from explorer.attention.mask import summarize
from explorer.attention.operands import Trail, peel_operand
from explorer.attention.upstream import traits
from explorer.attention.walk import Notes, name_of
from explorer.model import Dim, Model, dtype_name
from explorer.model.dims import add, divide, is_known, multiply
from explorer.model.types import unknown

__all__ = ["fused_block", "is_fused"]


def fused_block(model: Model, node: ir.Node, label: str) -> Block:
    """The Block that a fused operator is; what neither the operator nor a shape says stays None."""
    return _Reading(model, node).block(label)


class _Reading:
    """The reading of one operator: sizes from all the shapes it shows, then its operands upstream, as in any block."""

    def __init__(self, model: Model, node: ir.Node) -> None:
        self.model, self.node, self.facts = model, node, read(model, node)
        self.notes, self.axes = Notes(model), Axes()
        self.sizes = _sizes(model, self.facts, name_of(node.outputs[0]))
        self.letters = _letters(self.axes, self.sizes, self.facts.past)

    def block(self, label: str) -> Block:
        """The block of this operator."""
        facts, axes, key = self.facts, self.axes, self.model.key(self.node)
        given = (("Q", facts.query, "S"), ("K", facts.key, "T"), ("V", facts.value, "T"))
        trails = {name: trail for name, value, own in given if (trail := self._trail(name, value, own)) is not None}
        roles = self._roles(trails)
        self.names = names(roles, self.letters.get("H", ""), self.letters.get("V", ""))
        query, keys, value = (self._operand(trails.get(name)) for name in "QKV")
        if value is not None:
            # a factor on V would have to move behind the block: V is what it is without it
            value = Operand(tuple(view for view in value.views if view.scale == 1.0), value.traits)
        operator = f"{self.node.domain or 'ai.onnx'}.{self.node.op_type}"
        said = (f"{operator} computes the whole block in one node.", *facts.inside)
        return Block(
            label=label,
            anchor=key,
            anchor_output=name_of(self.node.outputs[0]),
            region=(RegionNode(key, self.node.op_type, "fused"),),
            query=query,
            key=keys,
            value=value,
            output=self._output(),
            batch=self._name(roles.batch),
            heads=self._name(roles.heads),
            kv_heads=self._name(roles.kv_heads),
            rows=self._name(roles.rows),
            keys=self._name(roles.keys),
            sizes=tuple(sorted((new, axes.sizes[old]) for old, new in self.names.items() if old)),
            num_heads=_number(self.sizes.get("N")),
            kv_num_heads=_number(axes.size(roles.kv_heads)) if {"N", "G"} <= self.letters.keys() else None,
            head_size=_number(self.sizes.get("H")),
            v_head_size=_number(self.sizes.get("V")),
            scale=self._scale(query, keys),
            mask=self._mask(),
            softcap=facts.softcap,
            nan_guard=facts.nan_guard,
            dtype=facts.dtype,
            softmax_dtype=facts.softmax_dtype,
            taken_for=axes.taken_for,
            evidence=(*self._before(trails), *(Step(text, (key,)) for text in said)),
            fused_as=operator,
        )

    def _layout(self, value: ir.Value) -> Layout | None:
        """The layout of a value that the operator reads or gives, in letters of `axes`; None if it is not known."""
        declared = next((layout for known, layout in self.facts.layouts if known is value), None)
        if declared is None or not set("".join(declared)) <= self.letters.keys():
            return None
        return tuple("".join(self.letters[letter] for letter in axis) for axis in declared)

    def _trail(self, name: str, value: ir.Value | None, own: str) -> Trail | None:
        layout = None if value is None else self._layout(value)
        if value is None or layout is None:
            return None
        shared = self.letters.get("B", "") + self.letters.get("N", "")
        return peel_operand(self.notes, self.axes, name, value, layout, shared, self.letters[own])

    def _before(self, trails: dict[str, Trail]) -> list[Step]:
        """What happens to the operands on their way to the operator, in the direction of the data."""
        return [
            Step(hoist.words or f"{name} changes its layout.", (self.model.key(hoist.node),))
            for name, trail in trails.items()
            for hoist in reversed(trail.hoists)
        ]

    def _roles(self, trails: dict[str, Trail]) -> Roles:
        batch, heads, groups, rows, keys = (self.axes.now(self.letters.get(letter, "")) for letter in "BNGST")
        upstream = [trails[name].views[-1] for name in "KV" if name in trails]
        if upstream:
            groups = self.axes.now("".join(view.letters for view in upstream))
        return Roles(batch, heads, "".join(letter for letter in heads if letter in groups), rows, keys)

    def _operand(self, trail: Trail | None) -> Operand | None:
        if trail is None:
            return None
        dtype = trail.views[0].dtype
        views = (View(v.value, self._named(self.axes.current(v.layout)), v.scale, v.dtype) for v in trail.views)
        return Operand(tuple(view for view in views if view.dtype == dtype), traits(self.model, trail.values[-1]))

    def _output(self) -> View | None:
        value = self.node.outputs[0]
        layout = self._layout(value)
        return None if layout is None else View(name_of(value), self._named(layout), 1.0, self.facts.dtype)

    def _name(self, letters: str) -> str:
        return "".join(self.names[letter] for letter in self.axes.now(letters))

    def _named(self, layout: Layout) -> Layout:
        return tuple(self._name(axis) for axis in layout)

    def _scale(self, query: Operand | None, key: Operand | None) -> float | None:
        scale, size = self.facts.scale, _number(self.sizes.get("H"))
        if scale is None:
            scale = 1 / math.sqrt(size) if size else None
        for operand in (query, key):
            scale = None if scale is None else scale * (1.0 if operand is None else operand.source.scale)
        return scale

    def _mask(self) -> Mask:
        """The mask inputs as terms, and a word for all that hides keys."""
        facts = self.facts
        terms: list[MaskTerm] = []
        for mask in facts.masks:
            shape = self.model.shape(mask.value) or ()
            if len(shape) > len(mask.layout):
                continue  # no mask that the operator would take
            layout = tuple(self._name(self.letters[axis]) if axis in self.letters else axis for axis in mask.layout)
            dtype = dtype_name(self.model.dtype(mask.value))
            terms.append(MaskTerm(mask.kind, name_of(mask.value), shape, layout, dtype, fill=mask.fill))
        # of masks in integers their shape has told already what they are
        tried = summarize(self.model, [term for term in terms if term.kind == "additive" or term.dtype == "bool"])
        kind: MaskKind = tried.kind
        if kind != "additive":
            causal, padding = facts.causal or "causal" in kind, facts.padding or "padding" in kind
            if facts.hides or kind == "boolean":
                kind = "boolean"
            elif causal or padding:
                kind = "causal+padding" if causal and padding else "causal" if causal else "padding"
        return Mask(kind, tuple(terms))


def _sizes(model: Model, facts: Facts, name: str) -> dict[str, Dim]:
    """Sizes of all letters that the operator or the shapes of what it reads and gives tell."""
    sizes = dict(facts.sizes)
    if facts.num_heads is not None:
        sizes["N"] = facts.num_heads
        sizes["G"] = facts.num_heads if facts.kv_num_heads is None else facts.kv_num_heads
    seen = [zip(layout, model.shape(value) or (), strict=True) for value, layout in facts.layouts]
    axes = [(letters, dim) for pairs in seen for letters, dim in pairs if letters]
    for letters, dim in axes:
        if len(letters) == 1 and (letters not in sizes or not is_known(sizes[letters])):
            sizes[letters] = dim
    for letters, dim in axes:
        missing = [letter for letter in letters if letter not in sizes]
        if len(missing) == 1:
            rest = divide(dim, multiply(*(sizes[letter] for letter in letters if letter in sizes)))
            sizes |= {missing[0]: rest} if rest is not None else {}
    if "H" in sizes:
        sizes.setdefault("V", sizes["H"])
    if facts.packed and "S" in sizes:
        sizes.setdefault("L", sizes["S"])
    if not facts.past and "L" in sizes:
        sizes.setdefault("T", sizes["L"])
    elif "P" in sizes and "L" in sizes:
        sizes.setdefault("T", add(sizes["P"], sizes["L"]))
    sizes.setdefault("T", unknown(f"{name}.keys"))
    return sizes


def _letters(axes: Axes, sizes: dict[str, Dim], past: bool) -> dict[str, str]:
    """For each letter of the operator whose size is known, letters of `axes`: heads are groups of repeats if fewer
    heads of key and value serve them."""
    letters = {letter: axes.new(sizes[letter]) for letter in "BSTHV" if letter in sizes}
    if not past:
        letters["L"] = letters["T"]
    heads, groups = sizes.get("N"), sizes.get("G")
    if heads is None:
        return letters
    if groups is None:
        return letters | {"N": axes.new(heads)}
    repeats = divide(heads, groups)
    if groups == 1 != heads:
        return letters | {"N": axes.new(heads), "G": ""}
    if repeats in (None, 1):
        letters["N"] = letters["G"] = axes.new(heads)
    else:
        letters["G"] = axes.new(groups)
        letters["N"] = letters["G"] + axes.new(repeats)
    return letters


def _number(dim: Dim | None) -> int | None:
    return dim if isinstance(dim, int) else None
