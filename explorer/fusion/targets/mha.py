"""com.microsoft.MultiHeadAttention (version 1): query BSD, key and value BNSH (BSD if their head sizes differ).

The output is BSD. Key and value in BNSH are read in place. On CUDA it reaches cuDNN's flash kernel (sm ≥ 90), Flash
Attention (sm ≥ 80, no bias), the memory-efficient kernel or, last, unfused MATH. `scale` unset or 0 means
1/√head_size, so 0 cannot be said.
Source: ONNX Runtime's contrib operator documentation and `docs/decisions/0003-mha-layout.md`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, Obstacle, Operand, View
from explorer.attention.block import Layout
from explorer.fusion.bias import build_bias, expressible
from explorer.fusion.emit import Ruler, can_relayout, cheapest_view, relayout_cost
from explorer.fusion.factor import apply_factor, split_query
from explorer.fusion.targets.target import Site
from explorer.model import Model, TensorType

_DTYPES = ("float32", "float16", "bfloat16")
_MIN_OPSET = 11  # Clip takes its bounds as inputs since then


class MultiHeadAttention:
    """The target "mha"."""

    name = "mha"
    operator = "com.microsoft.MultiHeadAttention"

    def obstacles(self, model: Model, block: Block) -> tuple[Obstacle, ...]:
        """Why MultiHeadAttention cannot express `block`; empty if it can."""
        found: list[Obstacle] = []

        def obstacle(code: str, expected: str, what: str, hint: str = "") -> None:
            found.append(Obstacle(code, block.anchor, expected, what, hint))

        if block.query is None or block.num_heads is None or block.head_size is None or block.output is None:
            obstacle("incomplete", "query, key and value with known heads", "a block without them")
            return tuple(found)
        if block.dtype not in _DTYPES:
            obstacle("dtype", f"Q, K and V in {', '.join(_DTYPES)}", block.dtype or "an unknown type")
        if block.scale is None or not math.isfinite(block.scale) or block.scale <= 0:
            obstacle("scale", "a scale above 0 (the operator reads 0 as its default)", f"{block.scale}")
        if block.softcap is not None:
            obstacle("softcap", "no soft cap on the logits", f"a cap of {block.softcap:g}")
        if model.opset < _MIN_OPSET:
            obstacle("opset", f"opset {_MIN_OPSET} or later", f"opset {model.opset}", "export with a newer opset")
        sizes, output = dict(block.sizes), block.output.layout
        for name, operand, wanted in _operands(block):
            views = _usable(operand, wanted, block)
            if not views:
                lacking = "batch entries" if set(block.batch) - set(operand.views[0].letters) else "positions or heads"
                obstacle("broadcast", f"{name} with all its {lacking}", f"one entry of {name} for all of them")
            elif not can_relayout(
                _own(cheapest_view(views, wanted).layout, wanted), _own(wanted, views[0].layout), sizes
            ):
                obstacle("layout", f"{name} in a layout of known sizes", str(views[0].layout))
        if not can_relayout(_bsd(block, "V"), output, sizes):
            obstacle("layout", "a result in a layout of known sizes", str(output))
        for term in block.mask.terms:
            if term.kind != "causal" and not expressible(block, term):
                shape = "unknown" if not term.shape else str(list(term.shape))
                obstacle("mask-shape", "a mask of shape [1 or batch, 1 or heads, 1 or queries, keys]", shape)
        return tuple(found)

    def build(self, site: Site) -> ir.Value:
        """Write MultiHeadAttention with the fewest layout nodes; returns the output in the block's own layout."""
        block, emit = site.block, site.emit
        assert block.query is not None
        assert block.key is not None
        assert block.value is not None
        assert block.output is not None
        sizes = dict(block.sizes)
        dtype = site.model.dtype(site.model.value(block.query.views[0].value))
        assert dtype is not None
        inputs: list[ir.Value | None] = []
        scale, ruler = block.scale, None
        assert scale is not None
        for _, operand, wanted in _operands(block):
            view = cheapest_view(_usable(operand, wanted, block), wanted)
            value = site.value(view.value)
            if block.factor is not None and operand is block.query:
                value = apply_factor(emit, block, block.factor, value, view.layout, site.value, dtype)
                value = emit.relayout(value, split_query(block), wanted, sizes, dtype)
            else:
                value = emit.relayout(value, view.layout, wanted, sizes, dtype, ruler)
            ruler = ruler or Ruler(value, wanted)
            inputs.append(value)
            if operand is not block.value:
                # the factors between this view and the one furthest upstream are in the value already
                scale *= view.scale / operand.source.scale
        assert ruler is not None
        causal = _is_causal_attribute(block)
        if block.mask.terms and not causal:
            inputs += [None, None, build_bias(emit, block, site.value, ruler, dtype, site.biases)]
        attributes = {
            "num_heads": block.num_heads,
            "scale": scale,
            **({"unidirectional": 1} if causal else {}),
        }
        domain, op_type = self.operator.rsplit(".", 1)
        layout = _bsd(block, "V")
        type_ = TensorType(dtype, tuple(block.size(group) for group in layout))
        fused = emit.node(op_type, inputs, type_, attributes, domain=domain)
        if block.nan_guard and block.mask.terms and not causal:
            zero = emit.constant(np.zeros((), dtype.numpy()), "zero")
            empty = emit.node("IsNaN", [fused], TensorType(ir.DataType.BOOL, type_.shape))
            fused = emit.node("Where", [empty, zero, fused], type_)
        return emit.relayout(fused, layout, block.output.layout, sizes, dtype)

    def words(self, model: Model, block: Block) -> str:
        """What this choice means, in a sentence."""
        assert block.output is not None
        layout_nodes = relayout_cost(_bsd(block, "V"), block.output.layout)
        for _, operand, wanted in _operands(block):
            layout_nodes += relayout_cost(cheapest_view(_usable(operand, wanted, block), wanted).layout, wanted)
        sentence = f"MultiHeadAttention with {layout_nodes} layout node{'s' * (layout_nodes != 1)} added"
        if _is_causal_attribute(block):
            return f"{sentence}; the causal mask becomes its attribute unidirectional"
        if block.mask.terms:
            return f"{sentence}; the mask becomes an attention bias, which rules out the Flash kernel on CUDA"
        return f"{sentence}; no mask, so every CUDA attention kernel is within reach"


