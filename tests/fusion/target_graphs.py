"""Small graphs as text, and what a target makes of them, as text again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from attention_graphs import run_on_cpu
from attention_reading import loaded, only_block
from onnx import parser

from explorer.attention import Block
from explorer.fusion import Plan, apply, choose
from explorer.model import Model
from explorer.model.save import serialize

# From BSD to the products and back, 2 heads of 8
SPLIT = """
    split = Constant<value_ints = [0, 0, 2, 8]>()
    q1 = Reshape(q, split)
    q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
    k1 = Reshape(k, split)
    kt = Transpose<perm = [0, 2, 3, 1]>(k1)
    v1 = Reshape(v, split)
    v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
    x = MatMul(q2, kt)
"""
MERGE = """
    o = MatMul(p, v2)
    o1 = Transpose<perm = [0, 2, 1, 3]>(o)
    merged = Constant<value_ints = [0, 0, 16]>()
    y = Reshape(o1, merged)
"""
BSD = "float[b, s, 16] q, float[b, t, 16] k, float[b, t, 16] v"
BNSH = "float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 8] v"


# 4 query heads, 2 of keys and values, repeated by an Expand so that neighbours share one
SHARED = """
    qs = Constant<value_ints = [0, 0, 4, 8]>()
    q1 = Reshape(q, qs)
    q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
    ks = Constant<value_ints = [0, 0, 2, 1, 8]>()
    twice = Constant<value_ints = [1, 1, 1, 2, 1]>()
    all = Constant<value_ints = [0, 0, 4, 8]>()
    k1 = Reshape(k, ks)
    k2 = Expand(k1, twice)
    k3 = Reshape(k2, all)
    kt = Transpose<perm = [0, 2, 3, 1]>(k3)
    v1 = Reshape(v, ks)
    v2 = Expand(v1, twice)
    v3 = Reshape(v2, all)
    v4 = Transpose<perm = [0, 2, 1, 3]>(v3)
    x = MatMul(q2, kt)
"""
UNSHARE = """
    o = MatMul(p, v4)
    o1 = Transpose<perm = [0, 2, 1, 3]>(o)
    merged = Constant<value_ints = [0, 0, 32]>()
    y = Reshape(o1, merged)
"""
# From x to m: later keys are hidden
CAUSAL = """
    n = Shape<start = 1, end = 2>(q)
    nn = Concat<axis = 0>(n, n)
    ones = ConstantOfShape<value = float[1] {1}>(nn)
    low = Trilu<upper = 0>(ones)
    seen = Cast<to = 9>(low)
    never = Constant<value_float = -inf>()
    m = Where(seen, x, never)
"""


def read(text: str, opset: int = 17) -> tuple[Model, Block]:
    """The model of a graph `(inputs) => (outputs) { nodes }`, and its one block."""
    header = f'<ir_version: {8 if opset < 19 else 10}, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = loaded(parser.parse_model(f"{header} g {text}"))
    return model, only_block(model)


def packed(logits: str = "p = Softmax(x)", more: str = "", opset: int = 17) -> tuple[Model, Block]:
    """Attention from BSD to BSD, with `logits` from x to p and `more` inputs."""
    inputs = f"{BSD}{', ' if more else ''}{more}"
    return read(f"({inputs}) => (float[b, s, 16] y) {{ {SPLIT} {logits} {MERGE} }}", opset)


def unpacked(logits: str = "p = Softmax(x)", more: str = "", opset: int = 17, qkv: str = BNSH) -> tuple[Model, Block]:
    """Attention from BNSH to BNSH, with `logits` from x to p and `more` inputs."""
    inputs = f"{qkv}{', ' if more else ''}{more}"
    kt = "kt = Transpose<perm = [0, 1, 3, 2]>(k)"
    return read(
        f"({inputs}) => (float[b, 2, s, 8] y) {{ {kt} x = MatMul(q, kt) {logits} y = MatMul(p, v) }}", opset
    )  # fmt: skip


def grouped(
    logits: str = "p = Softmax(x)", more: str = "", opset: int = 17, dims: str = "b, s", repeat: str = SHARED
) -> tuple[Model, Block]:
    """Attention of 4 query heads to 2 key heads from BSD to BSD; `dims` are those of batch and positions."""
    inputs = f"float[{dims}, 32] q, float[{dims}, 16] k, float[{dims}, 16] v{', ' if more else ''}{more}"
    return read(f"({inputs}) => (float[{dims}, 32] y) {{ {repeat} {logits} {UNSHARE} }}", opset)


def fused(model: Model, block: Block, wish: str) -> Model:
    """`model` with its block as that target."""
    choice = choose(model, block, wish)
    assert choice.obstacles == ()
    return apply(model, [block], Plan(model.digest).with_fusion(block, choice.target))


def codes(model: Model, block: Block, wish: str) -> list[str]:
    """The codes of what keeps the target from expressing the block."""
    return [obstacle.code for obstacle in choose(model, block, wish).obstacles]


def written(source: Model, result: Model) -> list[str]:
    """The nodes that `result` has and `source` has not, each as "%1 = Transpose(q) perm=[0, 2, 1, 3]"."""
    names: dict[str, str] = {}
    for graph in result.ir.graphs():
        for name, value in graph.initializers.items():
            if not source.has_value(name) and value.const_value is not None:
                names[name] = str(value.const_value.numpy().tolist())
    lines = []
    for node in result.nodes:
        if not any(key.startswith("explorer.") for key in node.metadata_props):
            continue
        inputs = ", ".join(
            "-" if value is None else names.get(value.name or "", value.name or "") for value in node.inputs
        )
        output = node.outputs[0].name or ""
        if not source.has_value(output):
            names[output] = f"%{len(lines) + 1}"
        attributes = "".join(f" {name}={_brief(found.value)}" for name, found in node.attributes.items())
        lines.append(f"{names.get(output, output)} = {node.op_type}({inputs}){attributes}")
    return lines


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def results(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output on the CPU."""
    return run_on_cpu(serialize(model.ir), feeds)[0]


def random_feeds(model: Model, **sizes: int) -> dict[str, np.ndarray]:
    """Random inputs, with these sizes for the model's symbols; booleans are mostly true, and so is each first key."""
    rng, feeds = np.random.default_rng(0), {}
    for value in model.ir.graph.inputs:
        shape = [sizes[str(dim)] if isinstance(dim, str) else dim for dim in model.shape(value) or ()]
        dtype = model.dtype(value)
        if dtype == ir.DataType.BOOL:
            feeds[value.name or ""] = (rng.random(shape) < 0.7) | (np.arange(shape[-1]) == 0)
        else:
            assert dtype is not None
            feeds[value.name or ""] = rng.standard_normal(shape).astype(dtype.numpy())
    return feeds


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, added: Any = 0.0) -> np.ndarray:
    """softmax(scale·QKᵀ + added)·V of BNSH in float64, each key head for as many query heads as there are."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), repeats, axis=1) for x in (k, v))
    x = scale * q.astype(np.float64) @ k.swapaxes(-1, -2) + added
    weights = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


def heads(x: np.ndarray, count: int) -> np.ndarray:
    """BSD as BNSH."""
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def side_by_side(x: np.ndarray) -> np.ndarray:
    """BNSH as BSD."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
