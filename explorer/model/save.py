"""Write a model, and its weights where they are in files of their own, completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError, Message

from explorer.errors import ExportError
from explorer.model.causes import first_cause
from explorer.model.external import body_files, external_tensors, stored_tensors
from explorer.model.publish import Publication, check_room, check_writable

ExternalData = Literal["share", "copy", "link"]
"""How an exported model gets at weights in files of their own: it shares them with its source, in whose folder it then
stays; or it gets a copy of the files; or they get another name beside it (a hard link)."""

# protobuf cannot hold more in one message
_MAX_PROTO_BYTES = 2**31 - 1


def serialize(model: ir.Model) -> bytes:
    """The model as the bytes of an .onnx file; tensors that live in external files are referred to, not read.

    The same model gives the same bytes. ExportError if it exceeds the 2 GB that one file can hold, or what its source
    says of a node is no text.
    """
    written = BytesIO()
    written.writelines(_pieces(model))  # to join them would keep all of them until the end
    return written.getvalue()


def has_external_data(model: ir.Model) -> bool:
    """True if any weight lives in a file of its own beside the model."""
    return any(external_tensors(model))


def data_folder(model: ir.Model) -> Path | None:
    """The folder of the files that hold weights of `model`, None if it has none: where a session must look for them.

    It need not be the folder of the model's path, which may be a link.
    """
    return next((Path(tensor.base_dir) for tensor in external_tensors(model)), None)


def external_files(model: ir.Model) -> set[Path]:
    """The files beside the model that hold its weights."""
    return {Path(folder, location) for folder, location in _places(model)}


def same_file(one: Path, other: Path) -> bool:
    """True if both paths name one existing file, whatever links lead there."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def save(model: ir.Model, path: str | Path, *, overwrite: bool = False, data: ExternalData = "share") -> Path:
    """Write `model` to `path` in one step and return the path. Its weights are never read into memory.

    `data` says what becomes of weights in files of their own. Shared: `path` must be in their folder. Copied: as cheap
    as the file system allows, holes stay holes. Linked: by another name of the same file; ONNX Runtime and `load` read
    such files, but onnx and onnx_ir refuse those of both models as long as there are two names.

    ExportError if `path` or a data file beside it exists (unless `overwrite`) or is one of the model's own data files,
    or if there is no such folder, no room or no permission; then nothing was written or replaced.
    """
    path = Path(path)
    if data not in get_args(ExternalData):
        raise ExportError(f"expected to share, copy or link the external data, found {data!r}: choose one of these")
    check_writable(path, overwrite=overwrite)
    if any(same_file(path, file) for file in external_files(model)):
        raise ExportError(
            f"expected another file than {path}, which holds the model's own weights: choose another name"
        )
    if data == "share":
        _check_beside(model, path)
        moves = []
    else:
        moves = _moves(model, path, overwrite=overwrite, linked=data == "link")
    pieces = _pieces(model)
    with Publication(overwrite=overwrite) as new:
        if data == "copy":
            check_room([source for source, _ in moves], path.parent)
        for source, target in moves:
            new.folder(target.parent)
            if data == "copy":
                new.copy(source, target)
            else:
                new.link(source, target)
        new.write(pieces, path)
    return path


def _check_beside(model: ir.Model, path: Path) -> None:
    """ExportError if the model would not find its data from `path`."""
    for folder, location in _places(model):
        if Path(folder).resolve() != path.resolve().parent:
            raise ExportError(
                f"expected to write beside the model's external data in {folder}, found {path.parent}: choose a file "
                f"in that folder, so that {location!r} is found when the model is loaded, or copy or link the data"
            )


