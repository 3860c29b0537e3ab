"""A BERT-like encoder in fp32: padding mask from `attention_mask`, logits divided by sqrt(head_size).

`attention_mask` [B, S] becomes additive as in Hugging Face's exports: (1 - mask) * finfo.min, at [B, 1, 1, S].
K goes from [B, S, N, H] to [B, N, H, S] in one Transpose, which feeds the product.
"""

import math

import numpy as np
from layers import gelu_erf, layer_norm, linear
from onnx import ModelProto
from tape import Tape, Value

VOCABULARY = 128
POSITIONS = 512
EPSILON = 1e-12
QK_GAIN = math.sqrt(2.0)  # logits of standard deviation about 2


def bert(
    layers: int = 2, heads: int = 2, head_size: int = 16, ffn_mult: int = 4, value_info: bool = True, seed: int = 0
) -> ModelProto:
    tape = Tape(np.float32, seed)
    input_ids = tape.input("input_ids", ("batch", "seq"), np.int64)
    attention_mask = tape.input("attention_mask", ("batch", "seq"), np.int64)

    x = embeddings(tape, input_ids, heads * head_size)
    mask = attention_mask.unsqueeze(1).unsqueeze(2).cast(np.float32)  # [B, 1, 1, S]
    mask = (1.0 - mask) * float(np.finfo(np.float32).min)
    for layer in range(layers):
        with tape.scope(f"encoder/layer.{layer}"):
            with tape.scope("attention"):
                mixed = attention(x, mask, heads)
                x = layer_norm(mixed + x, "output/LayerNorm", EPSILON)
            x = layer_norm(feed_forward(x, ffn_mult) + x, "output/LayerNorm", EPSILON)
    return tape.finish(x, "last_hidden_state", value_info)


def embeddings(tape: Tape, input_ids: Value, hidden: int) -> Value:
    with tape.scope("embeddings"):
        words = tape.weight("word_embeddings.weight", (VOCABULARY, hidden), std=1.0)
        positions = tape.weight("position_embeddings.weight", (POSITIONS, hidden), std=0.5)
        word = tape.op("Gather", words, input_ids, shape=(*input_ids.shape, hidden), axis=0)  # [B, S, N*H]
        position = positions.first(input_ids.length(axis=1), 0, "seq")  # [S, N*H]
        return layer_norm(word + position, "LayerNorm", EPSILON)


def attention(x: Value, mask: Value, heads: int) -> Value:
    batch, seq, hidden = x.shape
    head_size = hidden // heads
    with x.tape.scope("self"):
        q, k, v = (
            linear(x, name, hidden, gain).reshape(batch, seq, heads, head_size)  # [B, S, N, H]
            for name, gain in (("query", QK_GAIN), ("key", QK_GAIN), ("value", 1.0))
        )
        q = q.transpose(0, 2, 1, 3)  # [B, N, S, H]
        k = k.transpose(0, 2, 3, 1)  # [B, N, H, S]
        v = v.transpose(0, 2, 1, 3)  # [B, N, S, H]
        logits = (q @ k) / math.sqrt(head_size) + mask  # [B, N, S, S]
        mixed = logits.softmax() @ v  # [B, N, S, H]
        merged = mixed.transpose(0, 2, 1, 3).reshape(batch, seq, hidden)  # [B, S, N*H]
    return linear(merged, "output/dense", hidden)


def feed_forward(x: Value, mult: int) -> Value:
    hidden = x.shape[-1]
    with x.tape.scope("intermediate"):
        inner = gelu_erf(linear(x, "dense", mult * hidden))  # [B, S, mult*N*H]
    return linear(inner, "output/dense", hidden)  # [B, S, N*H]
