"""What a profile is: values that travel, compare and hash. Units are in the names: `_ms`, `_us`, `_s`, `_bytes`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from explorer.errors import InputError
from explorer.model import write_atomically
from explorer.profile import codec
from explorer.profile.statistics import MIN_RUNS, quantile, ratio_interval
from explorer.profile.trace import UNATTRIBUTED, Trace
from explorer.runtime.gpu import GpuState

SCHEMA = 2

Counts = tuple[tuple[str, int], ...]
"""(op type, number of nodes), the most frequent first."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""(input name, its dimensions) pairs."""


@dataclass(frozen=True, slots=True)
class Latency:
    """The wall time of each timed run, in the order in which they ran."""

    runs_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Half of the runs were at most this long."""
        return quantile(self.runs_ms, 0.5)

    @property
    def q1_ms(self) -> float:
        """A quarter of the runs were at most this long."""
        return quantile(self.runs_ms, 0.25)

    @property
    def q3_ms(self) -> float:
        """Three quarters of the runs were at most this long."""
        return quantile(self.runs_ms, 0.75)

    @property
    def iqr_ms(self) -> float:
        """Width of the middle half of the runs."""
        return self.q3_ms - self.q1_ms

    @property
    def p99_ms(self) -> float:
        """99 % of the runs were at most this long."""
        return quantile(self.runs_ms, 0.99)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster: the first variant's median time over this one's, with its 95 % interval.

    low, high  None if there were too few runs to know (under 5)
    """

    value: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """1 if it is faster than the first beyond the noise, -1 if slower; 0 if that cannot be told."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 1 else -1 if self.high < 1 else 0

    @classmethod
    def of(cls, first: Latency, other: Latency, seed: int, *, paired: bool = True) -> Self:
        """The ratio of the medians and its bootstrap interval under `seed`; `paired` if the runs took turns."""
        value = first.median_ms / other.median_ms
        if min(len(first.runs_ms), len(other.runs_ms)) < MIN_RUNS:
            return cls(value, None, None)
        return cls(value, *ratio_interval(first.runs_ms, other.runs_ms, seed, paired=paired))


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The kernel that an attention node ran with.

    operator  "MultiHeadAttention"
    dtype     "fp16", "bf16" or "fp32", as ONNX Runtime says it
    said      by ONNX Runtime's debug line: "CUDNN_FLASH_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH" or
              another; "" if it says nothing
    seen      the same, told from the names of the kernels that ran under the node; "" if none was traced or known
    warning   why this is slower or less exact than another kernel would be, or that the two disagree; "" if all is well
    """

    node: str
    operator: str
    dtype: str
    said: str
    seen: str
    warning: str

    @property
    def kernel(self) -> str:
        """What ran, as far as is known: what was seen outranks what was said."""
        return self.seen or self.said


@dataclass(frozen=True, slots=True)
class Measurement:
    """One variant on inputs of one shape.

    first_run_ms  the first run, which allocates memory and on CUDA chooses and builds kernels for the shape
    ratio         the first variant's time over this one's; None for the first itself, or if one of the two did not run
    dispatch      attention kernels, by node; empty on the CPU or if nothing was traced
    refusal       a sentence: why it did not run on these inputs; then latency and trace are None. "" if it did
    """

    variant: str
    first_run_ms: float | None
    latency: Latency | None
    ratio: Ratio | None
    trace: Trace | None
    dispatch: tuple[Dispatch, ...]
    refusal: str


@dataclass(frozen=True, slots=True)
class Point:
    """All variants on inputs of the same shapes, run in turns.

    warmup   rounds before the timed ones; a round runs every variant once
    steady   whether the runs had stopped getting faster by then
    gpu      the device right before and right after the timed runs; empty on the CPU or if it does not tell
    """

    shapes: Shapes
    warmup: int
    steady: bool
    gpu: tuple[GpuState, ...]
    measurements: tuple[Measurement, ...]

    def of(self, variant: str) -> Measurement:
        """The measurement of the variant with this name; KeyError if there is none."""
        found = next((item for item in self.measurements if item.variant == variant), None)
        if found is None:
            raise KeyError(variant)
        return found