def _moves(model: ir.Model, path: Path, *, overwrite: bool, linked: bool) -> list[tuple[Path, Path]]:
    """Each data file and what it is copied or linked to, at the same place beside `path`.

    What is linked there already is left out. ExportError if a file cannot go there.
    """
    places, own, inside = _places(model), external_files(model), body_files(model)
    if places and not path.parent.is_dir():
        raise ExportError(f"expected a folder {path.parent} to write to, found none: make it first")
    moves = []
    for folder, location in places:
        source, target = Path(folder, location), path.parent / location
        if linked and source in inside:
            raise ExportError(
                f"expected weights of the graph itself in data that is linked, found some of an If, Loop or Scan in "
                f"{location!r}, which ONNX Runtime refuses if it has two names: choose a copy of the data"
            )
        if same_file(Path(folder), path.parent):
            raise ExportError(
                f"expected another folder than {path.parent}, which holds the model's external data {location!r} "
                "itself: choose one, or share the data"
            )
        if linked and same_file(source, target) and not target.is_symlink():
            continue
        _check_target(location, target, path, own)
        if os.path.lexists(target) and not overwrite:
            raise ExportError(
                f"expected a folder without {location!r}, which holds weights of the model, found {target}: choose "
                "another folder or ask to replace it"
            )
        moves.append((source, target))
    return moves


def _check_target(location: str, target: Path, path: Path, own: Iterable[Path]) -> None:
    """ExportError if the data at `location` can never go to `target` beside the model at `path`."""
    if target == path or not target.parent.resolve().is_relative_to(path.parent.resolve()):
        raise ExportError(
            f"expected a place for the external data {location!r} beside {path}, found that {target} is the model "
            "itself or leads elsewhere: choose another name or folder"
        )
    if any(same_file(target, file) for file in own):
        raise ExportError(
            f"expected another file than {target}, which holds the model's own weights: choose another folder"
        )


def _places(model: ir.Model) -> list[tuple[str, str]]:
    """Folder and location of each data file."""
    return sorted({(os.fspath(tensor.base_dir), os.fspath(tensor.location)) for tensor in external_tensors(model)})


def _pieces(model: ir.Model) -> Iterator[bytes]:
    """The encoded model in pieces, each node and weight one: the weights are in memory only once more for it."""
    inline = sum(tensor.nbytes for tensor in stored_tensors(model) if not isinstance(tensor, ir.ExternalTensor))
    if inline > _MAX_PROTO_BYTES:
        raise _too_large(inline)
    try:
        proto: onnx.ModelProto = ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise ExportError(
            f"expected a graph that can be written, found: {first_cause(error)}: the source is damaged"
        ) from None
    nodes, weights = list(proto.graph.node), list(proto.graph.initializer)
    proto.graph.ClearField("node")
    proto.graph.ClearField("initializer")
    graph = _encoded(proto.graph)
    proto.ClearField("graph")
    rest = _encoded(proto)
    parts = [(onnx.GraphProto.NODE_FIELD_NUMBER, node) for node in nodes]
    parts += [(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, weight) for weight in weights]
    sizes = [part.ByteSize() for _, part in parts]
    headers = [_header(field, size) for (field, _), size in zip(parts, sizes, strict=True)]
    length = len(graph) + sum(map(len, headers)) + sum(sizes)
    start = _header(onnx.ModelProto.GRAPH_FIELD_NUMBER, length)
    if len(rest) + len(start) + length > _MAX_PROTO_BYTES:
        raise _too_large(length)
    return chain(
        (rest, start, graph),
        (piece for header, (_, part) in zip(headers, parts, strict=True) for piece in (header, _encoded(part))),
    )


def _encoded(message: Message) -> bytes:
    """The same bytes each time; ExportError if they exceed 2 GB."""
    try:
        return bytes(message.SerializeToString(deterministic=True))
    except EncodeError:
        raise _too_large(_MAX_PROTO_BYTES + 1) from None


def _header(field: int, size: int) -> bytes:
    """What stands before a message of `size` bytes in the protobuf encoding: the field that it is, and its size."""
    number, encoded = size, bytearray([field << 3 | 2])
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _too_large(size: int) -> ExportError:
    return ExportError(
        f"expected at most 2 GB in one ONNX file, found {size / 1e9:.1f} GB: "
        "store the weights of the source as external data and open that"
    )
