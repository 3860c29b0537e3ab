"""Weights in files of their own: found, counted and kept inside the model's folder before anyone reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx

from explorer.errors import ModelError
from explorer.model.survey import size_bytes


def locate_external_data(tensors: Sequence[onnx.TensorProto], path: Path) -> Path:
    """The one folder with the data of these external `tensors`, which belong to the model at `path`.

    ModelError if a file is missing, too short, elsewhere, or one that tools refuse to read.

    A file is looked for beside the path as given, then beside the file that this path leads to; all links followed, it
    must lie inside one of these two folders. That is ONNX Runtime's own rule, and safe: what a model says cannot lead
    out of its folder (no "..", no absolute path), and a link beside it only to what lies beside the model's own file. A
    hub cache needs that: model.onnx and its data are links from a snapshot into one folder of blobs. Sessions are made
    from copies of the model, which are no links, so the tensors are then made to name the files in that folder.
    """
    given, real = path.parent.resolve(), path.resolve().parent
    files: dict[str, Path] = {}
    for tensor in tensors:
        location = _entries(tensor).get("location", "")
        if location not in files:
            files[location] = _find(location, tensor.name, path)
        _check_extent(tensor, location, files[location])
    folder = given if all(file.is_relative_to(given) for file in files.values()) else real
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location" and (folder / entry.value).resolve() != files[entry.value]:
                if not files[entry.value].is_relative_to(folder):
                    raise _refused(entry.value, tensor.name, path)
                entry.value = files[entry.value].relative_to(folder).as_posix()
    return folder


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _find(location: str, name: str, path: Path) -> Path:
    """The file at `location`, all links followed."""
    given, real = path.parent.resolve(), path.resolve().parent
    parts = Path(os.path.normpath(location)).parts
    if not location or Path(location).is_absolute() or os.pardir in parts:
        raise _refused(location, name, path)
    for folder in (given, real):
        file = _existing(folder, location)
        if file is None:
            continue
        if not (file.is_relative_to(given) or file.is_relative_to(real)):
            raise _refused(location, name, path)
        if file.stat().st_nlink > 1:
            raise ModelError(
                f"expected a file of one name as external data of {path}, found that {location!r} has several (hard "
                "links), which onnx refuses to read: replace it with a copy of itself"
            )
        return file
    raise ModelError(
        f"expected the external data file {location!r} beside {path.name} in {given}, found none: copy it there "
        "together with the model"
    )


def _existing(folder: Path, location: str) -> Path | None:
    try:
        file = (folder / location).resolve()
        return file if file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name too long or with a null byte
        return None


def _refused(location: str, name: str, path: Path) -> ModelError:
    return ModelError(
        f"expected the external data of {path} inside its folder, found location {location!r} for tensor {name!r}: "
        "refused, since a model must not read files outside its own folder"
    )


def _check_extent(tensor: onnx.TensorProto, location: str, file: Path) -> None:
    entries, needed = _entries(tensor), size_bytes(tensor)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", 0)) or needed
    except ValueError:
        offset = length = -1
    if offset < 0 or length < needed:
        raise ModelError(
            f"expected the place of {needed} bytes as external data of tensor {tensor.name!r}, found offset "
            f"{entries.get('offset')!r} and length {entries.get('length')!r}: the model is damaged; export it again"
        )
    size = file.stat().st_size
    if offset + length > size:
        raise ModelError(
            f"expected at least {offset + length} bytes in the external data file {location!r} for tensor "
            f"{tensor.name!r}, found {size}: the file is truncated; copy it again"
        )
