"""What a profile is: values that travel, compare and hash. Units are in the names: `_ms`, `_us`, `_s`.

Each has `to_json`, plain JSON objects with derived numbers such as medians included, and `from_json`, which reads them
back and ignores what it can derive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from explorer.errors import InputError
from explorer.profile.statistics import quantile, ratio_interval

SCHEMA = 1

Counts = tuple[tuple[str, int], ...]
"""(op type, number of nodes), the most frequent first."""


class _Plain:
    """A value whose JSON object is its fields, as they are."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # its heirs are dataclasses

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Latency:
    """The wall time of each timed run, in the order in which they ran."""

    runs_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return quantile(self.runs_ms, 0.5)

    @property
    def q1_ms(self) -> float:
        return quantile(self.runs_ms, 0.25)

    @property
    def q3_ms(self) -> float:
        return quantile(self.runs_ms, 0.75)

    @property
    def iqr_ms(self) -> float:
        return self.q3_ms - self.q1_ms

    @property
    def p99_ms(self) -> float:
        return quantile(self.runs_ms, 0.99)

    def to_json(self) -> dict[str, Any]:
        derived = ("median_ms", "q1_ms", "q3_ms", "iqr_ms", "p99_ms")
        return {"runs_ms": list(self.runs_ms), **{name: getattr(self, name) for name in derived}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(tuple(data["runs_ms"]))


@dataclass(frozen=True, slots=True)
class Ratio(_Plain):
    """How many times faster: the first variant's median time over the last's, with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Latency, last: Latency, seed: int) -> Self:
        """The ratio of the medians, and its paired bootstrap interval under `seed`."""
        return cls(first.median_ms / last.median_ms, *ratio_interval(first.runs_ms, last.runs_ms, seed))


@dataclass(frozen=True, slots=True)
class OpTime(_Plain):
    """All nodes of one type in one run: `time_us` together, `count` of them; means over several runs."""

    op_type: str
    time_us: float
    count: float


@dataclass(frozen=True, slots=True)
class KernelDispatch(_Plain):
    """The kernel ("CUDNN_FLASH_ATTENTION", "MATH", …) that an attention node ran with; dtype fp16, bf16 or fp32."""

    node: str
    operator: str
    kernel: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Placement:
    """The nodes that ONNX Runtime gave to one execution provider when it partitioned the graph."""

    provider: str
    ops: Counts

    def to_json(self) -> dict[str, Any]:
        return {"provider": self.provider, "ops": dict(self.ops)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["provider"], _counts(data["ops"]))


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the models that were measured against each other.

    load_s          creating its session
    first_run_ms    the first run, which allocates memory and on CUDA chooses and builds kernels
    optimization    ONNX Runtime's optimization level that it was loaded at
    ops             in the model file, subgraphs included
    ops_optimized   in the graph as ONNX Runtime runs it
    op_times        empty where they cannot be had honestly; op_times_note says why, or how they were measured
    kernels         the attention kernels dispatched; empty on the CPU
    placement       empty if this ONNX Runtime does not tell
    """

    name: str
    latency: Latency
    load_s: float
    first_run_ms: float
    optimization: str
    ops: Counts
    ops_optimized: Counts
    op_times: tuple[OpTime, ...]
    op_times_note: str
    kernels: tuple[KernelDispatch, ...]
    placement: tuple[Placement, ...]

    @property
    def casts_exported(self) -> int:
        """Cast nodes in the model file."""
        return dict(self.ops).get("Cast", 0)

    @property
    def casts_optimized(self) -> int:
        """Cast nodes in the graph as ONNX Runtime runs it."""
        return dict(self.ops_optimized).get("Cast", 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "latency": self.latency.to_json(),
            "load_s": self.load_s,
            "first_run_ms": self.first_run_ms,
            "optimization": self.optimization,
            "ops": dict(self.ops),
            "ops_optimized": dict(self.ops_optimized),
            "casts_exported": self.casts_exported,
            "casts_optimized": self.casts_optimized,
            "op_times": [time.to_json() for time in self.op_times],
            "op_times_note": self.op_times_note,
            "kernels": [kernel.to_json() for kernel in self.kernels],
            "placement": [placement.to_json() for placement in self.placement],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            name=data["name"],
            latency=Latency.from_json(data["latency"]),
            load_s=data["load_s"],
            first_run_ms=data["first_run_ms"],
            optimization=data["optimization"],
            ops=_counts(data["ops"]),
            ops_optimized=_counts(data["ops_optimized"]),
            op_times=tuple(map(OpTime.from_json, data["op_times"])),
            op_times_note=data["op_times_note"],
            kernels=tuple(map(KernelDispatch.from_json, data["kernels"])),
            placement=tuple(map(Placement.from_json, data["placement"])),
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """Variants of a model, run in turns in one process on one machine.

    provider       "cuda" or "cpu": where the sessions really ran; provider_note says why, in a sentence
    environment    (name, value) pairs: versions, devices
    shapes         (input name, its dimensions) pairs
    runs, warmup   timed rounds, and rounds run before them; each round runs every variant once
    seed           of the ratio's bootstrap
    ratio          the first variant's time over the last's; None with a single variant
    notes          sentences about what these numbers do and do not show
    """

    provider: str
    provider_note: str
    environment: tuple[tuple[str, str], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    runs: int
    warmup: int
    seed: int
    variants: tuple[Variant, ...]
    ratio: Ratio | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "provider": self.provider,
            "provider_note": self.provider_note,
            "environment": dict(self.environment),
            "shapes": {name: list(shape) for name, shape in self.shapes},
            "runs": self.runs,
            "warmup": self.warmup,
            "seed": self.seed,
            "variants": [variant.to_json() for variant in self.variants],
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The profile that `to_json` gave. InputError for anything else, also for that of another schema."""
        schema = data.get("schema")
        if schema != SCHEMA:
            raise InputError(
                f"Expected a profile of schema {SCHEMA}, found schema {schema!r}; profile the model again."
            )
        try:
            return cls(
                provider=data["provider"],
                provider_note=data["provider_note"],
                environment=tuple(data["environment"].items()),
                shapes=tuple((name, tuple(shape)) for name, shape in data["shapes"].items()),
                runs=data["runs"],
                warmup=data["warmup"],
                seed=data["seed"],
                variants=tuple(map(Variant.from_json, data["variants"])),
                ratio=None if data["ratio"] is None else Ratio.from_json(data["ratio"]),
                notes=tuple(data["notes"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            damage = f"{type(error).__name__}: {error}"
            raise InputError(f"Expected a complete profile, found {damage}; profile the model again.") from error


def counts(op_types: Iterable[str]) -> Counts:
    """How often each op type occurs, the most frequent first."""
    return _counts(Counter(op_types))


def _counts(tally: Mapping[str, int]) -> Counts:
    return tuple(sorted(tally.items(), key=lambda item: (-item[1], item[0])))
