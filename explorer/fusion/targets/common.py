"""What the targets have in common: what none of them can express, how operands are read, what the words say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.fusion.bias import expressible, hides_later_keys, other_terms, read_off_query, tells_keys
from explorer.fusion.emit import Ruler
from explorer.fusion.factor import apply_factor, beside
from explorer.fusion.forms import Fit, Form, LayoutName, cheapest, with_split_heads
from explorer.fusion.relayout import Price, feasible
from explorer.fusion.targets.target import Cost, Kernel, Site
from explorer.model import Model, TensorType

MIN_OPSET = 9
"""Since then Where, IsNaN and Expand are there."""
_BFLOAT16_OPSET = 16  # since then Where takes it

_DTYPES = ("float32", "float16", "bfloat16")
_LARGEST_HEAD = 256  # of the flash kernels


def name(operator: str, layout: LayoutName | None) -> str:
    """What plans call a target."""
    return operator if layout is None else f"{operator}/{layout}"


def missing_parts(block: Block) -> tuple[Obstacle, ...]:
    """An obstacle if something is not known without which there is no more to be said."""
    parts = (block.query, block.key, block.value, block.output, block.num_heads, block.kv_num_heads)
    if None not in (*parts, block.head_size, block.v_head_size):
        return ()
    return (Obstacle("incomplete", block.anchor, "query, key and value with known heads", "a block without them"),)


def flaws(model: Model, block: Block, forms: Sequence[Form], opset: int) -> list[Obstacle]:
    """What none of the operators can express, nor one that takes these forms, in a graph of this opset."""
    found: list[Obstacle] = []

    def obstacle(code: str, expected: str, what: str, hint: str = "") -> None:
        found.append(Obstacle(code, block.anchor, expected, what, hint))

    if block.dtype not in _DTYPES:
        obstacle("dtype", f"Q, K and V in {', '.join(_DTYPES)}", block.dtype or "an unknown type")
    if block.scale is None or not math.isfinite(block.scale) or block.scale == 0:
        obstacle("scale", "a scale other than 0 (which the operators read as their default)", f"{block.scale}")
    needed = _BFLOAT16_OPSET if block.dtype == "bfloat16" and block.mask.terms else MIN_OPSET
    if opset < needed:
        obstacle("opset", f"opset {needed} or later", f"opset {opset}", "export with a newer opset")
    for term in other_terms(block):
        if not expressible(block, term):
            shape = "unknown" if not term.shape else str(list(term.shape))
            obstacle("mask-shape", "a mask of shape [1 or batch, 1 or heads, 1 or queries, keys]", shape)
    if other_terms(block) and not tells_keys(block):
        obstacle("mask-shape", "a mask with an entry for each key", "one entry for all of them")
    fit = cheapest(model, block, forms)
    if not isinstance(fit, Fit):
        return [*found, *fit]
    if block.factor is not None:
        own = block.term_layout(block.factor)
        wanted = beside(own, with_split_heads(fit.form, block))
        if not feasible(own, wanted, dict(block.sizes), read_off_query(block)):
            obstacle("layout", "a factor on the logits in a layout of known sizes", str(own))
    if fit.repeats:
        obstacle(
            "repeat",
            "as many heads of keys and values as of queries, or an operator that reads fewer",
            f"{block.kv_num_heads} heads for {block.num_heads}, which this graph does not repeat",
            "choose this target by name to have them repeated",
        )
    return found


def fitted(model: Model, block: Block, forms: Sequence[Form]) -> Fit:
    """How a block gets into the cheapest of the forms, which is known to be possible."""
    fit = cheapest(model, block, forms)
    assert isinstance(fit, Fit)
    return fit


def grouped(block: Block) -> Block:
    """`block` with the heads in the order in which operators count them: all that read one key head side by side."""
    repeats = "".join(letter for letter in block.heads if letter not in block.kv_heads)
    return replace(block, heads=block.kv_heads + repeats)


def _scale(block: Block, fit: Fit) -> float:
    """The scale for the values that are read: the factors upstream of them are in them already."""
    assert block.scale is not None
    assert block.query is not None
    assert block.key is not None
    read = fit.query.scale / block.query.source.scale
    return block.scale * read * fit.key.scale / block.key.source.scale


def cost(model: Model, block: Block, forms: Sequence[Form], kernels: tuple[Kernel, ...]) -> Cost:
    """What the cheapest of the forms costs; a Neg is one more node that moves data."""
    fit = fitted(model, block, forms)
    price = fit.price + Price(1, 1) if _scale(block, fit) < 0 else fit.price
    return Cost(price.nodes, price.moves, kernels, fit.form.name)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Query, key and value as the operator reads them, and the scale that goes with them."""

    values: tuple[ir.Value, ir.Value, ir.Value]
    scale: float
    ruler: Ruler
    """The query, for sizes that are known at run time only."""
    dtype: ir.DataType


