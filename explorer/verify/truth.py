"""The end-to-end truth: the original in float64 by ONNX's reference evaluator, or in float32 by ONNX Runtime.

Runs in the worker process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from explorer.errors import ExplorerError
from explorer.model.external import read_external_data
from explorer.runtime import arrays, sessions
from explorer.runtime.context import Context
from explorer.verify.operators import OPERATORS

_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
_NARROWER: Mapping[int, frozenset[int]] = {
    _FLOAT: frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)),
    _DOUBLE: frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, _FLOAT)),
}
_NUMPY: Mapping[int, np.dtype[np.floating[Any]]] = {_FLOAT: np.dtype(np.float32), _DOUBLE: np.dtype(np.float64)}
# Weights of a widened model above this size go into a file of their own: a protobuf holds 2 GB.
_INLINE_BYTES = 1 << 30


def float64_outputs(
    context: Context,
    model: str,
    feeds_npz: Sequence[str],
    out_npz: Sequence[str],
    data_folder: str | None = None,
    budget_s: float = math.inf,
) -> list[str | None]:
    """Run the model at the path `model` in float64 on each feeds file and write all its outputs to its out file.

    Every float tensor, weight and Cast becomes float64; the rounded weights of an fp16 model are kept as they are, so
    this is the very function that the file describes, computed exactly. Returns for each run why there is no output
    (an operator that the reference evaluator does not know, say), or None; no run is begun once `budget_s` are over.
    """
    context.progress(0.0, "computing the truth in float64")
    proto = _read(model, data_folder)
    widen(proto)
    names = [output.name for output in proto.graph.output]
    reasons: list[str | None] = []
    evaluator = None
    start = time.monotonic()
    for given, out in zip(feeds_npz, out_npz, strict=True):
        if time.monotonic() > start + budget_s:
            reasons.append("ONNX's reference evaluator is too slow to run it on more than the first inputs")
            continue
        try:
            evaluator = evaluator or ReferenceEvaluator(proto, new_ops=list(OPERATORS))
            results = evaluator.run(names, _widened(arrays.load(given), _DOUBLE))
            arrays.save(out, dict(zip(names, map(np.asarray, results), strict=True)))
            reasons.append(None)
        except Exception as error:  # noqa: BLE001  # whatever the evaluator raises, it has no truth to give
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reasons.append(f"ONNX's reference evaluator cannot run it: {reason}")
    return reasons


def float32_outputs(
    context: Context, model: str, feeds_npz: Sequence[str], out_npz: Sequence[str], data_folder: str | None = None
) -> list[str | None]:
    """The same in float32 by ONNX Runtime on the CPU, not optimised: for a model of narrower types."""
    context.progress(0.0, "running the original in float32")
    proto = _read(model, data_folder)
    widen(proto, _FLOAT)
    path = context.folder / "float32.onnx"
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > _INLINE_BYTES
    onnx.save_model(proto, path, save_as_external_data=large, location=f"{path.name}.data")
    reasons: list[str | None] = []
    try:
        session = sessions.Session(sessions.SessionSpec(str(path), "cpu", optimization="disabled"))
        for given, out in zip(feeds_npz, out_npz, strict=True):
            try:
                arrays.save(out, session.run(_widened(arrays.load(given), _FLOAT)))
                reasons.append(None)
            except ExplorerError as error:
                reasons.append(str(error))
    except ExplorerError as error:
        return [str(error)] * len(feeds_npz)
    finally:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
    return reasons


def widen(proto: onnx.ModelProto, to: int = _DOUBLE) -> None:
    """Turn every float type in `proto` narrower than `to` (FLOAT or DOUBLE) into that, in place."""
    for graph in _graphs(proto.graph):
        del graph.value_info[:]
        for tensor in graph.initializer:
            _widen_tensor(tensor, to)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in _NARROWER[to]:
                info.type.tensor_type.elem_type = to
        for node in graph.node:
            _widen_node(node, to)
    for function in proto.functions:
        for node in function.node:
            _widen_node(node, to)


def _read(model: str, data_folder: str | None) -> onnx.ModelProto:
    proto = onnx.load(model, load_external_data=False)
    read_external_data(proto, Path(data_folder or Path(model).parent))
    return proto


def _widened(feeds: dict[str, np.ndarray], to: int) -> dict[str, np.ndarray]:
    wide = _NUMPY[to]
    return {
        name: array.astype(wide) if array.dtype.kind == "f" and array.dtype.itemsize < wide.itemsize else array
        for name, array in feeds.items()
    }


def _widen_node(node: onnx.NodeProto, to: int) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:  # then it is a float32
        node.attribute.append(
            onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1, np.float32)))
        )
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen_tensor(attribute.t, to)
        elif attribute.name in ("to", "dtype") and attribute.i in _NARROWER[to]:
            attribute.i = to
        elif to == _DOUBLE and node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            widened = onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.array(numbers, np.float64)))
            attribute.CopyFrom(widened)


def _widen_tensor(tensor: onnx.TensorProto, to: int) -> None:
    if tensor.data_type in _NARROWER[to]:
        array = onnx.numpy_helper.to_array(tensor).astype(_NUMPY[to])
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
