"""Operators that are a whole attention, and what surrounds them in ONNX Runtime's optimised graphs."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from explorer.model.dims import Dim, add, floor_divide, multiply
from explorer.model.shapes.call import Call, Rules, Shape, Shapes, UnknownError

INT32 = ir.DataType.INT32


def _attention(call: Call) -> Shapes:
    """ai.onnx Attention: output, present key, present value, the product of Q and K."""
    q, k, v = (call.shape(position) for position in range(3))
    if len(q) == 4:
        heads, kv_heads, length, new, size, v_size = q[1], k[1], q[2], k[2], k[3], v[3]
        output: Shape = (*q[:3], v_size)
    else:
        heads, kv_heads = call.attribute("q_num_heads"), call.attribute("kv_num_heads")
        length, new, size, v_size = q[1], k[1], floor_divide(k[2], kv_heads), floor_divide(v[2], kv_heads)
        output = (q[0], length, multiply(heads, v_size))
    total = add(call.shape(4)[2], new) if call.given(4) else new
    batch = q[0]
    present = [(batch, kv_heads, total, size), (batch, kv_heads, total, v_size)]
    return [output, *present, (batch, heads, length, total)]


def _projecting_attention(call: Call, past: int) -> Shapes:
    """Attention and QAttention of ONNX Runtime project their input themselves: the weight's width is the output's."""
    batch, length, _ = call.shape(0)
    sizes = call.attribute("qkv_hidden_sizes")
    width: Dim = sizes[2] if sizes else floor_divide(call.shape(1)[1], 3)
    output = (batch, length, width)
    if len(call.node.outputs) == 1:
        return [output]
    heads = call.attribute("num_heads")
    if call.attribute("past_present_share_buffer", 0):
        return [output, call.shape(past)]
    total = add(call.shape(past)[3], length) if call.given(past) else length
    return [output, (2, batch, heads, total, floor_divide(width, heads))]


def _multi_head_attention(call: Call) -> Shapes:
    """MultiHeadAttention: query BSD, or packed BSN3H; key and value BTD, BNTH, packed BTN2H, or not there."""
    q, heads = call.shape(0), call.attribute("num_heads")
    if len(q) == 5:
        size: Dim = q[4]
        new, v_size = q[1], size
    else:
        k, size = call.shape(1), floor_divide(q[2], heads)
        if len(k) == 5:
            new, v_size = k[1], size
        else:
            v = call.shape(2)
            new, v_size = (k[2], v[3]) if len(k) == 4 else (k[1], floor_divide(v[2], heads))
    output = (*q[:2], multiply(heads, v_size))
    if len(call.node.outputs) == 1:
        return [output]
    total = add(call.shape(6)[2], new) if call.given(6) else new
    if call.attribute("past_present_share_buffer", 0):
        total = call.shape(6)[2]
    present = (q[0], heads, total)
    return [output, (*present, size), (*present, v_size), (q[0], heads, q[1], total)]


def _decoder_attention(call: Call) -> Shapes:
    """DecoderMaskedMultiHeadAttention: one position at a time, its keys and values kept in buffers."""
    q = call.shape(0)
    output = (*q[:2], call.shape(2)[-1] if call.rank_or_none(2) == 3 else q[-1])
    shared = call.given(5) and call.attribute("past_present_share_buffer", 0)
    return [output, call.shape(5), call.shape(6)] if shared else [output]


def _grouped_query_attention(call: Call) -> Shapes:
    """GroupQueryAttention: query BSD, or with key and value packed behind it. The caches may be longer than needed."""
    batch, length, width = call.shape(0)
    heads, kv_heads = call.attribute("num_heads"), call.attribute("kv_num_heads")
    packed = not call.given(1)
    size = floor_divide(width, heads + 2 * kv_heads if packed else heads)
    caches = [(batch, kv_heads, call.fresh(2, output), size) for output in (1, 2)[: len(call.node.outputs) - 1]]
    return [(batch, length, multiply(heads, size)), *caches]


def _packed_attention(call: Call) -> Shapes:
    """PackedAttention: (tokens, hidden) with the padding left out."""
    sizes = call.attribute("qkv_hidden_sizes")
    return [(call.shape(0)[0], sizes[2] if sizes else floor_divide(call.shape(1)[1], 3))]


def _packed_multi_head_attention(call: Call) -> Shapes:
    """PackedMultiHeadAttention: query (tokens, D), or packed (tokens, N, 3, H)."""
    q = call.shape(0)
    return [(q[0], multiply(q[1], q[3]) if len(q) == 4 else call.shape(2)[1])]


def _remove_padding(call: Call) -> Shapes:
    batch, length, width = call.shape(0)
    tokens = call.fresh(0)
    return [(tokens, width), (batch, length), (add(batch, 1),), (1,)]


def _restore_padding(call: Call) -> Shapes:
    return [call.shape(1) + call.shape(0)[1:]]


def _embedding(call: Call) -> Shapes:
    """EmbedLayerNormalization: the normalised sum, how long each row is, the sum."""
    ids, width = call.shape(0), call.shape(2)[1]
    hidden = (*ids, width)
    return [hidden, (ids[0],), hidden]


def _relative_bias(call: Call) -> Shapes:
    heads = call.shape(0)[1]
    lengths = [call.elements(position) for position in (1, 2)]
    dims = [call.fresh(axis + 2) if not found or found[0] is None else found[0] for axis, found in enumerate(lengths)]
    return [(1, heads, *dims)]


def _gated_bias(call: Call) -> Shapes:
    x = call.shape(0)
    heads = call.attribute("num_heads")
    if len(x) != 3:
        raise UnknownError
    return [(x[0], heads, x[1], x[1])]


def _like_query(call: Call) -> Shapes:
    return [call.shape(0)]


RULES: Rules = {"Attention": ((0, 1, 2, 0), _attention)}

MICROSOFT_RULES: Rules = {
    "Attention": ((0,), partial(_projecting_attention, past=4)),
    "QAttention": ((3,), partial(_projecting_attention, past=8)),
    "MultiHeadAttention": ((0,), _multi_head_attention),
    "DecoderMaskedMultiHeadAttention": ((0,), _decoder_attention),
    **dict.fromkeys(("GroupQueryAttention", "SparseAttention"), ((0,), _grouped_query_attention)),
    "PackedAttention": ((0,), _packed_attention),
    "PackedMultiHeadAttention": ((0,), _packed_multi_head_attention),
    "LongformerAttention": ((0,), _like_query),
    "RemovePadding": ((0, INT32), _remove_padding),
    "RestorePadding": ((0,), _restore_padding),
    "EmbedLayerNormalization": ((2, INT32, 2), _embedding),
    "RelativePositionBias": ((0,), _relative_bias),
    "GatedRelativePositionBias": ((0,), _gated_bias),
}
