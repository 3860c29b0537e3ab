"""The graph of a model without its weights, for tools that look at structure and types alone."""

from __future__ import annotations

from typing import cast

import onnx
import onnx_ir as ir

# Checking and inference read the contents of small integer tensors (Reshape targets, axes, pads), never of weights.
_KEEP_BYTES = 1024


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` in which every weight is a graph input of the same name and type."""
    bare = onnx.ModelProto(ir_version=proto.ir_version)
    bare.opset_import.MergeFrom(proto.opset_import)
    bare.functions.MergeFrom(proto.functions)
    graph = bare.graph
    graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).MergeFrom(getattr(proto.graph, field))
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= _KEEP_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def skeleton_of(model: ir.Model) -> onnx.ModelProto:
    """The same for an onnx_ir model, which is left as it is."""
    graph = model.graph
    stored = [(value, value.const_value) for value in graph.initializers.values()]
    kept = [value for value, tensor in stored if tensor is not None and _is_small(tensor)]
    given = {value.name for value in (*graph.inputs, *kept)}
    weights = [value for value, _ in stored if value.name not in given]
    view = ir.GraphView(
        (*graph.inputs, *weights), graph.outputs, nodes=tuple(graph), initializers=kept, name=graph.name
    )
    # A view is all that serialization asks for, but says so of itself in other types
    bare = onnx.ModelProto(ir_version=model.ir_version, graph=ir.to_proto(cast(ir.GraphViewProtocol, view)))
    bare.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in model.opset_imports.items())
    bare.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    return bare


def _is_small(tensor: ir.TensorProtocol) -> bool:
    return not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= _KEEP_BYTES
