"""The graph of a model without its weights, for tools that look at structure and types alone."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir

from explorer.model.external import external_tensors, is_external, read_contents
from explorer.model.survey import all_tensors, short_domain, size_bytes

# Checking and inference read the contents of small integer tensors (Reshape targets, axes, pads), never of weights.
_KEEP_BYTES = 1024


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` in which every weight, stored or a Constant, is a graph input of the same name and type.

    Those in bodies and functions stay.
    """
    bare = onnx.ModelProto(ir_version=proto.ir_version)
    bare.opset_import.MergeFrom(proto.opset_import)
    bare.functions.MergeFrom(proto.functions)
    graph = bare.graph
    graph.name = proto.graph.name
    for field in ("input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).MergeFrom(getattr(proto.graph, field))
    weights = {}
    for tensor in proto.graph.initializer:
        if _is_weight(tensor):
            weights[tensor.name] = tensor
        else:
            graph.initializer.append(tensor)
    for node in proto.graph.node:
        held = _held(node)
        if held is not None and _is_weight(held):
            weights[node.output[0]] = held
        else:
            graph.node.append(node)
    inputs = {value.name for value in proto.graph.input}
    for name, tensor in weights.items():
        if name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return bare


def skeleton_of(model: ir.Model) -> onnx.ModelProto:
    """The same for an onnx_ir model, which is left as it is; what is small is read from its file."""
    graph = model.graph
    stored = [(value, value.const_value) for value in graph.initializers.values()]
    kept = [value for value, tensor in stored if tensor is not None and tensor.nbytes <= _KEEP_BYTES]
    given = {value.name for value in (*graph.inputs, *kept)}
    weights = [value for value, _ in stored if value.name not in given]
    nodes = []
    for node in graph:
        tensor = _constant(node)
        if tensor is None or tensor.nbytes <= _KEEP_BYTES:
            nodes.append(node)
        else:
            type_ = ir.TensorType(ir.DataType(tensor.dtype))
            weights.append(ir.Value(name=node.outputs[0].name, type=type_, shape=ir.Shape(tensor.shape.numpy())))
    view = ir.GraphView((*graph.inputs, *weights), graph.outputs, nodes=nodes, initializers=kept, name=graph.name)
    bare = onnx.ModelProto(ir_version=model.ir_version)
    # A view is all that serialization asks for, but says so of itself in other types
    ir.serde.serialize_graph_into(bare.graph, cast(ir.GraphViewProtocol, view))
    bare.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in model.opset_imports.items())
    bare.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    folder = next((Path(tensor.base_dir) for tensor in external_tensors(model)), None)
    if folder is not None:
        for tensor in all_tensors(bare):
            if is_external(tensor) and size_bytes(tensor) <= _KEEP_BYTES:
                read_contents(tensor, folder)
    return bare


def _held(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant."""
    if node.op_type == "Constant" and not short_domain(node.domain) and node.output[0]:
        return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    return None


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The same for an onnx_ir node."""
    if node.op_type == "Constant" and not short_domain(node.domain) and "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    return None


def _is_weight(tensor: onnx.TensorProto) -> bool:
    # counted by type and shape, since protobuf writes a message to count its bytes
    return is_external(tensor) or (size_bytes(tensor) or tensor.ByteSize()) > _KEEP_BYTES
