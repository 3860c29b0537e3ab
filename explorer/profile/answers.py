"""What the worker's side of a profile answers the parent's: in a file, since a trace is long."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from explorer.profile import codec
from explorer.profile.trace import Trace
from explorer.profile.values import Counts, Dispatch, Placement, Point, Region

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loading:
    """How one variant loaded.

    load_s        creating its session; None if it did not load
    optimization  ONNX Runtime's optimization level that it was loaded at
    lowered       why not at a higher one; "" if that is the highest
    """

    load_s: float | None
    optimization: str
    lowered: str


@dataclass(frozen=True, slots=True)
class Timings:
    """What `measure` found: the points are complete but for traces and dispatch."""

    provider: Literal["cuda", "cpu"]
    provider_note: str
    environment: tuple[tuple[str, str], ...]
    loadings: tuple[Loading, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Regions:
    """The attention blocks of a variant, for its tracer."""

    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Traced:
    """One variant traced on the inputs of one point; without a trace the refusal says why not."""

    trace: Trace | None
    dispatch: tuple[Dispatch, ...]
    refusal: str


@dataclass(frozen=True, slots=True)
class Traces:
    """What `inspection` found of one variant: the graph as it runs, and its traces, one for each feeds.

    no_tracer  why nothing in that process could see the GPU's work; then all else is empty. "" if something could
    """

    no_tracer: str
    ops_optimized: Counts
    memcpy_nodes: int
    placement: tuple[Placement, ...]
    traced: tuple[Traced, ...]


def write(path: str | Path, answer: Any) -> None:
    """Write one of these to a file."""
    Path(path).write_text(json.dumps(codec.to_json(answer), separators=(",", ":")), encoding="utf-8")


def read(path: str | Path, kind: type[T]) -> T:
    """What `write` wrote."""
    return codec.from_json(kind, json.loads(Path(path).read_text(encoding="utf-8")))
