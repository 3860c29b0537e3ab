"""Input shapes that the user gives in place of those in the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from explorer.errors import ModelError
from explorer.model.dims import Dim, normal, substitute, symbols
from explorer.model.survey import graphs

Shapes = Mapping[str, Sequence[int]]
"""The size of every dimension, by the name of the input."""


def digest_with(digest: str, shapes: Shapes) -> str:
    """The digest of a file that is read with these input shapes.

    What is found then holds under an assumption that the file does not make, so a plan made from it must not pass for
    one of the file itself, nor for one made with other shapes.
    """
    canonical = json.dumps({name: [int(size) for size in shape] for name, shape in shapes.items()}, sort_keys=True)
    return hashlib.sha256(f"{digest} {canonical}".encode()).hexdigest()


def give_shapes(proto: onnx.ModelProto, shapes: Shapes, path: Path) -> str:
    """Let the inputs of `proto` declare `shapes`, in place; a sentence that says what is assumed.

    A symbol of the file has the size given for it wherever it occurs, in other inputs and in outputs, too. ModelError
    if there is no such input, the number of dimensions or a size that the file fixes is another, or a symbol would have
    two sizes.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = {info.name: info.type for info in proto.graph.input if info.name not in weights}
    declared = {name: _words(type_) for name, type_ in inputs.items()}
    known = f"the inputs of {path} are " + ", ".join(f"{name} {words}" for name, words in declared.items())
    pairs: list[tuple[str, Dim | None, int]] = []
    for name, shape in shapes.items():
        if name not in inputs or not inputs[name].HasField("tensor_type"):
            raise ModelError(f"expected shapes of inputs, found one of {name!r}: {known}")
        if not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
            raise ModelError(f"expected a positive size for each dimension of {name!r}, found {list(shape)}: {known}")
        tensor = inputs[name].tensor_type
        if tensor.HasField("shape") and len(tensor.shape.dim) != len(shape):
            raise ModelError(
                f"expected {len(tensor.shape.dim)} dimensions of {name!r}, found {len(shape)} in {list(shape)}: {known}"
            )
        pairs += [(name, _dim(dim), int(size)) for dim, size in zip(tensor.shape.dim, shape, strict=False)]
    sizes = {dim: size for _, dim, size in pairs if isinstance(dim, str) and symbols(dim) == {dim}}
    for name, dim, size in pairs:
        elsewhere = None if dim is None else substitute(dim, sizes)
        if isinstance(elsewhere, int) and elsewhere != size:
            raise ModelError(f"expected {elsewhere} for dimension {dim} of {name!r}, found {size}: {known}")
    _substitute(proto.graph, sizes)
    for name, shape in shapes.items():
        dims = [onnx.TensorShapeProto.Dimension(dim_value=int(size)) for size in shape]
        inputs[name].tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    given = ", ".join(f"{name} {_words(inputs[name])} for {declared[name]}" for name in shapes)
    return f"Read with the input shapes given: {given}; what is found holds for these."


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return normal(dim.dim_param) if dim.dim_param else None


def _words(type_: onnx.TypeProto) -> str:
    if not type_.tensor_type.HasField("shape"):
        return "[…]"
    dims = (_dim(dim) for dim in type_.tensor_type.shape.dim)
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"


def _substitute(outer: onnx.GraphProto, sizes: Mapping[str, Dim]) -> None:
    for graph in graphs(outer):
        for info in (*graph.input, *graph.output, *graph.value_info):
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param and (size := substitute(old := normal(dim.dim_param), sizes)) != old:
                    if isinstance(size, int):
                        dim.dim_value = size
                    else:
                        dim.dim_param = size
