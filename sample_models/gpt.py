"""A GPT-2-like decoder in fp32: packed QKV, and a causal mask from a boolean buffer.

As in Hugging Face's GPT-2 the lower triangle of the whole context is stored once, each layer slices it to [1, 1, S, S],
and `Where` puts finfo.min above the diagonal. The language-model head is the transposed word embedding.
"""

import math

import numpy as np
from layers import gelu_tanh, layer_norm, linear
from onnx import ModelProto
from tape import Tape, Value

VOCABULARY = 128
CONTEXT = 256
EPSILON = 1e-5
QKV_GAIN = math.sqrt(2.0)  # logits of standard deviation about 2


def gpt(
    layers: int = 2, heads: int = 2, head_size: int = 16, ffn_mult: int = 4, value_info: bool = True, seed: int = 0
) -> ModelProto:
    tape = Tape(np.float32, seed)
    hidden = heads * head_size
    input_ids = tape.input("input_ids", ("batch", "seq"), np.int64)

    causal = tape.buffer("attn.bias", np.tril(np.ones((1, 1, CONTEXT, CONTEXT), bool)))
    words = tape.weight("wte.weight", (VOCABULARY, hidden), std=1.0)
    positions = tape.weight("wpe.weight", (CONTEXT, hidden), std=0.5)
    word = tape.op("Gather", words, input_ids, shape=(*input_ids.shape, hidden), axis=0)  # [B, S, N*H]
    x = word + positions.first(input_ids.length(axis=1), 0, "seq")
    for layer in range(layers):
        with tape.scope(f"h.{layer}"):
            x = x + attention(layer_norm(x, "ln_1", EPSILON), causal, heads)
            x = x + feed_forward(layer_norm(x, "ln_2", EPSILON), ffn_mult)
    x = layer_norm(x, "ln_f", EPSILON)
    with tape.scope("lm_head"):
        logits = x @ words.transpose(1, 0)  # [B, S, vocabulary]
    return tape.finish(logits, "logits", value_info)


def attention(x: Value, causal: Value, heads: int) -> Value:
    batch, seq, hidden = x.shape
    head_size = hidden // heads
    with x.tape.scope("attn"):
        packed = linear(x, "c_attn", 3 * hidden, QKV_GAIN)  # [B, S, 3*N*H]
        q, k, v = (
            part.reshape(batch, seq, heads, head_size)  # [B, S, N, H]
            for part in packed.split(3, axis=2)
        )
        q = q.transpose(0, 2, 1, 3)  # [B, N, S, H]
        k = k.transpose(0, 2, 3, 1)  # [B, N, H, S]
        v = v.transpose(0, 2, 1, 3)  # [B, N, S, H]
        logits = (q @ k) / math.sqrt(head_size)  # [B, N, S, S]
        length = x.length(axis=1)
        visible = causal.first(length, 2, "seq").first(length, 3, "seq")  # [1, 1, S, S]
        masked = x.tape.op("Where", visible, logits, float(np.finfo(np.float32).min), dtype=np.float32)
        mixed = masked.softmax() @ v  # [B, N, S, H]
        merged = mixed.transpose(0, 2, 1, 3).reshape(batch, seq, hidden)  # [B, S, N*H]
        return linear(merged, "c_proj", hidden)


def feed_forward(x: Value, mult: int) -> Value:
    hidden = x.shape[-1]
    with x.tape.scope("mlp"):
        inner = gelu_tanh(linear(x, "c_fc", mult * hidden))  # [B, S, mult*N*H]
        return linear(inner, "c_proj", hidden)  # [B, S, N*H]