def _is_causal_attribute(block: Block) -> bool:
    """True if the mask is the causal one and nothing else, so that the attribute says it all."""
    return len(block.mask.terms) == 1 and block.mask.terms[0].kind == "causal"


def _bsd(block: Block, head: str) -> Layout:
    return (block.batch, block.rows, block.heads + head)


def _operands(block: Block) -> tuple[tuple[str, Operand, Layout], ...]:
    """Name, operand and the layout that the operator wants, for query, key and value."""
    assert block.query is not None
    assert block.key is not None
    assert block.value is not None
    key: Layout = (block.batch, block.heads, block.keys, "H")
    value: Layout = (block.batch, block.heads, block.keys, "V")
    if block.head_size != block.v_head_size:  # 4-D keys and values must be of one shape, 3-D ones need not
        key, value = ((block.batch, block.keys, block.heads + head) for head in "HV")
    return (("Q", block.query, _bsd(block, "H")), ("K", block.key, key), ("V", block.value, value))


def _usable(operand: Operand, wanted: Layout, block: Block) -> tuple[View, ...]:
    """The views with all axes that the operator wants; where none has, those that lack heads of known number."""
    letters = "".join(wanted)
    if whole := operand.whole(letters):
        return whole
    shared = {letter for letter in block.heads if isinstance(block.size(letter), int)}
    return tuple(view for view in operand.views if set(letters) - shared <= set(view.letters) <= set(letters))


def _own(layout: Layout, other: Layout) -> Layout:
    """`layout` with the letters that `other` has, too."""
    have = "".join(other)
    return tuple("".join(letter for letter in group if letter in have) for group in layout)
