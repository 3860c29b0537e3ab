"""Tensor types as plain values, and ONNX shape inference that never touches the weights."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from explorer.model.skeleton import skeleton

Dim = int | str | None
"""A dimension: its size, the symbol that stands for it, or None when nothing is known."""


def dtype_name(dtype: ir.DataType | None) -> str:
    """The field's name of an element type ("float32", where ONNX says FLOAT); "" if unknown."""
    if dtype is None:
        return ""
    return {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}.get(dtype, dtype.name.lower())


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of a tensor. `shape` is None when the rank is unknown."""

    dtype: ir.DataType | None
    shape: tuple[Dim, ...] | None

    @staticmethod
    def of(value: ir.Value) -> TensorType | None:
        """The type that an onnx_ir value itself carries."""
        if value.dtype is None and value.shape is None:
            return None
        shape = value.shape
        dims = None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)
        return TensorType(value.dtype, dims)

    def __str__(self) -> str:
        dtype = dtype_name(self.dtype) or "?"
        if self.shape is None:
            return dtype
        return f"{dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def infer_types(proto: onnx.ModelProto) -> tuple[dict[str, TensorType], str]:
    """Types of all values of `proto` by name, and a sentence if ONNX shape inference failed (else "").

    The weights are left out of what inference sees, so the cost grows with the graph, not with the parameters.
    """
    note = ""
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(proto), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        inferred = proto
        note = f"ONNX shape inference stopped, so some shapes are unknown: {str(error).strip().splitlines()[0]}"
    types: dict[str, TensorType] = {}
    _collect(inferred.graph, types)
    return types, note


def _collect(graph: onnx.GraphProto, types: dict[str, TensorType]) -> None:
    for tensor in graph.initializer:
        types.setdefault(tensor.name, TensorType(ir.DataType(tensor.data_type), tuple(tensor.dims)))
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.type.HasField("tensor_type"):
            types.setdefault(info.name, _tensor_type(info.type.tensor_type))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, types)


def _tensor_type(proto: onnx.TypeProto.Tensor) -> TensorType:
    dtype = ir.DataType(proto.elem_type) if proto.elem_type else None
    if not proto.HasField("shape"):
        return TensorType(dtype, None)
    dims: list[Dim] = []
    for dim in proto.shape.dim:
        # Inference names a dimension it cannot follow ("unk__3"): equal names mean equal sizes there too.
        dims.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None)
    return TensorType(dtype, tuple(dims))