@dataclass(frozen=True, slots=True)
class Placement:
    """The nodes that ONNX Runtime gave to one execution provider when it partitioned the graph."""

    provider: str
    ops: Counts


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the models that were measured against each other: what does not depend on its inputs.

    plan            digest of the fusion plan that made it from the source; "" for the source or if unknown
    sdpa_kernel     CUDA provider option that its session had; 0 leaves the choice to ONNX Runtime
    cuda_graph      whether its runs replayed a CUDA graph (its trace is of runs without)
    load_s          creating its session; None if it did not load
    optimization    ONNX Runtime's optimization level that it was loaded at
    ops             in the model file, subgraphs included
    ops_optimized   in the graph as ONNX Runtime runs it; empty if it was not traced
    memcpy_nodes    nodes that ONNX Runtime put in to move tensors between devices
    placement       empty if this ONNX Runtime does not tell, or it was not traced
    """

    name: str
    plan: str
    sdpa_kernel: int
    cuda_graph: bool
    load_s: float | None
    optimization: str
    ops: Counts
    ops_optimized: Counts
    memcpy_nodes: int
    placement: tuple[Placement, ...]

    @property
    def casts_exported(self) -> int:
        """Cast nodes in the model file."""
        return dict(self.ops).get("Cast", 0)

    @property
    def casts_optimized(self) -> int:
        """Cast nodes in the graph as ONNX Runtime runs it."""
        return dict(self.ops_optimized).get("Cast", 0)


@dataclass(frozen=True, slots=True)
class Region:
    """An attention block of a variant, so that its time can be told: what the tracer is given.

    nodes    (name, role) of its nodes in the variant's file; the role is "" for what it was fused to
    outputs  names of the values that they compute
    """

    block: str
    nodes: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Variants of a model, run in turns in one process on one machine.

    provider       "cuda" or "cpu": where the sessions really ran; provider_note says why, in a sentence
    environment    (name, value) pairs: versions, devices
    labels         (block id, label) of the attention blocks that traces speak of
    source         digest of the model that all variants come from; "" if unknown
    runs           timed rounds; each round runs every variant once
    seed           of the ratios' bootstrap and of the inputs
    points         one for each set of shapes, in the order asked for
    notes          sentences about what these numbers do and do not show
    """

    provider: Literal["cuda", "cpu"]
    provider_note: str
    environment: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, str], ...]
    source: str
    runs: int
    seed: int
    variants: tuple[Variant, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    def variant(self, name: str) -> Variant:
        """The variant with this name; KeyError if there is none."""
        found = next((item for item in self.variants if item.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object, in the form that `codec` describes."""
        return {"schema": SCHEMA, **codec.to_json(self)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The profile that `to_json` gave. InputError for anything else, also for that of another schema."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise InputError(
                f"expected a profile of schema {SCHEMA}, found schema {str(schema)[:40]!r}: profile the model again"
            )
        try:
            profile = codec.from_json(cls, data, "the profile")
        except ValueError as error:
            raise InputError(f"expected a complete profile, found that {error}: profile the model again") from error
        if flaw := next(_flaws(profile), None):
            raise InputError(f"expected a profile that holds together, found that {flaw}: profile the model again")
        return profile

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The profile in a JSON file; InputError if there is none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"expected a saved profile in {path}, found none that can be read: {error}") from error
        return cls.from_json(data)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write it as JSON, without spaces; ExportError if `path` exists (unless `overwrite`) or cannot be written."""
        text = json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False) + "\n"
        return write_atomically(text.encode(), path, overwrite=overwrite)


def counts(op_types: Iterable[str]) -> Counts:
    """How often each op type occurs, the most frequent first."""
    return tuple(sorted(Counter(op_types).items(), key=lambda item: (-item[1], item[0])))


def _flaws(profile: Profile) -> Iterator[str]:
    """What no measurement can have said, though the types are right: whoever reads a profile relies on the rest."""
    names = [variant.name for variant in profile.variants]
    if not names or len(set(names)) < len(names):
        yield f"its variants are {', '.join(names)[:80] or 'none'}"
    for point in profile.points:
        if [measurement.variant for measurement in point.measurements] != names:
            yield "a point does not measure the profile's variants"
        if any(size < 0 for _, shape in point.shapes for size in shape):
            yield "a shape has a negative size"
        for measurement in point.measurements:
            latency, trace, name = measurement.latency, measurement.trace, measurement.variant[:80]
            if (latency is None) != bool(measurement.refusal):
                yield f"{name} has both times and a refusal, or neither"
            if latency is not None and not (latency.runs_ms and min(latency.runs_ms) > 0):
                yield f"{name} has runs that took no time, or no runs"
            if trace is not None and not _holds_together(trace):
                yield f"the trace of {name} speaks of nodes or kernels that it does not have"


def _holds_together(trace: Trace) -> bool:
    """Whether all numbers of nodes and kernels lead to one."""
    kernels = [kernel for node in trace.nodes for kernel in node.kernels]
    return (
        all(0 <= kernel < len(trace.kernels) for kernel in kernels)
        and all(-1 <= item.kernel < len(trace.kernels) for item in trace.timeline)
        and all(UNATTRIBUTED <= item.node < len(trace.nodes) for item in trace.timeline)
    )
