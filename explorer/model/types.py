"""Tensor types as plain values, and ONNX shape inference that never touches the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from explorer.model.dims import Dim, is_known, normal, symbol, symbols
from explorer.model.skeleton import skeleton


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
        if value.shape is None:
            return TensorType(value.dtype, None)
        dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
        name = value.name or ""
        return TensorType(
            value.dtype,
            tuple(
                dim if isinstance(dim, int) else normal(dim) if dim else unknown(f"{name}.{axis}")
                for axis, dim in enumerate(dims)
            ),
        )

    def __str__(self) -> str:
        dtype = dtype_name(self.dtype) or "?"
        if self.shape is None:
            return dtype
        return f"{dtype}[{', '.join(str(dim) if is_known(dim) else '?' for dim in self.shape)}]"


def unknown(name: str) -> Dim:
    """The size called `name` that nobody knows."""
    return "?" + symbol(name)


def infer_types(proto: onnx.ModelProto) -> tuple[dict[str, TensorType], str]:
    """What the file and ONNX inference say of all values of `proto`, by name, and a sentence if the latter failed.

    The weights are left out of what inference sees, so the cost grows with the graph, not with the parameters. A
    dimension that an input leaves open is a symbol named after the input and its axis ("input_ids.0"). Names that are
    not those of an input's dimension were made up by an exporter or by inference: they are unknown sizes.
    """
    note = ""
    bare = skeleton(proto)
    given = {value.name for value in proto.graph.input}
    for value in bare.graph.input:
        if value.name in given:
            _name_dims(value)
    inputs = [value for value in bare.graph.input if value.name in given]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        inferred = proto
        note = f"ONNX shape inference stopped, so some shapes are unknown: {str(error).strip().splitlines()[0]}"
    reader = _Reader(inputs)
    reader.read(inferred.graph)
    return reader.types, note


def _name_dims(value: onnx.ValueInfoProto) -> None:
    """Give a name to each dimension of an input that has neither a name nor a size."""
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        text = dim.dim_param.strip()
        size = normal(text) if text and not text.startswith("?") else -1
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            continue
        if isinstance(size, str):
            dim.dim_param = size
        elif size >= 0:
            dim.dim_value = size
        else:
            dim.dim_param = symbol(f"{value.name}.{axis}")


class _Reader:
    """Collects types; knows which symbols the inputs define."""

    def __init__(self, inputs: Iterable[onnx.ValueInfoProto]) -> None:
        self.types: dict[str, TensorType] = {}
        self._inputs = {info.name: _tensor_type(info.type.tensor_type, normal) for info in inputs}
        shapes = (known.shape or () for known in self._inputs.values())
        self._symbols = frozenset(name for shape in shapes for dim in shape for name in symbols(dim))
        self._read: dict[str, Dim] = {}

    def read(self, graph: onnx.GraphProto) -> None:
        """Collect the types of a graph and of the bodies inside it."""
        for tensor in graph.initializer:
            self.types.setdefault(tensor.name, TensorType(ir.DataType(tensor.data_type), tuple(tensor.dims)))
        for info in (*graph.input, *graph.value_info, *graph.output):
            if info.name in self._inputs:
                self.types[info.name] = self._inputs[info.name]
            elif info.type.HasField("tensor_type"):
                self.types.setdefault(info.name, _tensor_type(info.type.tensor_type, self._dim, info.name))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self.read(attribute.g)

    def _dim(self, text: str) -> Dim:
        """A dimension by its text. Inference names one it cannot follow ("unk__3"): equal names are equal sizes."""
        if text not in self._read:
            dim = normal(text)
            self._read[text] = dim if symbols(dim) <= self._symbols else unknown(text)
        return self._read[text]


def _tensor_type(proto: onnx.TypeProto.Tensor, dim_of: Callable[[str], Dim], name: str = "") -> TensorType:
    dtype = ir.DataType(proto.elem_type) if proto.elem_type else None
    if not proto.HasField("shape"):
        return TensorType(dtype, None)
    dims: list[Dim] = []
    for axis, dim in enumerate(proto.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim_of(dim.dim_param) if dim.dim_param else unknown(f"{name}.{axis}"))
    return TensorType(dtype, tuple(dims))
