"""Tunings that are kept in the user's cache, by model, provider, device and version of ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from explorer.errors import ExportError, InputError, WorkerError
from explorer.model import write_atomically
from explorer.runtime import Worker
from explorer.tune.values import Tuning, device

VARIABLE = "ONNX_EXPLORER_CACHE"
"""Environment variable with the folder to use instead of the user's cache folder."""

_ENVIRONMENT = "explorer.runtime.environment:environment"


@dataclass(frozen=True, slots=True)
class Found:
    """The tuning that fits, if any, and sentences about files that could not be used."""

    tuning: Tuning | None
    notes: tuple[str, ...] = ()


def folder() -> Path:
    """Where tunings are kept."""
    given = os.environ.get(VARIABLE)
    return (Path(given) if given else Path(platformdirs.user_cache_dir("onnx-explorer", appauthor=False))) / "tunings"


def save(tuning: Tuning) -> Path:
    """Keep a tuning, in place of an earlier one of the same model, provider, device and ONNX Runtime.

    Returns its file. ExportError if it cannot be written.
    """
    path = folder() / _name(tuning.file, tuning.provider, tuning.device, tuning.onnxruntime)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"expected a folder {path.parent} for tunings, found that it cannot be made ({error.strerror}): "
            f"set {VARIABLE} to another one"
        ) from error
    text = json.dumps(tuning.to_json(), allow_nan=False) + "\n"
    return write_atomically(text.encode(), path, overwrite=True)


def find(worker: Worker, file: str, provider: str) -> Found:
    """The tuning on this machine of the model whose file has the digest `file`.

    `provider` is "cuda" or "cpu". `worker` is asked what there is to run on, but only if some tuning of the model is
    kept. Never raises for files: a damaged one is told in the notes.
    """
    if not any(_kept(file, provider)):
        return Found(None)
    try:
        environment = worker.call(_ENVIRONMENT)
    except WorkerError as error:
        return Found(None, (f"The kept tunings were not looked at, since the worker does not run: {error}",))
    path = folder() / _name(file, provider, device(provider, environment), environment.get("onnxruntime", ""))
    if not path.is_file():
        return Found(None)
    try:
        return Found(Tuning.load(path))
    except InputError as error:
        return Found(None, (f"A kept tuning was ignored: {error}",))


def _kept(file: str, provider: str) -> Iterator[Path]:
    """Files of this model and provider, whatever the device."""
    return folder().glob(f"{_digits(file)}-{provider}-*.json")


def _name(file: str, provider: str, on: str, onnxruntime: str) -> str:
    """The file of a tuning; names of devices may have any character, so they are told apart by digits."""
    return f"{_digits(file)}-{provider}-{_digits(f'{on} {onnxruntime}')}.json"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