def read(site: Site, block: Block, fit: Fit) -> Inputs:
    """Write the nodes that bring the operands into their form.

    A negative scale turns the sign of the query and becomes positive: Attention takes no other, and flash kernels scale
    the largest logit of a row, which is the smallest then.
    """
    emit, sizes, scale = site.emit, dict(block.sizes), _scale(block, fit)
    dtype = site.model.dtype(site.model.value(fit.query.value))
    assert dtype is not None
    written: list[ir.Value] = []
    for view, wanted in fit.views:
        value, layout = site.value(view.value), view.layout
        if not written and block.factor is not None:
            split = with_split_heads(fit.form, block)
            value = emit.relayout(value, layout, split, sizes, dtype)
            value, layout = apply_factor(emit, block, block.factor, value, split, site.value, dtype), split
        ruler = Ruler(written[0], fit.form.query) if written else None
        value = emit.relayout(value, layout, wanted, sizes, dtype, ruler)
        if not written and scale < 0:
            value = emit.node("Neg", [value], TensorType(dtype, tuple(block.size(group) for group in wanted)))
        written.append(value)
    query, key, value = written
    return Inputs((query, key, value), abs(scale), Ruler(query, fit.form.query), dtype)


def write_output(site: Site, block: Block, fit: Fit, fused: ir.Value, dtype: ir.DataType, *, guard: bool) -> ir.Value:
    """Bring what the operator gives into the block's own layout; `guard` turns NaN into 0 before that."""
    assert block.output is not None
    if guard:
        type_ = output_type(block, fit, dtype)
        zero = site.emit.constant(np.zeros((), dtype.numpy()), "zero")
        empty = site.emit.node("IsNaN", [fused], TensorType(ir.DataType.BOOL, type_.shape))
        fused = site.emit.node("Where", [empty, zero, fused], type_)
    return site.emit.relayout(fused, fit.form.output, block.output.layout, dict(block.sizes), dtype)


def output_type(block: Block, fit: Fit, dtype: ir.DataType) -> TensorType:
    """The type of what the operator gives."""
    return TensorType(dtype, tuple(block.size(group) for group in fit.form.output))


def is_wide(block: Block) -> bool:
    """True for float32, false for 16 bits."""
    return block.dtype == "float32"


def suits_flash(block: Block) -> bool:
    """True if element type and head sizes are those of the flash kernels."""
    sizes = (block.head_size or 0, block.v_head_size or 0)
    return not is_wide(block) and all(size % 8 == 0 and size <= _LARGEST_HEAD for size in sizes)


def suits_memory_efficient(block: Block) -> bool:
    """True if the memory-efficient kernel can take the head size and, if there is one, the mask."""
    keys, step = block.size(block.keys), 4 if is_wide(block) else 8
    aligned = not other_terms(block) or not isinstance(keys, int) or keys % step == 0
    return (block.head_size or 0) % 8 == 0 and (block.v_head_size or 0) % 8 == 0 and aligned


def describe(block: Block, fit: Fit, operator: str, causal: str, mask: str) -> str:
    """What an operator means for a block, in a sentence: `causal` is its attribute, `mask` what the mask becomes."""
    moves, nodes = fit.price.moves, fit.price.nodes
    form = "all in BSD" if fit.form.packed else "all in BNSH"
    if fit.form.packed and len(fit.form.key) == 4:
        form = "Q in BSD, K and V in BNSH"
    words = [f"{operator}, {form}, with {nodes} layout node{'s' * (nodes != 1)}"]
    if moves:
        words[0] += f", {moves} of which move{'s' * (moves == 1)} data"
    if fit.repeats:
        words.append("keys and values are repeated for the query heads that share them")
    if hides_later_keys(block):
        words.append(f"the causal mask becomes its attribute {causal}")
    if other_terms(block):
        words.append(f"the mask becomes {mask}")
    return "; ".join(words)
