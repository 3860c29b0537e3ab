"""Read an ONNX file into a `Model`, or say in one sentence why that cannot be."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from explorer.errors import ModelError
from explorer.model.causes import first_cause
from explorer.model.dialect import to_one_form
from explorer.model.dims import symbols
from explorer.model.external import attach, is_external, linked_data, locate_external_data
from explorer.model.functions import inline_attention
from explorer.model.given import Shapes, digest_with, give_shapes
from explorer.model.model import Model
from explorer.model.pause import collector_paused
from explorer.model.shapes.implied import imply
from explorer.model.shapes.infer import infer
from explorer.model.survey import KNOWN_DOMAINS, Survey, short_domain, survey
from explorer.model.types import infer_types

_MAX_BYTES = 2**31 - 1  # of one protobuf message


def load(path: str | Path, shapes: Shapes | None = None) -> Model:
    """Load the ONNX model at `path`. Weights kept in external data files stay there, unread.

    `shapes` are sizes for inputs by name, every dimension of each, in place of those that the file declares: the model
    that comes back declares them, and its digest is another than that of the file alone.

    Raises ModelError when the file is missing, not ONNX, truncated or empty, its external data is missing, too short
    or outside its folder, or `shapes` do not fit its inputs.
    """
    path = Path(path)
    with collector_paused():
        proto, file_digest = _parse(_read(path), path)
        digest = file_digest
        found = survey(proto, path)
        external = [tensor for tensor in found.tensors if is_external(tensor)]
        folder = locate_external_data(external, path)
        notes = [*_doubts(proto, found), *to_one_form(proto, found), *inline_attention(proto, found)]
        if shapes:
            notes.append(give_shapes(proto, shapes, path))
            digest = digest_with(file_digest, shapes)
        model = _to_ir(proto, path)
        if not found.in_order:
            _sort(model, path)
            notes.append("The file's nodes were not in execution order; they have been sorted.")
        if external:
            attach(model, folder)
            notes += linked_data(model)
        known, note = infer_types(proto)
        notes += [note] if note else []
        types, demanded = imply(model, infer(model, known))
        told = {name: size for name, size in demanded.items() if size not in symbols(size)}
        if told:
            sizes = ", ".join(f"{name} = {size}" for name, size in told.items())
            notes.append(f"The graph runs with {sizes} only: these sizes were written into it when it was exported.")
        # the name that the user knows, not the one that a link leads to
        own = path.parent.resolve() / path.name
        return Model(model, path=own, digest=digest, types=types, notes=tuple(notes), file_digest=file_digest)


def _read(path: Path) -> bytes:
    try:
        found = path.stat()
        if path.is_dir():
            raise ModelError(f"expected an ONNX file at {path}, found a folder: name the .onnx file in it")
        if not path.is_file():  # reading it might never end
            raise ModelError(f"expected an ONNX file at {path}, found a pipe or a device: save what it gives to a file")
        if found.st_size <= _MAX_BYTES:
            return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"expected an ONNX model at {path}, found no such file: check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"expected a readable ONNX file at {str(path)!r}: {reason}") from None
    raise ModelError(
        f"expected at most 2 GB in {path}, as much as one ONNX file can hold, found {found.st_size / 1e9:.1f} GB: open "
        "the file whose external data it is, or export the model again with its weights in another file"
    )


def _parse(data: bytes, path: Path) -> tuple[onnx.ModelProto, str]:
    """The model and the digest of its file."""
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
    if not proto.opset_import:
        raise ModelError(
            f"expected {path} to say which operator set it uses, found none: the file is truncated or damaged; "
            "export or download it again"
        )
    return proto, hashlib.sha256(data).hexdigest()


def _to_ir(proto: onnx.ModelProto, path: Path) -> ir.Model:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it has to say comes as an exception, too, or did from `survey`
    try:
        return ir.from_proto(proto)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"expected a valid ONNX graph in {path}, found: {first_cause(error)}") from None
    finally:
        logger.setLevel(level)


def _sort(model: ir.Model, path: Path) -> None:
    """Put the nodes of every graph in execution order, those of bodies with them."""
    try:
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            graph.sort()
    except ValueError:
        raise ModelError(
            f"expected a graph without cycles in {path}, found nodes that wait for each other: export the model again"
        ) from None


def _doubts(proto: onnx.ModelProto, found: Survey) -> Iterator[str]:
    """Sentences on what may keep this model from running, found without running it."""
    imported = {short_domain(entry.domain): entry.version for entry in proto.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = imported.get("", 1)
    if opset > newest:
        yield (
            f"The model asks for opset {opset}, but the installed onnx package knows opsets up to {newest}: it can be "
            "looked at, but not checked or run; export it with an older opset or upgrade onnx and onnxruntime."
        )
    known = KNOWN_DOMAINS | {short_domain(function.domain) for function in proto.functions}
    unknown = {domain: op_type for domain, op_type, _ in reversed(found.operators) if domain not in known}
    for domain, op_type in sorted(unknown.items()):
        yield (
            f"Operator {op_type} of domain {domain!r} is known neither to ONNX nor to ONNX Runtime: the model can be "
            "looked at, but it runs only where that operator's library is registered."
        )
