"""The end-to-end truth: the original model in float64, by ONNX's reference evaluator. Runs in the worker process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from explorer.errors import ModelError
from explorer.runtime import arrays
from explorer.runtime.context import Context

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_DOUBLE = onnx.TensorProto.DOUBLE


class Erf(OpRun):
    """The reference evaluator's Erf rounds to float32; this one does not."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=["d"])(x) if x.size else x,)


class Gelu(OpRun):
    """The reference evaluator takes Gelu apart with float32 constants; this one does not."""

    op_domain = ""

    def _run(self, x: np.ndarray, approximate: str | None = None) -> tuple[np.ndarray]:
        if approximate == "tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return (0.5 * x * (1 + np.tanh(inner)),)
        (erf,) = Erf._run(self, x / math.sqrt(2))  # type: ignore[arg-type]
        return (0.5 * x * (1 + erf),)


def float64_outputs(
    context: Context, model: str, feeds_npz: str, out_npz: str, data_folder: str | None = None
) -> dict[str, Any]:
    """Run the model at the path `model` in float64 on the feeds and write all its outputs to `out_npz`.

    Every float tensor, weight and Cast becomes float64; the rounded weights of an fp16 model are kept as they are, so
    this is the very function that the file describes, computed exactly. ModelError if it has an operator that the
    reference evaluator does not know.
    """
    context.progress(0.0, "computing the truth in float64")
    proto = onnx.load(model, load_external_data=False)
    if data_folder is not None or any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        onnx.load_external_data_for_model(proto, data_folder or str(Path(model).parent))
    widen(proto)
    feeds = {
        name: array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in arrays.load(feeds_npz).items()
    }
    try:
        names = [output.name for output in proto.graph.output]
        results = ReferenceEvaluator(proto, new_ops=[Erf, Gelu]).run(names, feeds)
    except Exception as error:  # noqa: BLE001  # whatever the reference evaluator raises, it has no truth to give
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"expected operators that ONNX's reference evaluator can run, found: {reason}") from None
    arrays.save(out_npz, dict(zip(names, map(np.asarray, results), strict=True)))
    return {}


def widen(proto: onnx.ModelProto) -> None:
    """Turn every float type in `proto` into float64, in place."""
    for graph in _graphs(proto.graph):
        del graph.value_info[:]
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in _FLOATS:
                info.type.tensor_type.elem_type = _DOUBLE
        for node in graph.node:
            _widen_node(node)
    for function in proto.functions:
        for node in function.node:
            _widen_node(node)


def _widen_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif attribute.name in ("to", "dtype") and attribute.i in _FLOATS:
            attribute.i = _DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            widened = onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.array(numbers, np.float64)))
            attribute.CopyFrom(widened)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
