"""What old or careless exporters write, brought into the one form that everyone else here reads.

The meaning stays, and so does the file: only what was read from it is changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from explorer.errors import ModelError
from explorer.model.names import Names, rename
from explorer.model.survey import ORT_DOMAINS, Survey, own_values

# From this IR version on a weight that is listed as an input, too, may be replaced by the caller.
_OVERRIDABLE_SINCE = 4
_MAX_DENSE_ELEMENTS = 1 << 28


def to_one_form(proto: onnx.ModelProto, found: Survey) -> Iterator[str]:
    """Rewrite `proto` in place and keep `found` true; sentences on what a user should know about it.

    ModelError if a sparse tensor does not hold together or is too large when written out.
    """
    yield from _weights_among_inputs(proto)
    for info in (info for graph in found.graphs for info in (*graph.input, *graph.value_info, *graph.output)):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")  # -1: how Paddle and TensorFlow spell an unknown size
            elif not isinstance(dim.dim_param, str):
                dim.ClearField("dim_param")  # no text but bytes, so no name either
    imported = {entry.domain for entry in proto.opset_import}
    for domain in sorted({domain for domain, *_ in found.operators} & ORT_DOMAINS - imported):
        proto.opset_import.add(domain=domain, version=1)  # ORT knows them untold, other tools do not
    if found.sparse:
        for graph in found.graphs:
            _write_out_sparse(graph, found)
        yield "The file's sparse tensors are read as dense ones, as ONNX Runtime does."
    if found.shared_names:
        # A name stands for one value everywhere else: those of a body must not be another graph's, too
        names = Names(own_values(proto.graph))
        rename(proto.graph.node, {}, names.unique)
        found.values = names.taken
    shared = {name for name, count in found.node_names.items() if count > 1}
    if shared:
        for node in (node for graph in found.graphs for node in graph.node if node.name in shared):
            node.name = ""
        yield (
            f"Several nodes of the file are called {min(shared)!r}, which ONNX Runtime may refuse: nodes that share a "
            "name are read as nodes without one."
        )


def _weights_among_inputs(proto: onnx.ModelProto) -> Iterator[str]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    both = sum(info.name in weights for info in proto.graph.input)
    if not both:
        return
    if proto.ir_version >= _OVERRIDABLE_SINCE:
        yield (
            f"{both} of the weights are inputs, too: a caller may replace them, so that nothing is derived from their "
            "values, neither here nor by ONNX Runtime; export the model without keep_initializers_as_inputs."
        )
        return
    inputs = [info for info in proto.graph.input if info.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    yield (
        f"The file is of IR version {proto.ir_version}, which lists every weight as an input: they are read as "
        f"constants, as ONNX Runtime does, and written in IR version {_OVERRIDABLE_SINCE}."
    )
    proto.ir_version = _OVERRIDABLE_SINCE


def _write_out_sparse(graph: onnx.GraphProto, found: Survey) -> None:
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, found))
        found.tensors.append(graph.initializer[-1])
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                attribute.CopyFrom(onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor, found)))
                found.tensors.append(attribute.t)


def _dense(sparse: onnx.SparseTensorProto, found: Survey) -> onnx.TensorProto:
    name, size = sparse.values.name, math.prod(sparse.dims)
    try:
        if size > _MAX_DENSE_ELEMENTS or onnx.TensorProto.EXTERNAL in (
            sparse.values.data_location,
            sparse.indices.data_location,
        ):
            raise ValueError(f"{size} elements, or some in another file")
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        array = np.zeros(size, values.dtype)
        array[indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))] = values
        return numpy_helper.from_array(array.reshape(tuple(sparse.dims)), name)
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise ModelError(
            f"expected a sparse tensor {name!r} that fits its shape in {found.path}, found: {error}: export the model "
            "with dense tensors"
        ) from None
