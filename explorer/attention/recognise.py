"""From a model to its attention blocks.

One walk is anchored at each Softmax and peels one role after the other (logits, product, operands, probabilities,
heads); operators that already are attention are listed too. What changes the meaning is an obstacle on the block; a
Softmax that does not stand between two products is no attention and is not listed.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from explorer.attention.block import BNHS, BNSH, Block, Operand, RegionNode, Step
from explorer.attention.fused import fused_block, is_fused
from explorer.attention.layouts import Sizes
from explorer.attention.logits import Logits, peel_logits
from explorer.attention.mask import summarize
from explorer.attention.operands import peel_operand
from explorer.attention.ort_reason import ort_reason
from explorer.attention.probabilities import Product, follow_merge, follow_probabilities
from explorer.attention.walk import Notes, is_op, name_of, softmax_axis
from explorer.model import Dim, Model, dtype_name


def recognise(model: Model) -> tuple[Block, ...]:
    """All attention blocks of `model` in graph order; each Softmax or fused operator gives at most one."""
    blocks: list[Block] = []
    claimed: frozenset[str] = frozenset()
    for node in model.nodes:
        label = f"attn{len(blocks)}"
        if is_fused(node):
            blocks.append(fused_block(model, node, label))
        elif is_op(node, "Softmax") and (block := _block(Notes(model, claimed), node, label)) is not None:
            blocks.append(block)
            # What prepares Q, K and V may be shared between blocks; the rest of a region is its own
            claimed |= {part.name for part in block.region if part.role not in ("layout", "scale")}
    return tuple(blocks)


def _block(notes: Notes, softmax: ir.Node, label: str) -> Block | None:
    model = notes.model
    logits = peel_logits(notes, softmax)
    if logits.product is None:
        return None
    notes.steps.reverse()  # the walk went against the data; the evidence goes with it
    notes.take(softmax, "softmax")
    dtype = model.dtype(softmax.outputs[0])
    softmax_dtype = dtype_name(dtype)
    notes.step(f"Softmax over the keys, in {softmax_dtype or 'an unknown type'}.", softmax)
    product = follow_probabilities(notes, softmax)
    if product is None:
        return None
    notes.take(logits.product, "qk")
    notes.take(product.node, "pv")
    notes.steps.insert(0, Step("QKᵀ: the product that gives the logits.", (model.key(logits.product),)))
    notes.step("The probabilities are multiplied with V.", product.node)
    _check_axis(notes, softmax)
    if softmax.graph is not model.ir.graph:
        notes.obstacle(
            "scope",
            softmax,
            "attention in the main graph",
            "attention inside the body of an If, Loop or Scan",
            "bodies are not rewritten yet",
        )
    base = Block(
        label=label,
        anchor=model.key(softmax),
        anchor_output=name_of(softmax.outputs[0]),
        region=(),
        softmax_dtype=softmax_dtype,
    )
    block = _with_operands(notes, base, logits.product, logits, product)
    block = replace(block, region=_region(notes), evidence=tuple(notes.steps), obstacles=tuple(notes.obstacles))
    return replace(block, ort_reason=ort_reason(model, block))


def _with_operands(notes: Notes, base: Block, qk: ir.Node, logits: Logits, product: Product) -> Block:
    """`base` with Q, K, V, heads and sizes; or as it is, an obstacle noted, if its products are not two MatMuls."""
    model = notes.model
    for node in (qk, product.node):
        if not is_op(node, "MatMul"):
            notes.obstacle("product", node, "a MatMul", f"a {node.op_type}", "this spelling is not read yet")
            return base
    (q, k), v = qk.inputs[:2], product.value
    if q is None or k is None or v is None or product.node.inputs[0] is not product.probabilities:
        notes.obstacle(
            "product",
            product.node,
            "probabilities · V",
            "the factors in another order",
            "this spelling is not read yet",
        )
        return base
    shapes = [model.shape(value) for value in (q, k, v)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        notes.obstacle(
            "rank",
            qk,
            "Q, K and V of rank 4 [batch, heads, sequence, head size]",
            " and ".join(_words(shape) for shape in shapes),
            "run shape inference on the model, or this spelling of heads is not read yet",
        )
        return base
    q_shape, k_shape, v_shape = (shape for shape in shapes if shape is not None)
    heads, head_size, v_head_size = q_shape[1], q_shape[3], v_shape[3]
    _check_sizes(notes, qk, q_shape, k_shape, v_shape)
    sizes: Sizes = {"B": q_shape[0], "N": heads, "S": q_shape[2], "H": head_size}
    kv_sizes: Sizes = {"B": k_shape[0], "N": k_shape[1], "S": k_shape[3], "H": k_shape[2]}
    v_sizes: Sizes = {"B": v_shape[0], "N": v_shape[1], "S": v_shape[2], "H": v_head_size}
    before = len(notes.steps)
    query = peel_operand(notes, "Q", q, BNSH, sizes)
    key = peel_operand(notes, "K", k, BNHS, kv_sizes)
    value = peel_operand(notes, "V", v, BNSH, v_sizes)
    # operands come first in the explanation
    notes.steps = notes.steps[before:][::-1] + notes.steps[:before]
    _explain_key(notes, key)
    output = follow_merge(notes, product.node, {**sizes, "H": v_head_size})
    dtypes = {model.dtype(value) for value in (q, k, v)}
    if len(dtypes) > 1:
        names = ", ".join(dtype_name(dtype) or "?" for dtype in (model.dtype(x) for x in (q, k, v)))
        notes.obstacle("mixed-dtypes", qk, "Q, K and V of one element type", names)
    dtype = model.dtype(q)
    if value.source.scale != 1.0:
        # the factor on V would have to move behind the block: look no further than V as the product reads it
        value = Operand(value.views[:1], value.traits)
    return replace(
        base,
        query=query,
        key=key,
        value=value,
        output=output,
        num_heads=_known(heads),
        kv_num_heads=_known(k_shape[1]),
        head_size=_known(head_size),
        v_head_size=_known(v_head_size),
        scale=logits.scale * query.source.scale * key.source.scale,
        mask=summarize(model, reversed(logits.terms)),
        dtype=dtype_name(dtype),
    )


def _known(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


def _check_axis(notes: Notes, softmax: ir.Node) -> None:
    axis = softmax_axis(notes.model, softmax)
    shape = notes.model.shape(softmax.outputs[0])
    last = axis == -1 or (shape is not None and axis == len(shape) - 1)
    if not last:
        notes.obstacle(
            "softmax-axis",
            softmax,
            "Softmax over the last axis, the keys",
            f"axis {axis}",
            "another axis normalises over something else than the keys",
        )


def _check_sizes(notes: Notes, product: ir.Node, q: tuple[Dim, ...], k: tuple[Dim, ...], v: tuple[Dim, ...]) -> None:
    """Batch and heads must be the same for Q, K and V: a MatMul may broadcast them, the fused operator does not."""
    if not isinstance(q[1], int) or not isinstance(q[3], int):
        notes.obstacle(
            "heads-unknown",
            product,
            "a fixed number of heads and head size",
            f"Q of shape {_words(q)}",
            "run shape inference, or give the shapes of the model's inputs",
        )
    for axis, what in ((0, "batch size"), (1, "number of heads")):
        found = {shape[axis] for shape in (q, k, v)}
        if len(found) == 1 and None not in found:
            continue
        words = f"Q {_words(q)}, Kᵀ {_words(k)}, V {_words(v)}"
        if all(isinstance(dim, int) for dim in found):
            notes.obstacle(
                "broadcast", product, f"the same {what} in Q, K and V", words, "the fused operator does not broadcast"
            )
        else:
            notes.obstacle(
                "shape-unknown",
                product,
                f"provably the same {what} in Q, K and V",
                words,
                "export with static or named dimensions, or run shape inference on the model",
            )


def _explain_key(notes: Notes, key: Operand) -> None:
    if any(view.layout == BNSH for view in key.views):
        return
    if key.source.layout == BNHS:
        text = "K reaches the product as BNHS already: no Transpose feeds it, what comes before worked on transposed K."
        notes.steps.insert(0, Step(text, ()))


def _region(notes: Notes) -> tuple[RegionNode, ...]:
    order = {notes.model.key(node): at for at, node in enumerate(notes.model.nodes)}
    return tuple(sorted(notes.region.values(), key=lambda node: order[node.name]))


def _words(shape: tuple[Dim, ...] | None) -> str:
    return "unknown" if shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
