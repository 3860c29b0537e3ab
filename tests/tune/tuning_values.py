"""Trials with exact times, profiles that say them, and whole tunings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from explorer.fusion import Fusion, Plan
from explorer.fusion.plan import Settings
from explorer.profile.client import Subject
from explorer.profile.values import (
    Dispatch,
    Latency,
    Measurement,
    Point,
    Profile,
    Ratio,
    Variant,
)  # fmt: skip
from explorer.tune import FamilyTuning, Trial, Tuning

ENVIRONMENT = (("onnxruntime", "1.31.1"), ("cpu", "A processor"), ("gpu", "NVIDIA H200"))
RUNS = 6


def latency(ms: float, noise: float = 0.0) -> Latency:
    """Runs around a median, `noise` below and above it in turns: what is noise is another sign in another trial."""
    return Latency(tuple(ms + noise * sign for sign in (-1, 1) * (RUNS // 2)))


def trial(
    targets: str | tuple[str, ...] = "", ms: float | None = 1.0, *, kernel: str = "", sdpa: int = 0, nodes: int = 0,
    noise: float = 0.0, refusal: str = "", merged: tuple[int, ...] = (), device_us: float | None = None,
) -> Trial:  # fmt: skip
    """A trial, of one family if `targets` is a text."""
    targets = (targets,) if isinstance(targets, str) else targets
    name = " + ".join(target or "unfused" for target in targets)
    took = None if ms is None else latency(ms, noise)
    return Trial(name, targets, sdpa, merged, kernel, nodes, took, None, device_us, refusal)


def family(*trials: Trial, block: str = "b0") -> FamilyTuning:
    """A family of one block."""
    return FamilyTuning("attn0", (block,), block, "2 heads of 8", trials)


def tuning(**changed: Any) -> Tuning:
    """mha/bsd wins."""
    fields: dict[str, Any] = {
        "source": "5" * 64,
        "file": "5" * 64,
        "provider": "cuda",
        "environment": ENVIRONMENT,
        "shapes": (("x", (2, 938, 100)),),
        "runs": RUNS,
        "seed": 0,
        "families": (family(trial(ms=1.2), trial("mha/bsd", 0.1), trial("attention/bnsh", 0.13)),),
        "trials": (trial(ms=12.1), trial("mha/bsd", 5.2)),
        "plan": Plan("5" * 64, (Fusion("b0", "mha/bsd", "attn0", "f", "w"),), Settings("cuda")),
        "sdpa_kernel": 0,
        "notes": ("a note",),
    }
    return Tuning(**{**fields, **changed})


class FakeProfiler:
    """In place of `profile`: says for each subject the time, kernel and refusal that it is told to."""

    def __init__(
        self, times: Mapping[str, float], kernels: Mapping[str, str] | None = None, refusals: Sequence[str] = ()
    ) -> None:
        self.asked: list[list[Subject]] = []
        self.traced: list[bool] = []
        self._times = times
        self._kernels = kernels or {}
        self._refusals = refusals

    def __call__(self, worker: object, subjects: Sequence[Subject], points: Sequence[Any], **options: Any) -> Profile:
        self.asked.append(list(subjects))
        self.traced.append(options["trace"])
        latencies = [self._latency(item.name, options["runs"]) for item in subjects]
        return Profile(
            provider="cuda" if options["provider"] == "cuda" else "cpu",
            provider_note="",
            environment=ENVIRONMENT,
            labels=(),
            source="",
            runs=options["runs"],
            seed=options["seed"],
            variants=tuple(
                Variant(item.name, item.plan, item.sdpa_kernel, False, 0.1, "all", (), (), 0, ()) for item in subjects
            ),
            points=(
                Point(
                    tuple((name, array.shape) for name, array in points[0].items()), 1, True, (),
                    tuple(map(self._measured, subjects, latencies, [None, *latencies[:1] * (len(subjects) - 1)])),
                ),
            ),
            notes=("a note of the profile",),
        )  # fmt: skip

    def _latency(self, name: str, runs: int) -> Latency | None:
        return None if name in self._refusals else Latency((self._times[name],) * runs)

    def _measured(self, subject: Subject, own: Latency | None, first: Latency | None) -> Measurement:
        ratio = None if own is None or first is None else Ratio.of(first, own, 0)
        kernel = self._kernels.get(subject.name, "")
        dispatch = (Dispatch("node", "MultiHeadAttention", "fp16", kernel, "", ""),) if kernel else ()
        return Measurement(subject.name, 1.0, own, ratio, None, dispatch, "out of memory" if own is None else "")
