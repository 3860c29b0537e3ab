"""Models that the tests of the command line open."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from attention_graphs import Meaning, Spelling, render
from onnx import TensorProto, helper


def two_blocks() -> onnx.ModelProto:
    """Two attention blocks, twice the result of the first being the query of the second."""
    spelling = Spelling(dynamic=False)
    first = onnx.compose.add_prefix(render(Meaning(), spelling), "a_")
    first.graph.node.append(helper.make_node("Add", ["a_y", "a_y"], ["a_sum"], name="a_Sum"))
    first.graph.output[0].name = "a_sum"
    second = onnx.compose.add_prefix(render(Meaning(), spelling), "b_")
    return onnx.compose.merge_models(first, second, io_map=[("a_sum", "b_q")])


def blocked() -> onnx.ModelProto:
    """Attention whose probabilities are a graph output too."""
    proto = render(Meaning(), Spelling(dynamic=False))
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    shape = [2, 2, 5, 5]
    proto.graph.output.append(helper.make_tensor_value_info(softmax.output[0], TensorProto.FLOAT, shape))
    return proto


def no_attention(op: str = "Neg", domain: str = "") -> onnx.ModelProto:
    """One operator."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def renamed(old: str, new: str, proto: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """The model with every node and tensor name that contains `old` changed."""
    proto = render(Meaning(), Spelling(dynamic=False)) if proto is None else proto
    for node in proto.graph.node:
        node.name = node.name.replace(old, new)
        for names in (node.input, node.output):
            names[:] = [name.replace(old, new) for name in names]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.name = value.name.replace(old, new)
    return proto


ROOT = Path(__file__).parents[2]
BLOCK_FIELDS = {
    "id", "label", "anchor", "scope", "status", "fused_as", "num_heads", "kv_num_heads", "head_size", "v_head_size",
    "sizes", "scale", "factor", "mask", "softcap", "nan_guard", "dtype", "softmax_dtype", "layouts", "casts", "nodes",
    "targets", "obstacles", "evidence", "ort_reason",
}  # fmt: skip


def document(outcome, schema: int = 1) -> dict:
    """The one document on stdout."""
    found = json.loads(outcome.out)  # anything before or after it is an error
    assert found["schema"] == schema
    return found
