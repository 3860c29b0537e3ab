"""Times models against each other, in the worker process.

The variants take turns, A B A B, in one process: what slows the machine for a while slows them alike, and the ratio of
their times is steadier than the times. Only the runs are timed, with inputs and outputs already on the device. What
ONNX Runtime made of each model is looked at afterwards, in sessions of their own (`inspection`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from explorer.errors import InputError
from explorer.profile.inspection import Inspection, inspect
from explorer.profile.statistics import is_steady
from explorer.profile.values import Latency, Profile, Ratio, Variant
from explorer.runtime import arrays
from explorer.runtime.arrays import Array
from explorer.runtime.context import Context
from explorer.runtime.environment import environment
from explorer.runtime.sessions import SessionSpec, choose_provider, load_best

WARMUP_ROUNDS = 20
WARMUP_S = 20.0  # enough; a model that takes seconds a run is warm after its first ones
# Right after another model's run the caches are that model's: a run that is bound by launching kernels then took 19 %
# longer on an H200 (6.86 ms against 5.77 ms alone). One untimed run before the timed one takes that out.
SETTLE_RUNS = 1
REPORT_S = 0.25  # between two reports during the timed runs

NO_FLASH_ON_CPU = (
    "ONNX Runtime's CPU provider has no flash or cuDNN attention kernel: "
    "this shows the structure and the time on a CPU, not what a GPU gains."
)
CASTS_ON_CPU = (
    "ONNX Runtime's CPU provider puts Casts of its own around float16 nodes that it has no kernel for: "
    "its count of Casts is about this provider only."
)

Clock = Callable[[], float]
"""Seconds, from any start."""


def measure(
    context: Context,
    variants: Sequence[Mapping[str, Any]],
    feeds_npz: str,
    provider: str = "auto",
    runs: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Profile `variants`, each {"name", "model", "data_folder" (optional)}, on the arrays in `feeds_npz`.

    Returns a Profile as JSON. InputError when the feeds do not fit, SessionError when a variant does not load or run.
    """
    if not variants or runs < 1:
        raise InputError(f"Expected at least one variant and one run, found {len(variants)} and {runs}; give both.")
    feeds = arrays.load(feeds_npz)
    context.progress(0.0, "Looking for the execution provider")
    device, provider_note = choose_provider(context, provider)
    names = [variant["name"] for variant in variants]
    specs = [SessionSpec(variant["model"], device, variant.get("data_folder")) for variant in variants]

    timings, warmup, steady = time_sessions(context, names, specs, feeds, runs)
    results = []
    for index, (name, timing) in enumerate(zip(names, timings, strict=True)):
        context.progress(0.7 + 0.3 * index / len(names), f"Inspecting {name}")
        results.append(_variant(name, timing, inspect(context, timing.spec, feeds, runs)))

    notes = [
        f"ONNX Runtime loads {name} only at optimization level {timing.spec.optimization}: {timing.refusal}"
        for name, timing in zip(names, timings, strict=True)
        if timing.refusal is not None
    ]
    if not steady:
        notes.append(f"The runs were still getting faster after {warmup} rounds of warm-up: take more runs.")
    if device == "cpu":
        notes.append(NO_FLASH_ON_CPU)
        if any(variant.casts_optimized > variant.casts_exported for variant in results):
            notes.append(CASTS_ON_CPU)
    return Profile(
        provider=device,
        provider_note=provider_note,
        environment=tuple(environment(context).items()),
        shapes=tuple((name, array.shape) for name, array in feeds.items()),
        runs=runs,
        warmup=warmup,
        seed=seed,
        variants=tuple(results),
        ratio=Ratio.of(results[0].latency, results[-1].latency, seed) if len(results) > 1 else None,
        notes=tuple(notes),
    ).to_json()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one model took.

    spec     what its session was made from, with the optimization level that worked
    refusal  why a higher level did not; None when the highest did
    """

    spec: SessionSpec
    refusal: str | None
    load_s: float
    first_run_ms: float
    latency: Latency


def time_sessions(
    context: Context, names: Sequence[str], specs: Sequence[SessionSpec], feeds: Mapping[str, Array], runs: int
) -> tuple[list[Timing], int, bool]:
    """The timing of each model, the rounds of warm-up, and whether they were enough. Its sessions end with it."""
    loaded = []
    for index, (name, spec) in enumerate(zip(names, specs, strict=True)):
        context.progress(0.02 + 0.18 * index / len(names), f"Loading {name}")
        loaded.append(load_best(spec))
    runners = [session.bind(feeds) for session, _, _ in loaded]

    context.progress(0.2, "Warming up")
    first = take_turns(runners, 1)
    warmup, steady = warm_up(runners)
    settle = SETTLE_RUNS if len(runners) > 1 else 0
    timed = take_turns(runners, runs, settle=settle, on_round=_reporter(context, runs))
    timings = [
        Timing(spec, refusal, session.load_s, first_ms, Latency(tuple(runs_ms)))
        for (session, spec, refusal), (first_ms,), runs_ms in zip(loaded, first, timed, strict=True)
    ]
    return timings, warmup, steady


def take_turns(
    runners: Sequence[Callable[[], object]],
    rounds: int,
    *,
    settle: int = 0,
    clock: Clock = time.perf_counter,
    on_round: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Time each runner once a round, in their order; the milliseconds of each timed run, by runner.

    `settle` untimed runs of the same runner come right before each timed one. `on_round` hears how many rounds are
    done, between them and never within a time.
    """
    times_ms: list[list[float]] = [[] for _ in runners]
    for done in range(rounds):
        for runner, own in zip(runners, times_ms, strict=True):
            for _ in range(settle):
                runner()
            start = clock()
            runner()
            own.append((clock() - start) * 1e3)
        on_round(done + 1)
    return times_ms


def warm_up(runners: Sequence[Callable[[], object]], *, clock: Clock = time.perf_counter) -> tuple[int, bool]:
    """Run rounds until no runner gets faster any more, or 20 rounds or 20 s are over: (rounds run, whether steady)."""
    history: list[list[float]] = [[] for _ in runners]
    start = clock()
    for rounds in range(1, WARMUP_ROUNDS + 1):
        for own, (latest,) in zip(history, take_turns(runners, 1, clock=clock), strict=True):
            own.append(latest)
        if all(map(is_steady, history)):
            return rounds, True
        if clock() - start > WARMUP_S:
            return rounds, False
    return WARMUP_ROUNDS, False


def _reporter(context: Context, runs: int) -> Callable[[int], None]:
    """Progress of the timed runs, only now and then.

    Each report wakes the parent process, which takes cycles from the run after it, and that is always the first
    variant's: reported after every round, a model is several percent slower than itself.
    """
    last_s = -REPORT_S

    def report(done: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if done == runs or now_s - last_s >= REPORT_S:
            last_s = now_s
            context.progress(0.3 + 0.4 * done / runs, f"Timed run {done} of {runs}")

    return report


def _variant(name: str, timing: Timing, seen: Inspection) -> Variant:
    return Variant(
        name=name,
        latency=timing.latency,
        load_s=timing.load_s,
        first_run_ms=timing.first_run_ms,
        optimization=timing.spec.optimization,
        ops=seen.ops,
        ops_optimized=seen.ops_optimized,
        op_times=seen.op_times,
        op_times_note=seen.op_times_note,
        kernels=seen.kernels,
        placement=seen.placement,
    )
