"""Weights in files of their own: found, counted and kept inside the model's folder before anyone reads them.

What is read and what is refused follows ONNX Runtime (`docs/decisions/0007-external-data.md`).
"""

from __future__ import annotations

import ntpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from explorer.errors import ModelError
from explorer.model.survey import all_tensors, size_bytes

_AGAIN = "the model is damaged; export it again"
# A name or number that is no mistake is shorter.
_QUOTED = 120


class StoredTensor(ir.ExternalTensor):
    """A weight in a file that was checked when its model was loaded; it is read each time it is asked for.

    onnx_ir's own class maps the whole file once for each tensor and keeps it open, so that a model of a thousand small
    ones exceeds what a process may open; and it refuses a file with several names, which ONNX Runtime reads.
    """

    def numpy(self) -> np.ndarray:
        """The contents; ModelError if the file is gone or has become shorter."""
        return self._read().numpy()

    def tobytes(self) -> bytes:
        """The contents as they are in the file; ModelError as for `numpy`."""
        return self._read().tobytes()

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self.numpy().__array__(dtype)

    def _read(self) -> ir.TensorProtocol:
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset or 0)
                contents = file.read(self.nbytes)
        except OSError as error:
            raise ModelError(
                f"expected to read the external data in {self.path}, found: {error.strerror or error}: put the file "
                "back and open the model again"
            ) from None
        if len(contents) < self.nbytes:
            raise ModelError(
                f"expected {self.nbytes} bytes of tensor {self.name!r} in {self.path}, found {len(contents)}: the file "
                "has changed; open the model again"
            )
        proto = onnx.TensorProto(data_type=self.dtype.value, dims=self.shape.numpy(), raw_data=contents)
        return ir.serde.deserialize_tensor(proto)


def locate_external_data(tensors: Sequence[onnx.TensorProto], path: Path) -> Path:
    """The one folder with the data of these external `tensors`, which belong to the model at `path`.

    ModelError if a file is missing, no file, too short or elsewhere, or a tensor does not say where it is in it.

    A file is looked for beside the path as given, then beside the file that this path leads to; all links followed, it
    must lie inside one of these two folders. That is ONNX Runtime's own rule, and safe: what a model says cannot lead
    out of its folder (no "..", no absolute path), and a link beside it only to what lies beside the model's own file. A
    hub cache needs that: model.onnx and its data are links from a snapshot into one folder of blobs. Sessions are made
    from copies of the model, which are no links, so the tensors are then made to name the files in that folder.
    """
    given, real = path.parent.resolve(), path.resolve().parent
    files: dict[str, Path] = {}
    for tensor in tensors:
        entries = _entries(tensor, path)
        location = entries.get("location", "")
        if location not in files:
            files[location] = _find(location, tensor.name, path)
        _check_extent(tensor, entries, location, files[location])
    folder = given if all(file.is_relative_to(given) for file in files.values()) else real
    for location, file in files.items():
        if not file.is_relative_to(folder):
            raise _refused(location, "one of several", path)
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = files[entry.value].relative_to(folder).as_posix()
    return folder


def linked_data(model: ir.Model) -> Iterator[str]:
    """A sentence on each data file of `model` that others refuse because it has several names (hard links)."""
    inside = body_files(model)
    for file in sorted({Path(tensor.path) for tensor in external_tensors(model)}):
        if file.stat().st_nlink > 1:
            readers = "this explorer reads it, but ONNX Runtime," if file in inside else "ONNX Runtime reads it, but"
            yield (
                f"The external data file {file.name!r} has several names (hard links): {readers} onnx.load, "
                "onnx.checker and onnx_ir refuse it until the other names are removed."
            )


def read_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    """Put the weights of `proto` that are in files of `folder` into it.

    As `onnx.load_external_data_for_model`, from every file that a session would read. ModelError as for `load`.
    """
    tensors = [tensor for tensor in all_tensors(proto) if is_external(tensor)]
    folder = locate_external_data(tensors, folder / "model.onnx")
    for tensor in tensors:
        read_contents(tensor, folder)


def read_contents(tensor: onnx.TensorProto, folder: Path) -> None:
    """Put the contents of one external tensor, which have been located in `folder`, into it."""
    tensor.raw_data = _stored(ir.serde.deserialize_tensor(tensor), folder).tobytes()
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def attach(model: ir.Model, folder: Path) -> None:
    """Let the external tensors of `model` read their contents from `folder`."""
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _stored(value.const_value, folder)
        for node in graph:
            for attribute in tuple(node.attributes.values()):
                if any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors(attribute)):
                    tensors = [_stored(tensor, folder) for tensor in _tensors(attribute)]
                    several = attribute.type == ir.AttributeType.TENSORS
                    held = ir.Attr(attribute.name, attribute.type, tensors if several else tensors[0])
                    node.attributes[attribute.name] = held


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that `model` holds: initializers and attributes, those of bodies and functions with them."""
    return (tensor for graph in _graphs(model) for tensor in _stored_in(graph))


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Those of them that are in files of their own."""
    return (tensor for tensor in stored_tensors(model) if isinstance(tensor, ir.ExternalTensor))


