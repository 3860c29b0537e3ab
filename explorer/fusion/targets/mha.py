"""com.microsoft.MultiHeadAttention (version 1): query BSD, key and value BNSH, output BSD.

Key and value in BNSH are read in place. On CUDA it reaches cuDNN's flash kernel (sm ≥ 90), Flash Attention (sm ≥ 80, no
bias), the memory-efficient kernel or, last, unfused MATH. `scale` unset or 0 means 1/√head_size, so 0 cannot be said.
Source: ONNX Runtime's contrib operator documentation and `docs/decisions/0003-mha-layout.md`.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.attention.block import BNSH, BSD
from explorer.fusion.bias import build_bias
from explorer.fusion.emit import cheapest_view, merged_size, relayout_cost
from explorer.fusion.targets.target import Site, sizes_of
from explorer.model import Dim, Model, TensorType

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
        if block.kv_num_heads != block.num_heads:
            obstacle("kv-heads", f"{block.num_heads} key heads, as the query has", f"{block.kv_num_heads}")
        if block.v_head_size != block.head_size:
            obstacle("v-head-size", f"V heads of {block.head_size}, as Q and K have", f"{block.v_head_size}")
        if block.softcap is not None:
            obstacle("softcap", "no soft cap on the logits", f"a cap of {block.softcap:g}")
        if model.opset < _MIN_OPSET:
            obstacle("opset", f"opset {_MIN_OPSET} or later", f"opset {model.opset}", "export with a newer opset")
        sizes = sizes_of(block, model)
        logits = (sizes["B"], sizes["N"], sizes["S"], _length(model, block))
        for term in block.mask.terms:
            if term.kind != "causal" and not _expressible(term.shape, logits):
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
        sizes = sizes_of(block, site.model)
        dtype = site.model.dtype(site.model.value(block.query.views[0].value))
        assert dtype is not None
        kv_sizes = {**sizes, "S": _length(site.model, block)}
        query_view = cheapest_view(block.query.views, BSD)
        key_view = cheapest_view(block.key.views, BNSH)
        value_view = cheapest_view(block.value.views, BNSH)
        query = emit.relayout(site.value(query_view.value), query_view.layout, BSD, sizes, dtype)
        key = emit.relayout(site.value(key_view.value), key_view.layout, BNSH, kv_sizes, dtype)
        value = emit.relayout(site.value(value_view.value), value_view.layout, BNSH, kv_sizes, dtype)
        inputs: list[ir.Value | None] = [query, key, value]
        causal = _is_causal_attribute(block)
        terms = () if causal else block.mask.terms
        shape = (sizes["B"], sizes["S"], merged_size("NH", sizes))
        if terms:
            inputs += [None, None, build_bias(emit, terms, site.value, query, shape, dtype, site.biases)]
        attributes = {
            "num_heads": block.num_heads,
            "scale": _scale(block, query_view.scale, key_view.scale),
            **({"unidirectional": 1} if causal else {}),
        }
        domain, op_type = self.operator.rsplit(".", 1)
        fused = emit.node(op_type, inputs, TensorType(dtype, shape), attributes, domain=domain)
        return emit.relayout(fused, BSD, block.output.layout, sizes, dtype)

    def words(self, model: Model, block: Block) -> str:
        """What this choice means, in a sentence."""
        assert block.query is not None
        assert block.key is not None
        assert block.value is not None
        assert block.output is not None
        layout_nodes = (
            relayout_cost(cheapest_view(block.query.views, BSD).layout, BSD)
            + relayout_cost(cheapest_view(block.key.views, BNSH).layout, BNSH)
            + relayout_cost(cheapest_view(block.value.views, BNSH).layout, BNSH)
            + relayout_cost(BSD, block.output.layout)
        )
        sentence = f"MultiHeadAttention with {layout_nodes} layout node{'s' * (layout_nodes != 1)} added"
        if _is_causal_attribute(block):
            return f"{sentence}; the causal mask becomes its attribute unidirectional"
        if block.mask.terms:
            return f"{sentence}; the mask becomes an attention bias, which rules out the Flash kernel on CUDA"
        return f"{sentence}; no mask, so every CUDA attention kernel is within reach"


def _scale(block: Block, query_scale: float, key_scale: float) -> float:
    """The factor that is left for the operator when the views it reads already hold a part of the block's scale."""
    assert block.scale is not None
    assert block.query is not None
    assert block.key is not None
    return block.scale / (block.query.source.scale * block.key.source.scale) * (query_scale * key_scale)


def _is_causal_attribute(block: Block) -> bool:
    """True if the mask is the causal one and nothing else, so that the attribute says it all."""
    return len(block.mask.terms) == 1 and block.mask.terms[0].kind == "causal"


def _expressible(shape: tuple[Dim, ...], logits: tuple[Dim, ...]) -> bool:
    """True for a mask that names every key and is no larger than the logits: nothing else may be broadcast."""
    if not 2 <= len(shape) <= 4 or (shape[-1] in (1, None) and shape[-1] != logits[-1]):
        return False
    pairs = zip(reversed(shape), reversed(logits), strict=False)
    return all(not (isinstance(size, int) and isinstance(whole, int)) or size in (1, whole) for size, whole in pairs)


def _length(model: Model, block: Block) -> Dim:
    """How many keys there are: the S of the value."""
    assert block.value is not None
    view = block.value.views[0]
    shape = model.shape(model.value(view.value))
    return None if shape is None else shape[view.layout.index("S")]
