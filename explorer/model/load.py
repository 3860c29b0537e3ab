"""Read an ONNX file into a `Model`, or say in one sentence why that cannot be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from explorer.errors import ModelError
from explorer.model.model import Model
from explorer.model.types import infer_types

_STANDARD_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"))
_ORT_DOMAINS = frozenset(("com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc"))


def load(path: str | Path) -> Model:
    """Load the ONNX model at `path`. Weights kept in external data files stay there, unread.

    Raises ModelError when the file is missing, not ONNX, truncated or empty, or its external data is missing, too short
    or outside its folder.
    """
    path = Path(path)
    data = _read(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"expected an ONNX model in {path}, found {len(data)} bytes that do not decode as one: "
            "the file is another format, truncated or damaged; export or download it again"
        ) from None
    if not proto.graph.node:
        raise ModelError(f"expected a graph with nodes in {path}, found an empty one: export the model again")
    _check_external_data(proto, path)
    types, note = infer_types(proto)
    notes = [note] if note else []
    notes += _doubts(proto)
    model = _to_ir(proto, path)
    if _sort(model):
        notes.append("The file's nodes were not in execution order; they have been sorted.")
    digest = hashlib.sha256(data).hexdigest()
    return Model(model, path=path.resolve(), digest=digest, types=types, notes=tuple(notes))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"expected an ONNX model at {path}, found no such file: check the path") from None
    except IsADirectoryError:
        raise ModelError(f"expected an ONNX file at {path}, found a folder: name the .onnx file in it") from None
    except OSError as error:
        raise ModelError(f"expected a readable ONNX file at {path}: {error.strerror or error}") from None


def _to_ir(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        model = ir.from_proto(proto)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"expected a valid ONNX graph in {path}, found: {reason[0]}") from None
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    owned = set(model.graph.inputs) | set(model.graph.initializers.values())
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in owned:
                raise ModelError(
                    f"expected every tensor in {path} to come from somewhere, found that node {node.name!r} "
                    f"({node.op_type}) reads {value.name!r}, which nothing produces: export the model again"
                )
    return model


def _sort(model: ir.Model) -> bool:
    """Put the nodes in execution order if they are not; True if they had to be moved."""
    moved = False
    for graph in model.graphs():
        seen: set[int] = set()
        own = {id(node) for node in graph}
        in_order = True
        for node in graph:
            sources = (value.producer() for value in node.inputs if value is not None)
            in_order &= all(source is None or id(source) in seen or id(source) not in own for source in sources)
            seen.add(id(node))
        if not in_order:
            graph.sort()
            moved = True
    return moved


def _doubts(proto: onnx.ModelProto) -> Iterator[str]:
    """Sentences on what may keep this model from running, found without running it."""
    own = {function.domain for function in proto.functions}
    imported = {entry.domain: entry.version for entry in proto.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = imported.get("", imported.get("ai.onnx", 1))
    if opset > newest:
        yield (
            f"The model asks for opset {opset}, but the installed onnx package knows opsets up to {newest}: it can be "
            "looked at, but not checked or run; export it with an older opset or upgrade onnx and onnxruntime."
        )
    unknown: dict[str, str] = {}
    for node in proto.graph.node:
        if node.domain not in _STANDARD_DOMAINS | _ORT_DOMAINS | own:
            unknown.setdefault(node.domain, node.op_type)
    for domain, op_type in unknown.items():
        yield (
            f"Operator {op_type} of domain {domain!r} is known neither to ONNX nor to ONNX Runtime: the model can be "
            "looked at, but it runs only where that operator's library is registered."
        )


def _check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    folder = path.resolve().parent
    sizes: dict[str, int] = {}
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (folder / location).resolve()
        if not location or not file.is_relative_to(folder):
            raise ModelError(
                f"expected the external data of tensor {tensor.name!r} inside {folder}, found location {location!r}: "
                "refused, since a model must not read files outside its own folder"
            )
        if location not in sizes:
            if not file.is_file():
                raise ModelError(
                    f"expected the external data file {location!r} beside {path.name} in {folder}, found none: "
                    "copy it there together with the model"
                )
            sizes[location] = file.stat().st_size
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if end > sizes[location]:
            raise ModelError(
                f"expected at least {end} bytes in the external data file {location!r} for tensor {tensor.name!r}, "
                f"found {sizes[location]}: the file is truncated; copy it again"
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
