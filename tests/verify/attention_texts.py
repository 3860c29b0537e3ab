"""A small attention model as ONNX text, in parts and with MultiHeadAttention in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from explorer.model import Model, load

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
HEADS, HEAD_SIZE = 2, 4
WIDTH = HEADS * HEAD_SIZE

PROJECTIONS = """
    xq = MatMul (x, wq) xk = MatMul (x, wk) xv = MatMul (x, wv)
    split = Constant <value = int64[4] {0, 0, 2, 4}> ()
    q4 = Reshape (xq, split) k4 = Reshape (xk, split) v4 = Reshape (xv, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k = Transpose <perm = [0, 2, 1, 3]> (k4)
    v = Transpose <perm = [0, 2, 1, 3]> (v4)
"""
PADDING = """
    axes = Constant <value = int64[2] {1, 2}> ()
    wide = Unsqueeze (attention_mask, axes)
    kept = Cast <to = 1> (wide)
    one = Constant <value = float {1.0}> () low = Constant <value = float {-10000.0}> ()
    hidden = Sub (one, kept)
    bias = Mul (hidden, low)
"""
CAUSAL = """
    size = Shape <start = 1, end = 2> (x)
    square = Concat <axis = 0> (size, size)
    ones = ConstantOfShape <value = float[1] {1.0}> (square)
    triangle = Trilu <upper = 0> (ones)
    seen = Cast <to = 9> (triangle)
    low = Constant <value = float {-10000.0}> ()
"""
ATTENTION = """
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul (q, kt)
    scale = Constant <value = float {0.5}> ()
    scaled = Mul (scores, scale)
    masked = MASKED
    p = Softmax <axis = -1> (masked)
    c = MatMul (p, v)
    ct = Transpose <perm = [0, 2, 1, 3]> (c)
    merge = Constant <value = int64[3] {0, 0, 8}> ()
    context = Reshape (ct, merge)
"""
FULL = """
    rows = Shape <start = 2, end = 3> (q)
    unit = Constant <value = int64[1] {1}> ()
    full = Concat <axis = 0> (unit, unit, rows, unit)
    expanded = Expand (BIAS, full)
"""
FUSED = "context = com.microsoft.MultiHeadAttention <num_heads = 2, scale = 0.5> (xq, k, v, , , expanded)\n"
OUTPUT = "y = MatMul (context, wo)\n"
SIGNATURE = "attention (float[b, s, 8] x, int64[b, s] attention_mask) => (float[b, s, 8] y)"

Write = Callable[..., Model]


def padded() -> tuple[str, str]:
    """The nodes of a model with a padding mask: in parts, and fused."""
    before = PROJECTIONS + PADDING + ATTENTION.replace("MASKED", "Add (scaled, bias)") + OUTPUT
    return before, PROJECTIONS + PADDING + FULL.replace("BIAS", "bias") + FUSED + OUTPUT


def causal() -> tuple[str, str]:
    """The same with a causal mask (the other one is not read)."""
    before = PROJECTIONS + CAUSAL + ATTENTION.replace("MASKED", "Where (seen, scaled, low)") + OUTPUT
    turned = "zero = Constant <value = float {0.0}> () cut = Where (seen, zero, low)"
    return before, PROJECTIONS + CAUSAL + turned + FULL.replace("BIAS", "cut") + FUSED + OUTPUT


def model(folder: Path, name: str, nodes: str, signature: str = SIGNATURE, seed: int = 0) -> Model:
    """The model with these nodes and random weights, as a file in `folder` that is then opened."""
    proto = onnx.parser.parse_model(f"{HEADER} {signature} {{ {nodes} }}")
    rng = np.random.default_rng(seed)
    for weight in ("wq", "wk", "wv", "wo"):
        array = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        if f" {weight})" in nodes:
            proto.graph.initializer.append(numpy_helper.from_array(array, weight))
    path = folder / f"{name}.onnx"
    path.write_bytes(proto.SerializeToString())
    return load(path)
