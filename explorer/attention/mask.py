"""Masks on the logits: what is added, what is replaced, and when a boolean one is provably causal."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from explorer.attention.block import Mask, MaskKind, MaskTerm
from explorer.attention.walk import is_op, name_of
from explorer.model import Model, dtype_name

# A fill at or below this makes a position vanish from softmax in every float type (fp16 ends at −65504).
_VANISHING = -1e4
# Masks come from a handful of nodes; the walk up to a model's input stops well before the whole graph.
_MAX_MASK_NODES = 64
_TRIANGLE_ELEMENTS = 1 << 24


def additive_term(model: Model, value: ir.Value, coefficient: float) -> MaskTerm | None:
    """The term coefficient·value that is added to the logits, or None if its element type is unknown."""
    dtype = model.dtype(value)
    if dtype is None:
        return None
    shape = model.shape(value)
    return MaskTerm("additive", name_of(value), () if shape is None else shape, dtype_name(dtype), coefficient)


def boolean_term(model: Model, where: ir.Node, logits: ir.Value, coefficient: float) -> MaskTerm | None:
    """The boolean mask that a Where is, if one branch is the logits and the other makes them vanish; else None."""
    condition, if_true, if_false = where.inputs
    if condition is None:
        return None
    keep_when = if_true is logits
    fill = model.scalar(if_false if keep_when else if_true)
    if fill is None or coefficient <= 0 or fill * coefficient > _VANISHING:
        return None
    causal = keep_when and is_causal(model, condition)
    shape = model.shape(condition)
    return MaskTerm(
        kind="causal" if causal else "boolean",
        value=name_of(condition),
        shape=() if shape is None else shape,
        dtype="bool",
        fill=fill * coefficient,
        keep_when=keep_when,
    )


def is_causal(model: Model, condition: ir.Value) -> bool:
    """True if `condition` is provably the lower triangle of a square of equal query and key lengths.

    Known: a constant triangle, or the upper left corner that Slices to one and the same length cut out of one.
    """
    cuts: list[tuple[int, ir.Value]] = []
    value = condition
    while is_op(node := value.producer(), "Slice", "Cast"):
        assert node is not None
        if node.op_type == "Slice":
            cut = _corner(model, node)
            if cut is None:
                return False
            cuts.append(cut)
        source = node.inputs[0]
        if source is None:
            return False
        value = source
    triangle = model.constant(value, _TRIANGLE_ELEMENTS)
    if triangle is None or triangle.ndim < 2 or any(size != 1 for size in triangle.shape[:-2]):
        return False
    # A single entry would be broadcast: it hides everything or nothing
    if triangle.shape[-1] != triangle.shape[-2] or triangle.shape[-1] == 1:
        return False
    if not np.array_equal(triangle.reshape(triangle.shape[-2:]).astype(bool), np.tri(*triangle.shape[-2:]) > 0):
        return False
    ends: dict[int, ir.Value | int] = {-2: triangle.shape[-2], -1: triangle.shape[-1]}
    cut_axes = [axis - triangle.ndim if axis >= 0 else axis for axis, _ in cuts]
    if any(axis not in ends for axis in cut_axes) or len(set(cut_axes)) != len(cut_axes):
        return False
    ends.update(zip(cut_axes, (end for _, end in cuts), strict=True))
    return same_number(model, ends[-2], ends[-1]) and _number(model, ends[-1]) != 1


def _corner(model: Model, node: ir.Node) -> tuple[int, ir.Value] | None:
    """(axis, end) of a Slice that keeps the first `end` entries of one axis, or None."""
    if len(node.inputs) < 4 or any(value is None for value in node.inputs[:4]):
        return None
    starts, axes = model.constant(node.inputs[1]), model.constant(node.inputs[3])
    steps = model.constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else np.ones(1)
    if starts is None or axes is None or steps is None or starts.size != 1:
        return None
    if int(starts.flat[0]) != 0 or int(steps.flat[0]) != 1:
        return None
    end = node.inputs[2]
    return None if end is None else (int(axes.flat[0]), end)


def same_number(model: Model, a: ir.Value | int, b: ir.Value | int) -> bool:
    """True if two one-element integers are provably equal: one value, one constant, or one dimension of one symbol."""
    if a is b:
        return True
    left, right = _number(model, a), _number(model, b)
    return left is not None and left == right


def _number(model: Model, value: ir.Value | int) -> int | str | None:
    if isinstance(value, int):
        return value
    array = model.partial(value)
    if array is None or array.size != 1:
        return None
    item = array.reshape(-1)[0]
    return item if isinstance(item, str) else None if item is None else int(item)


def summarize(model: Model, terms: Iterable[MaskTerm]) -> Mask:
    """The mask made of these terms, with the word for it."""
    terms = tuple(terms)
    kinds = {_kind(model, term) for term in terms}
    kind: MaskKind = "none"
    if kinds == {"causal", "padding"}:
        kind = "causal+padding"
    elif len(kinds) == 1:
        (kind,) = kinds
    elif kinds:
        kind = "additive"
    return Mask(kind, terms)


def _kind(model: Model, term: MaskTerm) -> MaskKind:
    if term.kind == "causal":
        return "causal"
    # A mask that is the same for all heads and queries, made from an integer or boolean input, hides padding
    if len(term.shape) == 4 and term.shape[1:3] == (1, 1) and _from_token_mask(model, model.value(term.value)):
        return "padding"
    return "boolean" if term.kind == "boolean" else "additive"


def _from_token_mask(model: Model, value: ir.Value) -> bool:
    """True if `value` is computed from one integer or boolean graph input and constants alone."""
    pending, seen, inputs = [value], {id(value)}, set()
    while pending:
        item = pending.pop()
        if item.is_graph_input():
            inputs.add(item)
            continue
        node = item.producer()
        if node is None or is_op(node, "Shape"):
            continue
        for source in node.inputs:
            if source is not None and id(source) not in seen:
                seen.add(id(source))
                pending.append(source)
        if len(seen) > _MAX_MASK_NODES:
            return False
    return len(inputs) == 1 and all(
        dtype is not None and (dtype.is_integer() or dtype == ir.DataType.BOOL)
        for dtype in (model.dtype(item) for item in inputs)
    )
