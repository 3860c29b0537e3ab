"""Attention graphs in many spellings, and what they mean computed independently in float64.

`Meaning` says what a graph computes, `Spelling` how it is written down. `render` writes the graph, `oracle` computes
the meaning with numpy alone: it shares no code with the explorer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Meaning:
    """softmax(scale·QKᵀ + mask)·V over `batch` × `heads` × `rows` queries and `keys` keys of size `head_size`."""

    batch: int = 2
    heads: int = 2
    rows: int = 5
    keys: int = 5
    head_size: int = 8
    scale: float = 0.25
    mask: str = "none"  # none, additive2, additive3, additive4, padding, causal
    half: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Spelling:
    """How the graph is written."""

    scale_at: str = "logits"  # logits, q, k, both, none (only where scale is 1)
    scale_op: str = "Mul"  # Mul, Div
    scale_source: str = "initializer"  # initializer, constant, sqrt
    scale_first: bool = False  # Mul(c, x) rather than Mul(x, c)
    casts: str = "none"  # none, before (Cast then scale), after (scale then Cast)
    two_casts: bool = False  # Softmax → Cast fp32 → Cast fp16
    key: str = "transpose"  # transpose (from BNSH), direct (one Transpose from BSNH), native (BNHS input)
    query: str = "bsd"  # bsd (Reshape, Transpose), bnsh (an input)
    merge: str = "reshape"  # reshape, transpose (no Reshape after it), none
    guard: bool = False  # Identity and Dropout around Softmax
    mask_first: bool = False  # Add(mask, x) rather than Add(x, mask)
    dynamic: bool = True


class Writer:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        output = f"v{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{op}_{self.count}", **attributes))
        return output

    def const(self, array: np.ndarray, as_node: bool = False) -> str:
        if as_node:
            return self.add("Constant", value=numpy_helper.from_array(array))
        self.count += 1
        self.initializers.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"


def render(meaning: Meaning, spelling: Spelling = Spelling()) -> onnx.ModelProto:  # frozen
    """The graph of `meaning` in `spelling`: inputs q, k, v (and mask), output y."""
    m, s, w = meaning, spelling, Writer()
    data, wide = (np.float16, np.float32) if m.half else (np.float32, np.float32)
    element = TensorProto.FLOAT16 if m.half else TensorProto.FLOAT
    hidden = m.heads * m.head_size
    rows, keys = ("rows", "keys") if s.dynamic else (m.rows, m.keys)
    if m.rows == m.keys:
        keys = rows
    batch = "batch" if s.dynamic else m.batch
    heads_shape = w.const(np.array([0, 0, m.heads, m.head_size]))
    inputs = {}

    def operand(name: str, length: object, layout: str) -> str:
        shapes = {
            "bsd": [batch, length, hidden],
            "bnsh": [batch, m.heads, length, m.head_size],
            "bnhs": [batch, m.heads, m.head_size, length],
        }
        inputs[name] = helper.make_tensor_value_info(name, element, shapes[layout])
        return name

    def factor(at: np.dtype) -> tuple[str, str]:
        """(op, constant) that multiply by the scale once, or by its root if it is split."""
        number = math.sqrt(m.scale) if s.scale_at == "both" else m.scale
        number = 1 / number if s.scale_op == "Div" else number
        if s.scale_source == "sqrt":
            return s.scale_op, w.add("Sqrt", w.const(np.array(number**2, at), as_node=True))
        return s.scale_op, w.const(np.array(number, at), as_node=s.scale_source == "constant")

    def scaled(value: str, at: np.dtype) -> str:
        op, constant = factor(at)
        return w.add(op, *((constant, value) if s.scale_first and op == "Mul" else (value, constant)))

    q = operand("q", rows, s.query)
    if s.query == "bsd":
        q = w.add("Transpose", w.add("Reshape", q, heads_shape), perm=[0, 2, 1, 3])
    if s.key == "native":
        k = operand("k", keys, "bnhs")
    else:
        k = w.add("Reshape", operand("k", keys, "bsd"), heads_shape)
        k = w.add("Transpose", k, perm=[0, 2, 3, 1] if s.key == "direct" else [0, 2, 1, 3])
    if s.scale_at in ("k", "both"):
        k = scaled(k, data)
    if s.key == "transpose":
        k = w.add("Transpose", k, perm=[0, 1, 3, 2])
    v = w.add("Transpose", w.add("Reshape", operand("v", keys, "bsd"), heads_shape), perm=[0, 2, 1, 3])
    if s.scale_at in ("q", "both"):
        q = scaled(q, data)

    x = w.add("MatMul", q, k)
    logits_type = data
    if s.casts == "before":
        x, logits_type = w.add("Cast", x, to=TensorProto.FLOAT), wide
    if s.scale_at == "logits":
        x = scaled(x, logits_type)
    if s.casts == "after":
        x, logits_type = w.add("Cast", x, to=TensorProto.FLOAT), wide
    x = _masked(m, s, w, x, logits_type, inputs, (batch, rows, keys))
    if s.guard:
        x = w.add("Identity", x)
    x = w.add("Softmax", x, axis=-1)
    if s.guard:
        x = w.add("Dropout", x)
    if s.two_casts:
        x = w.add("Cast", x, to=TensorProto.FLOAT)
    if m.half and s.casts != "none":
        x = w.add("Cast", x, to=TensorProto.FLOAT16)
    x = w.add("MatMul", x, v)
    if s.merge != "none":
        x = w.add("Transpose", x, perm=[0, 2, 1, 3])
    if s.merge == "reshape":
        x = w.add("Reshape", x, w.const(np.array([0, 0, hidden])))
    w.add("Identity", x)
    w.nodes[-1].output[0] = "y"
    out = {
        "reshape": [batch, rows, hidden],
        "transpose": [batch, rows, m.heads, m.head_size],
        "none": [batch, m.heads, rows, m.head_size],
    }
    graph = helper.make_graph(
        w.nodes,
        "attention",
        list(inputs.values()),
        [helper.make_tensor_value_info("y", element, out[s.merge])],
        w.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _masked(m, s, w, x, dtype, inputs, dims) -> str:
    batch, rows, keys = dims
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if m.mask == "none":
        return x
    if m.mask == "causal":
        triangle = np.tri(16, dtype=bool).reshape(1, 1, 16, 16)
        zero, one = w.const(np.array([0])), w.const(np.array(1))
        length = w.add("Unsqueeze", w.add("Gather", w.add("Shape", "q"), w.const(np.array(_rows_axis(s)))), zero)
        value = w.const(triangle)
        for axis in (2, 3):
            start, at = w.const(np.array([0])), w.const(np.array([axis]))
            value = w.add("Slice", value, start, length, at, w.add("Unsqueeze", one, zero))
        return w.add("Where", value, x, w.const(np.array(np.finfo(dtype).min, dtype)))
    shapes = {
        "additive2": [rows, keys],
        "additive3": [1, rows, keys],
        "additive4": [batch, m.heads, rows, keys],
        "padding": [batch, 1, 1, keys],
    }
    inputs["mask"] = helper.make_tensor_value_info("mask", element, shapes[m.mask])
    return w.add("Add", *(("mask", x) if s.mask_first else (x, "mask")))


def _rows_axis(s: Spelling) -> int:
    return 1 if s.query == "bsd" else 2


def feeds_for(meaning: Meaning, spelling: Spelling = Spelling()) -> dict[str, np.ndarray]:  # frozen
    """Random inputs for the rendered graph, with logits large enough that a wrong scale or mask shows."""
    m, rng = meaning, np.random.default_rng(meaning.seed)
    data = np.float16 if m.half else np.float32
    gain = 1.5 / math.sqrt(m.scale * math.sqrt(m.head_size))
    q = rng.standard_normal((m.batch, m.heads, m.rows, m.head_size)) * gain
    k = rng.standard_normal((m.batch, m.heads, m.keys, m.head_size)) * gain
    v = rng.standard_normal((m.batch, m.heads, m.keys, m.head_size))
    feeds = {
        "q": _bsd(q) if spelling.query == "bsd" else q,
        "k": k.transpose(0, 1, 3, 2) if spelling.key == "native" else _bsd(k),
        "v": _bsd(v),
    }
    feeds = {name: array.astype(data) for name, array in feeds.items()}
    if m.mask not in ("none", "causal"):
        wide = np.float32 if spelling.casts != "none" else data
        shape = {
            "additive2": (m.rows, m.keys),
            "additive3": (1, m.rows, m.keys),
            "additive4": (m.batch, m.heads, m.rows, m.keys),
            "padding": (m.batch, 1, 1, m.keys),
        }[m.mask]
        mask = rng.standard_normal(shape) * 2
        if m.mask == "padding":
            mask = np.where(np.arange(m.keys) < max(m.keys - 2, 1), 0.0, -1e4 if wide == np.float16 else -3e38)
            mask = np.broadcast_to(mask, shape)
        feeds["mask"] = mask.astype(wide)
    return feeds


def oracle(meaning: Meaning, spelling: Spelling, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the rendered graph means, in float64."""
    m = meaning
    wide = {name: array.astype(np.float64) for name, array in feeds.items()}
    q = wide["q"] if spelling.query == "bnsh" else _split(wide["q"], m.heads)
    k = wide["k"].transpose(0, 1, 3, 2) if spelling.key == "native" else _split(wide["k"], m.heads)
    logits = m.scale * np.einsum("bnsh,bnth->bnst", q, k) + wide.get("mask", 0.0)
    if m.mask == "causal":
        logits = np.where(np.tri(m.rows, m.keys, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bnst,bnth->bnsh", weights, _split(wide["v"], m.heads))
    if spelling.merge == "none":
        return out
    out = out.transpose(0, 2, 1, 3)
    return out if spelling.merge == "transpose" else out.reshape(m.batch, m.rows, -1)


def _bsd(x: np.ndarray) -> np.ndarray:
    b, n, s, h = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, s, n * h)


def _split(x: np.ndarray, heads: int) -> np.ndarray:
    b, s, d = x.shape
    return x.reshape(b, s, heads, d // heads).transpose(0, 2, 1, 3)


def run_on_cpu(model: bytes | str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model in this process with ONNX Runtime alone, not through the explorer."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
