"""The graph of a model without its weights, for tools that look at structure and types alone."""

from __future__ import annotations

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
    bare = model.clone()
    graph = bare.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > _KEEP_BYTES):
            graph.initializers.pop(name)
            value.const_value = None
            if not value.is_graph_input():
                graph.inputs.append(value)
    proto: onnx.ModelProto = ir.to_proto(bare)
    return proto
