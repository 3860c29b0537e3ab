"""ai.onnx Attention (since version 23): all in BNSH or all in BSD, the result likewise; heads of keys may be fewer.

`scale` must be above 0. A query that sees no key gets 0. A mask of 2 to 4 axes has all rows and keys (ONNX Runtime
takes no 1 there); booleans are true for keep, and on CUDA each node turns them into numbers again. `is_causal` counts
from the first query. The standard operator, which other runtimes read, too.
Source: ONNX's operator documentation and `docs/decisions/0009-targets.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.fusion.bias import MaskWriter, hides_later_keys, other_terms
from explorer.fusion.emit import declared
from explorer.fusion.forms import Form, LayoutName, packed, unpacked
from explorer.fusion.opset import raised
from explorer.fusion.plan import Provider
from explorer.fusion.targets import common
from explorer.fusion.targets.target import Cost, Kernel, Site
from explorer.model import Dim, Model

_ON_THE_CPU: dict[str, tuple[Kernel, ...]] = {"float32": ("cpu",), "float16": ("cpu-float16",)}


class Attention:
    """The target "attention", or with a layout "attention/bsd" and "attention/bnsh"."""

    operator = "ai.onnx.Attention"
    min_opset = 23

    def __init__(self, layout: LayoutName | None = None) -> None:
        self.layout = layout
        self.name = common.name("attention", layout)

    def obstacles(self, model: Model, block: Block) -> tuple[Obstacle, ...]:
        """Why Attention cannot express `block`; empty if it can."""
        if missing := common.missing_parts(block):
            return missing
        block = common.grouped(block)
        found = common.flaws(model, block, self._forms(block), max(model.opset, self.min_opset))
        if not found and model.opset < self.min_opset:
            newer = raised(model, self.min_opset)
            found += [newer] if isinstance(newer, Obstacle) else []
        return tuple(found)

    def cost(self, model: Model, block: Block, provider: Provider) -> Cost:
        """Layout nodes and kernels."""
        block = common.grouped(block)
        return common.cost(model, block, self._forms(block), _kernels(block, provider))

    def build(self, site: Site) -> ir.Value:
        """Write Attention with the fewest layout nodes; returns the output in the block's own layout."""
        block = common.grouped(site.block)
        fit = common.fitted(site.model, block, self._forms(block))
        given = common.read(site, block, fit)
        inputs: list[ir.Value | None] = [*given.values]
        if other_terms(block):
            mask = MaskWriter(
                site.model, block, site.emit, site.value, given.ruler, given.dtype, booleans=True, four_axes=False
            )  # fmt: skip
            inputs.append(mask.write(site.shared))
        attributes: dict[str, float | int | None] = {"scale": given.scale}
        if fit.form.packed:
            _declare(given.values[2], given.dtype, tuple(block.size(group) for group in fit.form.value))
            attributes |= {"q_num_heads": block.num_heads, "kv_num_heads": block.kv_num_heads}
        if hides_later_keys(block):
            attributes["is_causal"] = 1
        if block.softcap is not None:
            attributes["softcap"] = block.softcap
        if block.softmax_dtype == "float32" and not common.is_wide(block):
            attributes["softmax_precision"] = ir.DataType.FLOAT.value
        fused = site.emit.node("Attention", inputs, common.output_type(block, fit, given.dtype), attributes)
        return common.write_output(site, block, fit, fused, given.dtype, guard=False)

    def words(self, model: Model, block: Block) -> str:
        """What this choice means, in a sentence."""
        block = common.grouped(block)
        fit = common.fitted(model, block, self._forms(block))
        sentence = common.describe(block, fit, "ai.onnx Attention", "is_causal", "its attn_mask")
        return (
            sentence if model.opset >= self.min_opset else f"{sentence}; the model is raised to opset {self.min_opset}"
        )

    def _forms(self, block: Block) -> tuple[Form, ...]:
        """All in BSD, or all in BNSH."""
        forms = packed(block, block.kv_heads), unpacked(block, block.kv_heads)
        return tuple(form for form in forms if self.layout in (None, form.name))


def _declare(value: ir.Value, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
    """State the type of the value operand: ONNX's shape inference takes a last axis that it cannot tell for 0."""
    if not value.is_graph_input():
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(declared(shape))


def _kernels(block: Block, provider: Provider) -> tuple[Kernel, ...]:
    """Kernels within reach; the CPU computes float16 as such, where large logits lose digits, and no bfloat16."""
    if provider == "cpu":
        return _ON_THE_CPU.get(block.dtype, ())
    found: list[Kernel] = []
    if common.suits_flash(block) and not other_terms(block) and block.head_size == block.v_head_size:
        found.append("flash")
    shared_in_float32 = common.is_wide(block) and block.num_heads != block.kv_num_heads
    if common.suits_memory_efficient(block) and not shared_in_float32:
        found.append("memory-efficient")
    return (*found, "math")
