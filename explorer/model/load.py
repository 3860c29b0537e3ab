"""Read an ONNX file into a `Model`, or say in one sentence why that cannot be."""

from __future__ import annotations

import hashlib
import logging
import math
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
    if not proto.opset_import:
        raise ModelError(
            f"expected {path} to say which operator set it uses, found none: the file is truncated or damaged; "
            "export or download it again"
        )
    model = _to_ir(proto, path)
    types, note = infer_types(proto)
    notes = [note] if note else []
    notes += _doubts(proto)
    try:
        moved = _sort(model)
    except ValueError:
        raise ModelError(
            f"expected a graph without cycles in {path}, found nodes that wait for each other: export the model again"
        ) from None
    if moved:
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
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"expected a readable ONNX file at {str(path)!r}: {reason}") from None


def _to_ir(proto: onnx.ModelProto, path: Path) -> ir.Model:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it has to say comes as an exception, too, or below
    try:
        model = ir.from_proto(proto)
        for graph in model.graphs():
            for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
                _ = value.dtype
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"expected a valid ONNX graph in {path}, found: {_innermost(error)}") from None
    finally:
        logger.setLevel(level)
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    owned = {value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())} | {
        value for node in model.graph.all_nodes() for value in node.outputs
    }
    readers = [(f"node {node.name!r} ({node.op_type}) reads", node.inputs) for node in model.graph.all_nodes()]
    readers += [("the graph gives out", graph.outputs) for graph in model.graphs()]
    for reader, values in readers:
        for read in values:
            if read is not None and read not in owned:
                raise ModelError(
                    f"expected every tensor in {path} to come from somewhere, found that {reader} {read.name!r}, "
                    "which nothing produces: export the model again"
                )
    return model


def _innermost(error: BaseException) -> str:
    """The first line of the error that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
    for graph in _graphs(proto.graph):
        for node in graph.node:
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
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", 0)) or _size_bytes(tensor)
        except ValueError:
            offset, length = -1, 0
        if offset < 0 or length < 0:
            raise ModelError(
                f"expected numbers of bytes as offset and length of the external data of {tensor.name!r}, found "
                f"{entries.get('offset')!r} and {entries.get('length')!r}: the file is damaged; export the model again"
            )
        end = offset + length
        if end > sizes[location]:
            raise ModelError(
                f"expected at least {end} bytes in the external data file {location!r} for tensor {tensor.name!r}, "
                f"found {sizes[location]}: the file is truncated; copy it again"
            )


def _size_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the contents of `tensor` take."""
    return ir.DataType(tensor.data_type).itemsize * math.prod(tensor.dims) if tensor.data_type else 0


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _tensors(outer: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(outer):
        yield from graph.initializer
        for node in graph.node:
            yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
