"""Masks on the logits: what is added, what is replaced, what is provably causal, and the word for all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import onnx_ir as ir

from explorer.attention.block import Layout, Mask, MaskKind, MaskTerm
from explorer.attention.mask_cases import Element, as_cases, plain
from explorer.attention.mask_elements import Elements, is_computed
from explorer.attention.mask_positions import covers
from explorer.attention.mask_predicates import FALSE, Affine, Condition, Sizes, at_least_zero, equivalent
from explorer.attention.mask_probe import VANISHING, nature
from explorer.attention.walk import name_of
from explorer.model import Dim, Model, dtype_name


def additive_term(
    model: Model, value: ir.Value, coefficient: float, layout: Layout, logits: ir.Value | None = None
) -> MaskTerm | None:
    """The term coefficient·value that is added to the logits, whose axes are `layout`; None if its type is unknown.

    Its kind is "causal" if it provably adds 0 where the key is at or before the query and a number that vanishes
    elsewhere: `value` and `coefficient` hold as for an additive term, `fill` is that number (its largest, times the
    coefficient). Only the shape of `logits` shows that nothing is broadcast: without them nothing is called causal.
    """
    dtype = model.dtype(value)
    if dtype is None:
        return None
    shape = model.shape(value) or ()
    fill = None if logits is None else _causal_fill(model, value, coefficient, layout, logits)
    return MaskTerm(
        kind="additive" if fill is None else "causal",
        value=name_of(value),
        shape=shape,
        layout=layout,
        dtype=dtype_name(dtype),
        coefficient=coefficient,
        fill=0.0 if fill is None else fill,
    )


def boolean_term(model: Model, where: ir.Node, logits: ir.Value, coefficient: float, layout: Layout) -> MaskTerm | None:
    """The boolean mask that a Where on logits of axes `layout` is; None if its other branch does not make them vanish.

    Its kind is "causal" if it provably keeps a key exactly if that is at or before the query.
    """
    condition, if_true, if_false = where.inputs
    if condition is None:
        return None
    keep_when = if_true is logits
    fill = _largest(model, if_false if keep_when else if_true)
    if fill is None or coefficient <= 0 or fill * coefficient > VANISHING:
        return None
    return MaskTerm(
        kind="causal" if is_causal(model, condition, logits, layout, keep_when) else "boolean",
        value=name_of(condition),
        shape=model.shape(condition) or (),
        layout=layout,
        dtype="bool",
        fill=fill * coefficient,
        keep_when=keep_when,
    )


def is_zero(model: Model, value: ir.Value) -> bool:
    """True if all elements of `value` are provably 0 (or false)."""
    view = _View.of(model, value)
    return view is not None and [plain(leaf) for leaf, _ in as_cases(view.element).parts] == [0]


def is_causal(model: Model, condition: ir.Value, logits: ir.Value, layout: Layout, keep_when: bool = True) -> bool:
    """True if `condition` is `keep_when` provably exactly where key position ≤ query position, in a square.

    `layout` names the axes of the logits; S and T are queries and keys.
    """
    view = _View.of(model, condition, layout)
    triangle = None if view is None else view.triangle(model.shape(logits))
    if view is None or triangle is None or not isinstance(view.element, Condition):
        return False
    kept = view.element if keep_when else ~view.element
    return equivalent(kept, triangle, view.sizes)


def _causal_fill(model: Model, value: ir.Value, coefficient: float, layout: Layout, logits: ir.Value) -> float | None:
    """What an additive causal mask adds to hidden logits; None if it is not provably one."""
    view = _View.of(model, value, layout)
    triangle = None if view is None else view.triangle(model.shape(logits))
    if view is None or triangle is None:
        return None
    kept, fills = FALSE, []
    for leaf, where in as_cases(view.element).parts:
        added = plain(leaf)
        if added == 0:
            kept = where
        elif added is None or not added * coefficient <= VANISHING:
            return None
        else:
            fills.append(added * coefficient)
    return max(fills) if fills and equivalent(kept, triangle, view.sizes) else None


def is_gate(model: Model, factor: ir.Value, term: MaskTerm) -> bool:
    """True if `factor` is 1 wherever `term`, which is added to the same logits, hides nothing.

    Multiplying by it then changes only logits that the mask hides anyway.
    """
    gate, mask = _View.of(model, factor, term.layout), _View.of(model, model.value(term.value), term.layout)
    if gate is None or mask is None or gate.shape != mask.shape:
        return False
    kept, one = FALSE, FALSE
    for leaf, where in as_cases(mask.element).parts:
        added = plain(leaf)
        if added is None or (added != 0 and not added * term.coefficient <= VANISHING):
            return False
        kept = where if added == 0 else kept
    for leaf, where in as_cases(gate.element).parts:
        one = where if plain(leaf) == 1 else one
    return equivalent(kept & ~one, FALSE, mask.sizes)


def numbers(model: Model, value: ir.Value) -> tuple[float, ...] | None:
    """All numbers that elements of `value` may be, whatever the inputs are; None if they are not known."""
    view = _View.of(model, value)
    found = [] if view is None else [plain(leaf) for leaf, _ in as_cases(view.element).parts]
    known = tuple(number for number in found if number is not None)
    return known if known and len(known) == len(found) else None


def _largest(model: Model, value: ir.Value | None) -> float | None:
    """The largest number in a tensor that depends on no input; None if it may."""
    if value is None:
        return None
    number = model.scalar(value)
    return max(numbers(model, value) or (), default=None) if number is None else number


@dataclass(frozen=True, slots=True)
class _View:
    """The element of a mask at any query and key: `shape` has an entry for each axis of `layout`."""

    element: Element
    sizes: Sizes
    layout: Layout
    shape: tuple[Dim, ...]

    @staticmethod
    def of(model: Model, value: ir.Value, layout: Layout | None = None) -> _View | None:
        """None if `value` is computed from activations, or its rank is unknown or higher than that of the logits."""
        known = _VIEWS.setdefault(model, {})
        key = (name_of(value), layout)
        if key not in known:
            known[key] = _view(model, value, layout)
        return known[key]

    def triangle(self, logits: tuple[Dim, ...] | None) -> Condition | None:
        """Key ≤ query; None unless this mask has one row per query, one column per key and as many of both."""
        if logits is None or len(logits) != len(self.layout) or not {"S", "T"} <= set(self.layout):
            return None
        rows, keys = self.layout.index("S"), self.layout.index("T")
        if self.shape[rows] != self.shape[keys] or logits[rows] != logits[keys]:
            return None
        if self.shape[rows] == 1 or not covers(self.shape[rows], logits[rows]):
            return None
        query, key = Affine.variable(f"S{rows}"), Affine.variable(f"T{keys}")
        return at_least_zero(query - key, self.sizes)


_VIEWS: WeakKeyDictionary[Model, dict[tuple[str, Layout | None], _View | None]] = WeakKeyDictionary()
"""What has been seen: the layers of a model share their masks."""


def _view(model: Model, value: ir.Value, layout: Layout | None) -> _View | None:
    shape = model.shape(value)
    if shape is None or is_computed(value) or (layout is not None and len(shape) > len(layout)):
        return None
    layout = ("",) * len(shape) if layout is None else layout
    missing = len(layout) - len(shape)
    sizes = {
        f"{letters}{axis}": dim
        for axis, (letters, dim) in enumerate(zip(layout[missing:], shape, strict=True), missing)
    }
    index = tuple(Affine() if dim == 1 else Affine.variable(name) for name, dim in sizes.items())
    return _View(Elements(model, sizes).at(value, index), sizes, layout, (*(1,) * missing, *shape))


def summarize(model: Model, terms: Iterable[MaskTerm]) -> Mask:
    """The mask made of these terms, with the word for it."""
    terms = tuple(terms)
    natures = [nature(model, term) for term in terms]
    kind: MaskKind = "none"
    if any(found.bias for found in natures):
        kind = "additive"
    elif any(found.hides for found in natures):
        kind = "boolean"
    else:
        causal, padding = (any(getattr(found, name) for found in natures) for name in ("causal", "padding"))
        kind = "causal+padding" if causal and padding else "causal" if causal else "padding" if padding else "none"
    return Mask(kind, terms)
