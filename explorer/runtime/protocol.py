"""The messages between the explorer and its worker process: one JSON object a line, UTF-8, each with the version.

Parent to worker, one at a time:

    {"v": 2, "id": 7, "call": "explorer.profile.measure:measure", "args": {...}}

Worker to parent, any number of progress events and then exactly one result or error, all with the call's id:

    {"v": 2, "id": 7, "event": "progress", "fraction": 0.25, "text": "Warming up"}
    {"v": 2, "id": 7, "event": "result", "value": ..., "usage": {...}, "last": false}
    {"v": 2, "id": 7, "event": "error", "kind": "SessionError", "message": "...", "usage": {...}, "last": false}

`kind` is the name of a class in `explorer.errors`. `usage` is what the call took:

    {"wall_s": 3.2, "rss_bytes": 812300288, "peak_rss_bytes": 1904566272, "gpu_bytes": null}

`last` says that the process can serve no other call, because CUDA has failed in it for good: the parent ends it.

Arrays never travel here: they go through .npz files (`explorer.runtime.arrays`) whose paths are among the arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, ClassVar

from explorer.errors import WorkerError

VERSION = 2


@dataclass(frozen=True, slots=True)
class Call:
    """Run the function `call` ("package.module:function") with the keyword arguments `args`."""

    id: int
    call: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """The call goes on: `fraction` (0 to 1) of it is done and it is now doing `text`."""

    event: ClassVar[str] = "progress"
    id: int
    fraction: float
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call took of the machine.

    wall_s          from the call's start in the worker to its end
    rss_bytes       the process's resident memory at the end
    peak_rss_bytes  the most that it has been since the process started
    gpu_bytes       what the process holds on the GPU at the end; None if it uses none, or nvidia-smi does not tell
    """

    wall_s: float
    rss_bytes: int
    peak_rss_bytes: int
    gpu_bytes: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """The call returned `value`."""

    event: ClassVar[str] = "result"
    id: int
    value: Any
    usage: Usage
    last: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """The call raised the explorer error named `kind`."""

    event: ClassVar[str] = "error"
    id: int
    kind: str
    message: str
    usage: Usage
    last: bool


Message = Call | Progress | Result | Failure

_EVENTS: dict[Any, type[Progress] | type[Result] | type[Failure]] = {
    kind.event: kind for kind in (Progress, Result, Failure)
}
# Of values as json reads them, where no type is another's subclass but bool, which is not to pass for int.
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (int,),
    "call": (str,),
    "args": (dict,),
    "fraction": (int, float),
    "text": (str,),
    "value": (NoneType, bool, int, float, str, list, dict),
    "kind": (str,),
    "message": (str,),
    "usage": (Usage,),
    "last": (bool,),
    "wall_s": (int, float),
    "rss_bytes": (int,),
    "peak_rss_bytes": (int,),
    "gpu_bytes": (int, NoneType),
}


def encode(message: Message) -> bytes:
    """One line, newline included. WorkerError if a value in the message is not JSON."""
    document: dict[str, Any] = {"v": VERSION}
    if not isinstance(message, Call):
        document["event"] = message.event
    document |= {field.name: getattr(message, field.name) for field in fields(message)}
    if not isinstance(message, Call | Progress):
        document["usage"] = asdict(message.usage)
    try:
        return json.dumps(document, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise WorkerError(f"A message to or from the worker process must be plain JSON, but {error}.") from error


def decode(line: bytes) -> Message:
    """The message in one line. WorkerError if it is not one: garbage, another version, a field missing or ill-typed."""
    try:
        return _message(line)
    except ValueError as error:
        shown = line[:80].decode(errors="backslashreplace").strip()
        raise WorkerError(f"Expected a message of worker protocol {VERSION}, found {shown!r}: {error}.") from error


def _message(line: bytes) -> Message:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("that is not JSON") from error
    if not isinstance(document, dict):
        raise ValueError("that is not a JSON object")
    if document.pop("v", None) != VERSION:
        raise ValueError("that is not this version; restart so that both sides run the same one")
    event = document.pop("event", None)
    kind = Call if event is None else _EVENTS.get(event) if isinstance(event, str) else None
    if kind is None:
        raise ValueError(f"{event!r} is no event")
    if isinstance(document.get("usage"), dict):
        document["usage"] = _checked(Usage, document["usage"])
    message: Message = _checked(kind, document)
    return message


def _checked(kind: type, document: Mapping[str, Any]) -> Any:
    """A `kind` with these fields; ValueError if they are not its own, or ill-typed."""
    expected = [field.name for field in fields(kind)]
    if document.keys() != set(expected):
        raise ValueError(f"the fields of a {kind.__name__} are {', '.join(expected)}")
    for name, value in document.items():
        if type(value) not in _TYPES[name]:
            raise ValueError(f"{name!r} has the wrong type")
    return kind(**document)
