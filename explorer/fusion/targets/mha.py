"""com.microsoft.MultiHeadAttention (version 1): query BSD, key and value both BNSH or both BSD; the result is BSD.

BNSH takes one shape of both: where their head sizes differ, they are BSD. As many heads of keys as of queries. `scale`
unset or 0 means 1/√head_size. The attribute `unidirectional` counts from the last query when there are more keys, so it
is the causal mask of squares only. `key_padding_mask` sends it to unfused MATH on CUDA; an `attention_bias`, exactly
4-D, does not.
Source: ONNX Runtime's contrib operator documentation and `docs/decisions/0009-targets.md`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.fusion.bias import MaskWriter, hides_later_keys, other_terms
from explorer.fusion.forms import Form, LayoutName, packed, unpacked
from explorer.fusion.plan import Provider
from explorer.fusion.targets import common
from explorer.fusion.targets.target import Cost, Kernel, Site
from explorer.model import Model

_LONG = 256
"""From so many queries on the memory-efficient kernel takes float32."""


class MultiHeadAttention:
    """The target "mha", or with a layout of key and value "mha/bsd" and "mha/bnsh"."""

    operator = "com.microsoft.MultiHeadAttention"
    min_opset = common.MIN_OPSET

    def __init__(self, layout: LayoutName | None = None) -> None:
        self.layout = layout
        self.name = common.name("mha", layout)

    def obstacles(self, model: Model, block: Block) -> tuple[Obstacle, ...]:
        """Why MultiHeadAttention cannot express `block`; empty if it can."""
        if missing := common.missing_parts(block):
            return missing
        found = common.flaws(model, block, self._forms(block), model.opset)
        if self.layout == "bnsh" and block.head_size != block.v_head_size:
            sizes = f"{block.head_size}, and {block.v_head_size} for values"
            found.append(Obstacle("head-size", block.anchor, "one head size for keys and values in BNSH", sizes))
        if block.softcap is not None:
            what = f"a cap of {block.softcap:g}"
            found.append(Obstacle("softcap", block.anchor, "no soft cap on the logits", what))
        return tuple(found)

    def cost(self, model: Model, block: Block, provider: Provider) -> Cost:
        """Layout nodes and kernels."""
        return common.cost(model, block, self._forms(block), _kernels(block, provider))

    def build(self, site: Site) -> ir.Value:
        """Write MultiHeadAttention with the fewest layout nodes; returns the output in the block's own layout."""
        block = site.block
        fit = common.fitted(site.model, block, self._forms(block))
        given = common.read(site, block, fit)
        inputs: list[ir.Value | None] = [*given.values]
        masked = bool(other_terms(block))
        if masked:
            mask = MaskWriter(site.model, block, site.emit, site.value, given.ruler, given.dtype)
            inputs += [None, None, mask.write(site.shared)]
        attributes = {
            "num_heads": block.num_heads,
            "scale": given.scale,
            **({"unidirectional": 1} if hides_later_keys(block) else {}),
        }
        domain, op_type = self.operator.rsplit(".", 1)
        type_ = common.output_type(block, fit, given.dtype)
        fused = site.emit.node(op_type, inputs, type_, attributes, domain=domain)
        return common.write_output(site, block, fit, fused, given.dtype, guard=block.nan_guard and masked)

    def words(self, model: Model, block: Block) -> str:
        """What this choice means, in a sentence."""
        fit = common.fitted(model, block, self._forms(block))
        return common.describe(block, fit, "MultiHeadAttention", "unidirectional", "an attention bias")

    def _forms(self, block: Block) -> tuple[Form, ...]:
        """All in BSD, or key and value in BNSH."""
        whole, split = packed(block, block.heads), unpacked(block, block.heads)
        forms = [whole] if self.layout != "bnsh" else []
        if self.layout != "bsd" and block.head_size == block.v_head_size:
            forms.append(replace(split, query=whole.query, output=whole.output))
        return tuple(forms)


def _kernels(block: Block, provider: Provider) -> tuple[Kernel, ...]:
    """Kernels within reach; on the CPU 16 bits are computed in float32, and there is nothing for bfloat16."""
    if provider == "cpu":
        return () if block.dtype == "bfloat16" else ("cpu",)
    rows = block.size(block.rows)
    found: list[Kernel] = []
    if common.suits_flash(block):
        found.append("cudnn")
        if not other_terms(block) and block.head_size == block.v_head_size:
            found.append("flash")
    if common.suits_memory_efficient(block) and not (common.is_wide(block) and isinstance(rows, int) and rows < _LONG):
        found.append("memory-efficient")
    return (*found, "math")
