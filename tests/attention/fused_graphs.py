"""Models of one operator that already is attention, and what a block says computed in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from explorer.attention import Block, Operand, recognise
from explorer.model import load

B, S, T, N, H, V = 2, 5, 7, 4, 8, 8
RNG = np.random.default_rng(0)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass
class Fused:
    """A model of one node: its inputs by name in the node's order ("" for one left out), and its attributes."""

    op: str
    domain: str
    inputs: dict[str, np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    before: list[onnx.NodeProto] = field(default_factory=list)
    names: tuple[str, ...] = ()
    """What the node reads; () for all inputs in their order."""
    dynamic: bool = False
    opset: int = 23

    def proto(self) -> onnx.ModelProto:
        given = {name: array for name, array in self.inputs.items() if array is not None}
        read = self.names or tuple(name if array is not None else "" for name, array in self.inputs.items())
        outputs = ["y", *(f"extra{at}" for at in range(1, self.outputs))]
        node = helper.make_node(self.op, read, outputs, name="fused", domain=self.domain, **self.attributes)
        infos = []
        for name, array in given.items():
            dims: list[int | str] = [f"{name}{axis}" if self.dynamic else size for axis, size in enumerate(array.shape)]
            infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims))
        result = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
        graph = helper.make_graph([*self.before, node], "g", infos, result)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def block(self, folder: Path) -> Block:
        path = folder / "fused.onnx"
        onnx.save(self.proto(), path)
        (block,) = recognise(load(path))
        return block

    def run(self) -> np.ndarray:
        """What ONNX Runtime computes."""
        session = ort.InferenceSession(self.proto().SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {name: array for name, array in self.inputs.items() if array is not None}
        (result,) = session.run(["y"], feeds)
        return result


def meaning(block: Block, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the block says, computed in float64: from the values furthest upstream to the layout of its output."""
    sizes = dict(block.sizes)
    lead = block.batch + block.heads

    def operand(item: Operand | None) -> tuple[np.ndarray, str]:
        assert item is not None
        view = item.source
        array = feeds[view.value].astype(np.float64) * view.scale
        return array.reshape([sizes[letter] for letter in view.letters]), view.letters

    (q, of_q), (k, of_k), (v, of_v) = map(operand, (block.query, block.key, block.value))
    factor = 1.0
    for item in (block.query, block.key):
        factor *= item.source.scale if item else 1.0
    assert block.scale is not None
    logits = np.einsum(f"{of_q},{of_k}->{lead}ST", q, k) * (block.scale / factor)
    if block.softcap is not None:
        logits = block.softcap * np.tanh(logits / block.softcap)
    for term in block.mask.terms:
        letters = "".join(block.term_layout(term))
        array = feeds[term.value].reshape([sizes[x] if x in letters else 1 for x in f"{lead}ST"])
        if term.kind == "additive":
            logits = logits + array
        else:
            logits = np.where(array.astype(bool) == term.keep_when, logits, term.fill)
    if "causal" in block.mask.kind:
        logits = np.where(np.tri(sizes["S"], sizes["T"], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), -1e30))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    assert block.output is not None
    out = np.einsum(f"{lead}ST,{of_v}->{block.output.letters}", weights, v)
    return out.reshape([np.prod([sizes[x] for x in axis], dtype=int) for axis in block.output.layout])


PADDING = np.array([[1] * T, [1] * 4 + [0] * (T - 4)], np.int32)
KEEP = RNG.random((B, 1, S, T)) > 0.4
KEEP[0, 0, 1] = False  # a query that sees no key
MHA, GQA, ORT = "MultiHeadAttention", "GroupQueryAttention", "com.microsoft"


def bsd(**more: Any) -> dict[str, Any]:
    return {"q": rand(B, S, N * H), "k": rand(B, T, N * H), "v": rand(B, T, N * V), **more}


def bnsh(heads: int = N, keys: int = T, size: int = V, **more: Any) -> dict[str, Any]:
    return {"q": rand(B, N, S, H), "k": rand(B, heads, keys, H), "v": rand(B, heads, keys, size), **more}


def repeated() -> Fused:
    """Keys of two heads, repeated for four as exporters write it."""
    nodes = []
    for name in "kv":
        nodes += [
            helper.make_node("Constant", [], [f"{name}_a"], value_ints=[2]),
            helper.make_node("Unsqueeze", [name, f"{name}_a"], [f"{name}_b"]),
            helper.make_node("Constant", [], [f"{name}_c"], value_ints=[B, 2, 2, S, H]),
            helper.make_node("Expand", [f"{name}_b", f"{name}_c"], [f"{name}_d"]),
            helper.make_node("Constant", [], [f"{name}_e"], value_ints=[B, N, S, H]),
            helper.make_node("Reshape", [f"{name}_d", f"{name}_e"], [f"{name}_f"]),
        ]
    return Fused("Attention", "", bnsh(2, S), before=nodes, names=("q", "k_f", "v_f"))


GROUPED = {
    "q": rand(B, S, N * H), "k": rand(B, S, 2 * H), "v": rand(B, S, 2 * H), "past_k": None, "past_v": None,
    "seqlens_k": np.full(B, S - 1, np.int32), "total": np.array(S, np.int32),
}  # fmt: skip