def body_files(model: ir.Model) -> set[Path]:
    """Those with weights of a body (of If, Loop or Scan): ONNX Runtime refuses them if they have several names."""
    bodies = (body for graph in _outer_graphs(model) for body in graph.subgraphs())
    tensors = (tensor for body in bodies for tensor in _stored_in(body))
    return {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def is_external(tensor: onnx.TensorProto) -> bool:
    """True if the contents are in a file of their own."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    for graph in _outer_graphs(model):
        yield graph
        yield from graph.subgraphs()


def _outer_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from (function.graph for function in model.functions.values())


def _stored_in(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    """The tensors of this graph alone."""
    yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for node in graph:
        for attribute in node.attributes.values():
            yield from _tensors(attribute)


def _tensors(attribute: ir.Attr) -> Sequence[ir.TensorProtocol]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.TENSOR:
        return (attribute.as_tensor(),)
    return attribute.as_tensors() if attribute.type == ir.AttributeType.TENSORS else ()


def _stored(tensor: ir.TensorProtocol, folder: Path) -> ir.TensorProtocol:
    """`tensor`, read from `folder` if it is external."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return StoredTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=tensor.metadata_props,
        base_dir=folder,
    )


def _entries(tensor: onnx.TensorProto, path: Path) -> dict[str, str]:
    """What `tensor` says of the place of its contents."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    words = (word for entry in entries.items() for word in entry)
    if len(entries) < len(tensor.external_data) or not all(isinstance(word, str) for word in words):
        raise ModelError(
            f"expected one place as text for the external data of tensor {tensor.name!r} in {path}, found "
            f"{_quoted(list(entries.items()))} in {len(tensor.external_data)} entries: {_AGAIN}"
        )
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(
            f"expected numbers as external data in {path}, found that tensor {tensor.name!r} is text: {_AGAIN}"
        )
    return entries


def _find(location: str, name: str, path: Path) -> Path:
    """The file at `location`, all links followed."""
    given, real = path.parent.resolve(), path.resolve().parent
    if _leads_out(location):
        raise _refused(location, name, path)
    for folder in (given, real):
        try:
            file = (folder / location).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # links in a circle, a name too long or with a null byte
            continue
        if not (file.is_relative_to(given) or file.is_relative_to(real)):
            raise _refused(location, name, path)
        if not file.is_file():
            raise ModelError(
                f"expected a file as external data of {path}, found that {location!r} is a folder, a pipe or a device: "
                "copy the data there together with the model"
            )
        return file
    raise ModelError(
        f"expected the external data file {_quoted(location)} beside {path.name} in {given}, found none: copy it there "
        "together with the model"
    )


def _leads_out(location: str) -> bool:
    """True if `location` is none, or leads out of a folder on one system or another, whichever this one is."""
    windows = PureWindowsPath(ntpath.normpath(location))
    return not location or bool(windows.anchor) or ".." in windows.parts


def _quoted(found: object) -> str:
    text = repr(found)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _refused(location: str, name: str, path: Path) -> ModelError:
    return ModelError(
        f"expected the external data of {path} inside its folder, found location {_quoted(location)} for tensor "
        f"{name!r}: refused, since a model must not read files outside its own folder"
    )


def _check_extent(tensor: onnx.TensorProto, entries: Mapping[str, str], location: str, file: Path) -> None:
    needed = size_bytes(tensor)
    offset, length = (_number(entries.get(key, "0")) for key in ("offset", "length"))
    if offset is None or length is None or 0 < length < needed:
        raise ModelError(
            f"expected the place of {needed} bytes as external data of tensor {tensor.name!r}, found offset "
            f"{_quoted(entries.get('offset'))} and length {_quoted(entries.get('length'))}: {_AGAIN}"
        )
    size = file.stat().st_size
    if offset + (length or needed) > size:
        raise ModelError(
            f"expected at least {offset + (length or needed)} bytes in the external data file {location!r} for tensor "
            f"{tensor.name!r}, found {size}: the file is truncated; copy it again"
        )


def _number(text: str) -> int | None:
    """As ONNX Runtime reads it: digits and nothing else, no more than 64 bits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
