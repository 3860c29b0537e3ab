"""The same graph somewhere else: in a branch, in the body of a loop, in a function; or in another element type."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def in_branch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes in the branch that the input "flag" chooses; the other branch returns q."""
    y = proto.graph.output[0]
    then = helper.make_graph(proto.graph.node, "then", [], [y], proto.graph.initializer)
    other = helper.make_graph([helper.make_node("Identity", ["q"], ["other"])], "else", [], [_like(y, "other")])
    node = helper.make_node("If", ["flag"], ["result"], name="choice", then_branch=then, else_branch=other)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    return _around(proto, [node], [flag], _like(y, "result"))


def in_loop(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes in the body of a loop that runs as often as the input "turns" says; initializers stay outside."""
    y = proto.graph.output[0]
    body = helper.make_graph(
        [*proto.graph.node, helper.make_node("Identity", ["again"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            _like(y, "before"),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), y],
    )
    nodes = [
        helper.make_node("Constant", [], ["go"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Loop", ["turns", "go", "q"], ["result"], name="turns", body=body),
    ]
    turns = helper.make_tensor_value_info("turns", TensorProto.INT64, [])
    result = _around(proto, nodes, [turns], _like(y, "result"))
    result.graph.initializer.extend(proto.graph.initializer)
    return result


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes in a function of the model, which its graph calls; initializers are arguments."""
    given = [value.name for value in (*proto.graph.input, *proto.graph.initializer)]
    results = [value.name for value in proto.graph.output]
    function = helper.make_function("my.layers", "Attention", given, results, proto.graph.node, proto.opset_import)
    result = copy.deepcopy(proto)
    del result.graph.node[:]
    result.graph.node.append(helper.make_node("Attention", given, results, domain="my.layers", name="call"))
    result.functions.append(function)
    result.opset_import.add(domain="my.layers", version=1)
    return result


def in_bfloat16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All fp16 become bf16."""
    result = copy.deepcopy(proto)
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    attributes = [attribute for node in result.graph.node for attribute in node.attribute]
    for tensor in (*result.graph.initializer, *(a.t for a in attributes if a.type == onnx.AttributeProto.TENSOR)):
        if tensor.data_type == TensorProto.FLOAT16:
            numbers = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, numbers.shape, numbers.flatten()))
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.BFLOAT16
    return result


def _like(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name, type=value.type)


def _around(
    proto: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "outer", [*proto.graph.input, *inputs], [output])
    return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
