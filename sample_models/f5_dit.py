"""The diffusion transformer of F5-TTS in fp16, with the attention of ONNX Runtime issue #27983.

One block's attention, after q/k/v projections, split heads and rotary embedding:

    MatMul(q, k) fp16 -> Cast fp32 -> Mul 100 -> Softmax -> Cast fp16 -> MatMul(., v) -> Transpose -> Reshape

* Scale. The logits of q @ k would overflow fp16 in the real model, so its export recipe shrinks them ahead of the
  product and undoes that in fp32: 0.1 * head_size ** -0.25 is baked into each of Wq and Wk, biases included, and the
  graph's only scale is the x100. Together they are 0.1 * 0.1 * 100 / sqrt(head_size), the usual 1 / sqrt(head_size).
* K is transposed to [B, N, H, S] *before* its rotary embedding, so no Transpose feeds the product.
* Rotary tables. The real export takes cos and sin as inputs; here a user gives `x` and `time` alone. Computing angles
  needs fp32 and then a Cast, which would blur "Casts 44 -> 0", so the tables come from the addition theorem in fp16:
  position 64a + b turns by the angle of 64a and then by the angle of b. 192 stored rows make 8192 positions, and
  the graph has no Cast outside attention.
* `time` is each row's embedding of the flow time, as in the real export (whose recipe tabulates it; the angles of a
  sinusoidal embedding reach 1000, which fp16 cannot resolve). `time_size` is its width, that of the model in F5-TTS.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from layers import gelu_tanh, layer_norm, linear
from onnx import ModelProto
from tape import Tape, Value

MEL = 100
COARSE, FINE = 128, 64  # rotary positions = COARSE * FINE
EPSILON = 1e-6
BAKED = 0.1  # into each of Wq and Wk; UNBAKE takes both out again, in fp32
UNBAKE = 100.0
LOGITS_STD = 2.0
MODULATION_STD = 0.5

Rotary = tuple[Value, Value]  # cos, sin
Turn = Callable[[Value, Rotary, int], Value]
SoftmaxCasts = Literal["one", "two"]
RotaryPairs = Literal["interleaved", "half"]


def f5_dit(
    layers: int = 2,
    heads: int = 2,
    head_size: int = 64,
    ffn_mult: int = 2,
    batch: int = 2,
    time_size: int | None = None,
    adaln: bool = True,
    rotary: RotaryPairs = "interleaved",
    softmax_casts: SoftmaxCasts = "one",
    value_info: bool = True,
    opset: int = 20,
    seed: int = 0,
) -> ModelProto:
    """`batch` is 2 for classifier-free guidance; without `adaln` norms are plain and there is no `time`.

    `rotary` pairs neighbours, as F5-TTS does, or the two halves of a head, as most models do. `softmax_casts` counts
    the Casts after Softmax: "one" casts straight to fp16, as torch's dynamo exporter does; "two" is what its
    TorchScript exporter, which stops at opset 17 and so has no Gelu operator, writes for
    `softmax(x.float()).to(fp16)`: fp32 first.
    """
    tape = Tape(np.float16, seed, opset)
    hidden = heads * head_size
    mel = tape.input("x", (batch, "seq", MEL))
    time = tape.input("time", (batch, time_size or hidden)) if adaln else None

    tables = rotary_tables(mel, head_size, rotary)
    turn = rotate if rotary == "interleaved" else rotate_halves
    x = linear(mel, "input_embed", hidden)  # [B, S, N*H]
    for layer in range(layers):
        with tape.scope(f"transformer_blocks.{layer}"):
            if time is None:
                x = x + attention(layer_norm(x, "attn_norm", EPSILON), tables, turn, heads, softmax_casts)
                x = x + feed_forward(layer_norm(x, "ff_norm", EPSILON), ffn_mult)
            else:
                normed, (gate_attn, shift, scale, gate_ffn) = ada_layer_norm(x, time, "attn_norm", chunks=6)
                x = x + gate_attn * attention(normed, tables, turn, heads, softmax_casts)
                x = x + gate_ffn * feed_forward(modulate(x, "ff_norm", shift, scale), ffn_mult)
    normed = layer_norm(x, "norm_out", EPSILON) if time is None else ada_layer_norm(x, time, "norm_out", chunks=2)[0]
    denoised = linear(normed, "proj_out", MEL)  # [B, S, mel]
    return tape.finish(denoised, "denoised", value_info)


def rotary_tables(x: Value, head_size: int, pairs: RotaryPairs) -> tuple[Rotary, Rotary]:
    """cos and sin, the two of a pair sharing a frequency: at [1, 1, S, H] for Q and at [1, 1, H, S] for K."""
    frequency = 10000.0 ** (-np.arange(0, head_size, 2) / head_size)
    frequency = np.repeat(frequency, 2) if pairs == "interleaved" else np.tile(frequency, 2)
    coarse = np.arange(COARSE)[:, None, None] * FINE * frequency  # [128, 1, H]
    fine = np.arange(FINE)[:, None] * frequency  # [64, H]
    with x.tape.scope("rotary_embed"):
        cos_a, sin_a = (x.tape.buffer(f"coarse_{f.__name__}", f(coarse).astype(x.tape.dtype)) for f in (np.cos, np.sin))
        cos_b, sin_b = (x.tape.buffer(f"fine_{f.__name__}", f(fine).astype(x.tape.dtype)) for f in (np.cos, np.sin))
        both = cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b  # [128, 64, H]
        length = x.length(axis=1)
        rows = (1, 1, COARSE * FINE, head_size)
        cos, sin = (table.reshape(*rows).first(length, 2, "seq") for table in both)  # [1, 1, S, H]
        return (cos, sin), (cos.transpose(0, 1, 3, 2), sin.transpose(0, 1, 3, 2))


def ada_layer_norm(x: Value, time: Value, name: str, chunks: int) -> tuple[Value, list[Value]]:
    """x, normalised and modulated by the first two chunks of a projection of time; and the other chunks."""
    hidden = x.shape[-1]
    with x.tape.scope(name):
        with x.tape.scope("silu"):
            activated = time * x.tape.op("Sigmoid", time)
        modulation = linear(activated, "linear", chunks * hidden, MODULATION_STD)  # [B, chunks*N*H]
        shift, scale, *rest = (chunk.unsqueeze(1) for chunk in modulation.split(chunks, axis=1))  # [B, 1, N*H] each
        return modulate(x, "norm", shift, scale), rest


def modulate(x: Value, name: str, shift: Value, scale: Value) -> Value:
    with x.tape.scope(name):
        ones, zeros = (x.tape.constant(np.full(x.shape[-1:], value, x.tape.dtype)) for value in (1, 0))
        normed = x.tape.op("LayerNormalization", x, ones, zeros, axis=-1, epsilon=EPSILON)
    return normed * (scale + 1.0) + shift


def attention(x: Value, tables: tuple[Rotary, Rotary], turn: Turn, heads: int, softmax_casts: SoftmaxCasts) -> Value:
    batch, seq, hidden = x.shape
    head_size = hidden // heads
    qk_gain = math.sqrt(LOGITS_STD) * BAKED * head_size**-0.25
    with x.tape.scope("attn"):
        q, k, v = (
            linear(x, name, hidden, gain).reshape(batch, seq, heads, head_size)  # [B, S, N, H]
            for name, gain in (("to_q", qk_gain), ("to_k", qk_gain), ("to_v", 1.0))
        )
        q = q.transpose(0, 2, 1, 3)  # [B, N, S, H]
        k = k.transpose(0, 2, 3, 1)  # [B, N, H, S]
        v = v.transpose(0, 2, 1, 3)  # [B, N, S, H]
        q_table, k_table = tables
        q = turn(q, q_table, 3)
        k = turn(k, k_table, 2)

        logits = (q @ k).cast(np.float32) * UNBAKE  # [B, N, S, S]
        weights = logits.softmax()
        if softmax_casts == "two":
            weights = weights.cast(np.float32)
        mixed = weights.cast(np.float16) @ v  # [B, N, S, H]
        merged = mixed.transpose(0, 2, 1, 3).reshape(batch, seq, hidden)  # [B, S, N*H]
        return linear(merged, "to_out.0", hidden)


def rotate(x: Value, table: Rotary, axis: int) -> Value:
    """(a, b) -> (a cos - b sin, b cos + a sin) for each pair of neighbours along `axis`."""
    cos, sin = table
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    a, b = x.reshape(*before, size // 2, 2, *after).split(2, axis + 1)  # [..., H/2, 1, ...] each
    turned = x.tape.op("Concat", -b, a, shape=(*before, size // 2, 2, *after), axis=axis + 1)
    return x * cos + turned.reshape(*x.shape) * sin


def rotate_halves(x: Value, table: Rotary, axis: int) -> Value:
    """The same for the two halves of `axis`."""
    cos, sin = table
    a, b = x.split(2, axis)  # [..., H/2, ...] each
    turned = x.tape.op("Concat", -b, a, shape=x.shape, axis=axis)
    return x * cos + turned * sin


def feed_forward(x: Value, mult: int) -> Value:
    hidden = x.shape[-1]
    with x.tape.scope("ff"):
        inner = gelu_tanh(linear(x, "ff.0.0", mult * hidden))  # [B, S, mult*N*H]
        return linear(inner, "ff.2", hidden)  # [B, S, N*H]
