"""From the product QKᵀ to Softmax: scale, casts, masks, soft cap and guards, in whatever order keeps the meaning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from explorer.attention.block import Factor, Layout, MaskTerm
from explorer.attention.layouts import Axes, move
from explorer.attention.mask import additive_term, boolean_term, is_zero
from explorer.attention.mask_probe import VANISHING
from explorer.attention.paths import Hop, Way
from explorer.attention.walk import Notes, cast_target, factor_of, is_op, leads_to, name_of, passes_through
from explorer.model import Model, dtype_name


@dataclass
class Logits:
    """What the logits are so far: cap·tanh(scale/cap·QKᵀ) + masks, or scale·QKᵀ + masks without a cap."""

    layout: Layout
    """Axes of the value that holds them."""
    scale: float = 1.0
    softcap: float | None = None
    capped: bool = False
    """True behind a Tanh: `scale` is then what its argument was multiplied by, `softcap` what came behind it."""
    terms: list[tuple[MaskTerm, Hop | None]] = field(default_factory=list)
    """Masks, each with the node that put it on the logits (None for the addend of a Gemm)."""

    factor: Factor | None = None
    shifts: list[str] = field(default_factory=list)
    """Axes along which something constant was subtracted, which softmax only overlooks if they are the keys."""

    def add(self, term: MaskTerm, hop: Hop | None = None) -> None:
        """Put a mask on the logits."""
        self.terms.append((term, hop))

    def multiply(self, factor: float) -> None:
        """Multiply all of it."""
        if self.capped:
            self.softcap = factor * (1.0 if self.softcap is None else self.softcap)
        else:
            self.scale *= factor
        self.terms = [
            (replace(term, fill=term.fill * factor, coefficient=term.coefficient * factor), hop)
            for term, hop in self.terms
        ]


def read_logits(notes: Notes, axes: Axes, way: Way, logits: Logits) -> bool:
    """Follow the hops of `way` and collect in `logits` what they do; False (and an obstacle) where that is unknown."""
    for hop in way.hops:
        if not any(reader(notes, axes, way, hop, logits) for reader in _READERS):
            notes.obstacle(*_why_not(notes, way, hop))
            return False
    if logits.capped:
        # cap·tanh(inner·QKᵀ) is a soft cap of scale·QKᵀ with scale = cap·inner
        logits.softcap = 1.0 if logits.softcap is None else logits.softcap
        logits.scale *= logits.softcap
    return True


_Reader = Callable[[Notes, Axes, Way, Hop, Logits], bool]


def _guard(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    node = hop.node
    helpers: tuple[ir.Node, ...] | None = None
    if passes_through(notes.model, node):
        helpers = ()
    elif is_op(node, "Where"):
        helpers = nan_guard(node, hop)
    elif is_op(node, "Sub"):
        helpers = _row_maximum(notes, hop)
        if helpers is not None:
            logits.multiply(1.0 if hop.index == 0 else -1.0)
            if any(dim != 1 for dim in notes.model.shape(helpers[-1].outputs[0]) or ()):  # not the largest of all
                logits.shifts.append(axes.current(logits.layout)[-1])
    elif is_op(node, "Clip", "Min", "Max"):
        helpers = () if _wide(notes, node, hop) else None
    elif is_op(node, "Expand"):
        before, after = notes.model.shape(hop.value), notes.model.shape(node.outputs[0])
        helpers = () if before is not None and before == after else None
    if helpers is None:
        return False
    for part in (*helpers, node):
        notes.take(part, "guard")
    if not passes_through(notes.model, node):
        notes.step(f"{node.op_type} guards the logits and leaves those that a softmax can tell apart.", *helpers, node)
    return True


def nan_guard(node: ir.Node, hop: Hop) -> tuple[ir.Node, ...] | None:
    """The IsNaN of `Where(IsNaN(x), constant, x)`, x being what comes through `hop`; None if it is something else."""
    condition = node.inputs[0]
    test = None if condition is None else condition.producer()
    if hop.index == 2 and is_op(test, "IsNaN") and test is not None and test.inputs[0] is hop.value:
        return (test,)
    return None


def _row_maximum(notes: Notes, hop: Hop) -> tuple[ir.Node, ...] | None:
    """The nodes behind the maximum in `x - max(x)`, the same for all keys, which no softmax notices; None if not so."""
    value, nodes = hop.node.inputs[1 - hop.index], list[ir.Node]()
    while value is not None and is_op(source := value.producer(), "ReduceMax", "Unsqueeze", "Reshape", "Expand"):
        assert source is not None
        shape = notes.model.shape(value)
        unexpanded = source.op_type != "Expand" and all(is_op(node, "Expand") for node in nodes)
        if unexpanded and (shape is None or (shape and shape[-1] != 1)):
            return None  # what is subtracted differs along the last axis
        nodes.append(source)
        value = source.inputs[0]
        if source.op_type == "ReduceMax":
            return tuple(nodes) if value is hop.value else None
    return None


def _wide(notes: Notes, node: ir.Node, hop: Hop) -> bool:
    """True if the bounds of a Clip, Min or Max touch no logit that is not masked."""
    bounds = [value for index, value in enumerate(node.inputs) if index != hop.index and value is not None]
    numbers = [notes.model.scalar(value) for value in bounds]
    numbers += [node.attributes[name].value for name in ("min", "max") if name in node.attributes]
    return all(number is not None and abs(number) >= -VANISHING for number in numbers)


def _cast(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    if not is_op(hop.node, "Cast") or not cast_target(hop.node).is_floating_point():
        return False
    notes.take(hop.node, "cast")
    notes.step(f"The logits are cast to {dtype_name(cast_target(hop.node))}.", hop.node)
    return True


def _scale(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    factor = factor_of(notes.model, hop.node, hop.value)
    if factor is None:
        return _tensor_factor(notes, axes, way, hop, logits)
    notes.take(hop.node, "scale")
    logits.multiply(factor)
    notes.step(f"The logits are multiplied by {factor:g}.", hop.node)
    return True


def _tensor_factor(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    """A factor per head or row, before any mask; that it is the same for all keys is checked once these are known."""
    if not is_op(hop.node, "Mul") or logits.factor or logits.terms or logits.capped:
        return False
    other = hop.node.inputs[1 - hop.index]
    shape = None if other is None else notes.model.shape(other)
    layout = axes.current(logits.layout)
    if other is None or shape is None or len(shape) > len(layout) or leads_to(other, way.product):
        return False
    notes.take(hop.node, "scale")
    logits.factor = Factor(name_of(other), shape, layout, dtype_name(notes.model.dtype(other)))
    notes.step(f"The logits are multiplied by {name_of(other)!r}, which may as well multiply Q.", hop.node)
    return True


def _softcap(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    if not is_op(hop.node, "Tanh") or logits.capped or logits.terms:
        return False
    notes.take(hop.node, "softcap")
    logits.capped = True
    notes.step("Tanh caps the logits softly.", hop.node)
    return True


def _mask(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    node, model = hop.node, notes.model
    if not is_op(node, "Add", "Sub", "Where", "Sum") or len(node.inputs) > 3:
        return False
    others = [value for index, value in enumerate(node.inputs) if index != hop.index and value is not None]
    if any(leads_to(value, way.product) for value in others):
        return False
    layout = axes.current(logits.layout)
    if is_op(node, "Where"):
        term = _term(model, hop, layout)
    elif len(others) == 1:
        if is_zero(model, others[0]):
            notes.take(node, "guard")
            notes.step(f"{name_of(others[0])!r} is added to the logits: it is zero everywhere.", node)
            return True
        if is_op(node, "Sub") and hop.index == 1:
            logits.multiply(-1.0)
        term = _term(model, hop, layout)
    else:
        term = None
    if term is None or len(term.shape) > len(layout):
        return False
    notes.take(node, "mask")
    notes.step(_mask_words(term), node)
    _take_no_larger(notes, axes, node, layout)
    logits.add(term, hop)
    return True


def _take_no_larger(notes: Notes, axes: Axes, node: ir.Node, layout: Layout) -> None:
    """A mask hides logits, it does not multiply them: where it might be the larger one, take it that it is not.

    The fused operator would refuse such a mask when it runs, so the assumption cannot go wrong unnoticed.
    """
    for group, dim in zip(layout, notes.model.shape(node.outputs[0]) or (), strict=False):
        if dim != (size := axes.size(group)):
            axes.take_for(dim, size)


def _term(model: Model, hop: Hop, layout: Layout) -> MaskTerm | None:
    """The mask that the node of `hop` puts on logits of axes `layout`."""
    node = hop.node
    if is_op(node, "Where"):
        return boolean_term(model, node, hop.value, 1.0, layout)
    other = node.inputs[1 - hop.index]
    assert other is not None
    return additive_term(model, other, -1.0 if is_op(node, "Sub") and hop.index == 0 else 1.0, layout, hop.value)


def with_causality(model: Model, term: MaskTerm, hop: Hop | None) -> MaskTerm:
    """`term`, whose layout names queries and keys by now, called causal if it provably is."""
    again = None if hop is None else _term(model, hop, term.layout)
    if again is None or again.kind != "causal":
        return term
    later = abs(term.coefficient)  # what the logits were multiplied by behind the mask
    return replace(term, kind="causal", fill=again.fill * later)


def _mask_words(term: MaskTerm) -> str:
    kind = "a causal mask" if term.kind == "causal" else "a boolean mask"
    if term.dtype == "bool":
        hidden = "false" if term.keep_when else "true"
        return f"Where {term.value!r} is {hidden} the logits are replaced by {term.fill:g}: {kind}."
    shape = "×".join("?" if str(dim).startswith("?") else str(dim) for dim in term.shape)
    what = kind if term.kind == "causal" else f"an additive mask{f' of shape {shape}' if shape else ''}"
    return f"{term.value!r} is added to the logits: {what}."


def _layout(notes: Notes, axes: Axes, way: Way, hop: Hop, logits: Logits) -> bool:
    step = move(notes.model, hop.node) if hop.index == 0 else None
    after = None if step is None else step.forward(axes, axes.current(logits.layout), lambda letter: True)
    if after is None:
        return False
    notes.take(hop.node, "layout")
    logits.layout = after
    return True


_READERS: tuple[_Reader, ...] = (_guard, _cast, _scale, _softcap, _mask, _layout)


def _why_not(notes: Notes, way: Way, hop: Hop) -> tuple[str, ir.Node, str, str, str]:
    """An obstacle for a node whose effect on the logits no reader knows."""
    node = hop.node
    others = [value for index, value in enumerate(node.inputs) if index != hop.index and value is not None]
    if is_op(node, "Concat"):
        what = "further columns put beside them, as an attention sink is"
        return "attention-sink", node, "logits of queries and keys alone", what, "the operator has no place for them"
    mixer = next((maker for maker in (node, *(value.producer() for value in others)) if _mixes(maker)), None)
    if mixer is not None and (mixer is node or leads_to(mixer.outputs[0], way.product)):
        what = f"a {mixer.op_type} with a weight that mixes the heads"
        return "talking-heads", node, "logits that stay within their head", what, "no attention operator mixes heads"
    if is_op(node, "Add", "Sub", "Where", "Mul", "Div") and any(leads_to(value, way.product) for value in others):
        what = f"a {node.op_type} with something computed from them"
        return (
            "mask-from-logits",
            node,
            "a mask that does not depend on the logits",
            what,
            "as top-k attention does; the operator computes its logits inside and cannot be asked for them",
        )
    if is_op(node, "Mul", "Div"):
        what = "a factor that is no constant number"
        return "scale-unknown", node, "one constant factor", what, "a factor per head or row belongs on Q, before QKᵀ"
    if is_op(node, "Tanh") or is_op(node, "Clip", "Min", "Max"):
        what = f"a {node.op_type} that acts on masked logits or bounds ordinary ones"
        return "logits-operator", node, "a soft cap before any mask, or bounds out of reach", what, ""
    if is_op(node, "Dropout"):
        return "dropout", node, "a Dropout that is off", "one that is told to train", "export the model in eval mode"
    if is_op(node, "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand"):
        what = f"a {node.op_type} that cannot be followed"
        hint = "give the shapes of the model's inputs (--shape)"
        return "logits-layout", node, "axes of the logits that can be told apart", what, hint
    what = f"a {node.op_type} whose effect on them is not known"
    return (
        "logits-operator",
        node,
        "scale, mask, cast or guard between QKᵀ and Softmax",
        what,
        "this is another function than attention unless that node changes nothing",
    )


def _mixes(node: ir.Node | None) -> bool:
    """True for operators that can mix the heads of logits by a weight."""
    return is_op(node, "Conv", "Einsum", "MatMul", "Gemm")


def check_logits(notes: Notes, logits: Logits, at: ir.Node) -> None:
    """Note an obstacle for a scale that is no number, or a mask that does not hide what it replaces in the end."""
    for term, _ in logits.terms:
        if term.kind != "additive" and (
            term.coefficient <= 0 or not (term.fill <= VANISHING or np.isneginf(term.fill))
        ):
            found = (
                "a replaced logit that is later multiplied by a factor" if term.coefficient <= 0 else f"{term.fill:g}"
            )
            notes.obstacle("mask-fill", term.value, "hidden logits replaced by a number that vanishes", found)
    if not math.isfinite(logits.scale):
        notes.obstacle("scale", at, "a finite scale", f"{logits.scale}")
