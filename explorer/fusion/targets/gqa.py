"""com.microsoft.GroupQueryAttention (version 1): all in BSD, fewer heads of keys and values than of queries.

Made for decoding with a cache: `seqlens_k` (for each batch entry the number of keys, less 1) and
`total_sequence_length` are required, and without a past there are as many keys as queries. Both say here what the
shapes say; shorter lengths than that are wrong on CUDA unless the block is causal. CUDA wants present_key and
present_value declared, and has no kernel for float32. A bias sends it to unfused MATH there.
Source: ONNX Runtime's contrib operator documentation and `docs/decisions/0009-targets.md`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.fusion.bias import MaskWriter, hides_later_keys, other_terms
from explorer.fusion.emit import Ruler
from explorer.fusion.forms import Form, LayoutName, packed
from explorer.fusion.plan import Provider
from explorer.fusion.targets import common
from explorer.fusion.targets.target import Cost, Kernel, Site
from explorer.model import Model, TensorType

_HEAD_STEP = 8


class GroupQueryAttention:
    """The target "gqa"; it has one layout."""

    name = "gqa"
    layout: LayoutName | None = None
    operator = "com.microsoft.GroupQueryAttention"
    min_opset = common.MIN_OPSET

    def obstacles(self, model: Model, block: Block) -> tuple[Obstacle, ...]:
        """Why GroupQueryAttention cannot express `block`; empty if it can."""
        if missing := common.missing_parts(block):
            return missing
        block = common.grouped(block)
        found: list[Obstacle] = []

        def obstacle(code: str, expected: str, what: str) -> None:
            found.append(Obstacle(code, block.anchor, expected, what))

        heads, kv_heads, head_size = block.num_heads, block.kv_num_heads, block.head_size
        if heads == kv_heads:
            obstacle("heads", "fewer heads of keys and values than of queries", f"{heads} of each")
        rows, keys = block.size(block.rows), block.size(block.keys)
        if rows != keys:
            obstacle("lengths", "provably as many keys as queries", f"{rows} queries and {keys} keys")
        if head_size != block.v_head_size:
            obstacle("head-size", "one head size for all", f"{head_size}, and {block.v_head_size} for values")
        elif (head_size or 0) % _HEAD_STEP:
            obstacle("head-size", f"a head size that is a multiple of {_HEAD_STEP}", f"{head_size}")
        return (*found, *common.flaws(model, block, _forms(block), model.opset))

    def cost(self, model: Model, block: Block, provider: Provider) -> Cost:
        """Layout nodes and kernels."""
        block = common.grouped(block)
        return common.cost(model, block, _forms(block), _kernels(block, provider))

    def build(self, site: Site) -> ir.Value:
        """Write GroupQueryAttention with the fewest layout nodes; returns the output in the block's own layout."""
        block = common.grouped(site.block)
        fit = common.fitted(site.model, block, _forms(block))
        given = common.read(site, block, fit)
        lengths = _lengths(site, block, given.ruler)
        inputs: list[ir.Value | None] = [*given.values, None, None, *lengths]
        masked = bool(other_terms(block))
        if masked:
            mask = MaskWriter(site.model, block, site.emit, site.value, given.ruler, given.dtype)
            inputs += [None, None, None, mask.write(site.shared)]
        attributes = {
            "num_heads": block.num_heads,
            "kv_num_heads": block.kv_num_heads,
            "scale": given.scale,
            "causal": int(hides_later_keys(block)),
            **({} if block.softcap is None else {"softcap": block.softcap}),
        }
        domain, op_type = self.operator.rsplit(".", 1)
        type_ = common.output_type(block, fit, given.dtype)
        present = tuple(block.size(group) for group in (block.batch, block.kv_heads, block.keys, "H"))
        unread = (TensorType(given.dtype, present),) * 2
        fused = site.emit.node(op_type, inputs, type_, attributes, domain, unread)
        return common.write_output(site, block, fit, fused, given.dtype, guard=block.nan_guard and masked)

    def words(self, model: Model, block: Block) -> str:
        """What this choice means, in a sentence."""
        block = common.grouped(block)
        fit = common.fitted(model, block, _forms(block))
        return common.describe(block, fit, "GroupQueryAttention", "causal", "an attention bias")


def _forms(block: Block) -> tuple[Form, ...]:
    return (packed(block, block.kv_heads),)


def _lengths(site: Site, block: Block, ruler: Ruler) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k` and `total_sequence_length` of keys that are all there, shared by blocks of the same sizes."""
    emit, int32 = site.emit, ir.DataType.INT32
    batch, keys = block.size(block.batch), block.size(block.keys)
    key = ("lengths", id(emit.graph), batch, keys)
    if (*key, "last") not in site.shared:
        one = TensorType(int32, (1,))
        if isinstance(keys, int):
            total = emit.constant(np.array(keys, np.int32), "total_sequence_length")
            count = batch if isinstance(batch, int) else 1
            last = emit.constant(np.full(count, keys - 1, np.int32), "last_key")
        else:
            total = emit.node("Cast", [emit.dimension(ruler.value, 1)], one, {"to": int32})
            last = emit.node("Sub", [total, emit.constant(np.ones(1, np.int32), "one")], one)
        if batch != 1 and not (isinstance(batch, int) and isinstance(keys, int)):
            wide = batch if isinstance(batch, int) else emit.dimension(ruler.value, 0)
            last = emit.node("Expand", [last, emit.vector([wide])], TensorType(int32, (batch,)))
        site.shared[*key, "last"], site.shared[*key, "total"] = last, total
    return site.shared[*key, "last"], site.shared[*key, "total"]


def _kernels(block: Block, provider: Provider) -> tuple[Kernel, ...]:
    """Kernels within reach; float32 has one on the CPU only, whatever the provider, and bfloat16 none there."""
    if provider == "cpu" or common.is_wide(block):
        return () if block.dtype == "bfloat16" else ("cpu",)
    if other_terms(block) or not common.suits_flash(block):
        return ("math",)
    return ("flash",) if block.softcap is not None else ("cudnn", "flash")
