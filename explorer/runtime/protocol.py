"""The messages between the explorer and its worker process: one JSON object a line, UTF-8, each with the version.

Parent to worker, one at a time:

    {"v": 1, "id": 7, "call": "explorer.profile.measure:measure", "args": {...}}

Worker to parent, any number of progress events and then exactly one result or error, all with the call's id:

    {"v": 1, "id": 7, "event": "progress", "fraction": 0.25, "text": "Warming up"}
    {"v": 1, "id": 7, "event": "result", "value": ...}
    {"v": 1, "id": 7, "event": "error", "kind": "SessionError", "message": "..."}

`kind` is the name of a class in `explorer.errors`. Arrays never travel here: they go through .npz files
(`explorer.runtime.arrays`) whose paths are among the arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from explorer.errors import WorkerError

VERSION = 1


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
class Result:
    """The call returned `value`."""

    event: ClassVar[str] = "result"
    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The call raised the explorer error named `kind`."""

    event: ClassVar[str] = "error"
    id: int
    kind: str
    message: str


Message = Call | Progress | Result | Failure

_EVENTS: dict[Any, type[Progress] | type[Result] | type[Failure]] = {
    kind.event: kind for kind in (Progress, Result, Failure)
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": int,
    "call": str,
    "args": dict,
    "fraction": (int, float),
    "text": str,
    "value": object,
    "kind": str,
    "message": str,
}


def encode(message: Message) -> bytes:
    """One line, newline included. WorkerError if a value in the message is not JSON."""
    document: dict[str, Any] = {"v": VERSION}
    if not isinstance(message, Call):
        document["event"] = message.event
    document |= asdict(message)
    try:
        return json.dumps(document, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise WorkerError(f"A message to or from the worker process must be plain JSON, but {error}.") from error


def decode(line: bytes) -> Message:
    """The message in one line. WorkerError if it is not one: garbage, another version, a field missing or ill-typed."""
    try:
        document = json.loads(line)
    except ValueError as error:
        raise _unexpected(line, "that is not JSON") from error
    if not isinstance(document, dict):
        raise _unexpected(line, "that is not a JSON object")
    if document.pop("v", None) != VERSION:
        raise _unexpected(line, "that is not this version; restart so that both sides run the same one")
    event = document.pop("event", None)
    kind = Call if event is None else _EVENTS.get(event) if isinstance(event, str) else None
    if kind is None:
        raise _unexpected(line, f"{event!r} is no event")
    expected = [field.name for field in fields(kind)]
    if document.keys() != set(expected):
        raise _unexpected(line, f"the fields of such a message are {', '.join(expected)}")
    for name, value in document.items():
        if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and name != "value"):
            raise _unexpected(line, f"{name!r} has the wrong type")
    return kind(**document)


def _unexpected(line: bytes, why: str) -> WorkerError:
    shown = line[:80].decode(errors="backslashreplace").strip()
    return WorkerError(f"Expected a message of worker protocol {VERSION}, found {shown!r}: {why}.")
