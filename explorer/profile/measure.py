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

from explorer.errors import ExplorerError
from explorer.profile import answers
from explorer.profile.answers import Loading, Timings
from explorer.profile.statistics import is_steady
from explorer.profile.values import Latency, Measurement, Point, Ratio
from explorer.runtime import arrays, gpu
from explorer.runtime.arrays import Array
from explorer.runtime.context import Context
from explorer.runtime.environment import environment
from explorer.runtime.providers import choose_provider
from explorer.runtime.refusals import is_out_of_memory
from explorer.runtime.sessions import Session, SessionSpec, load_best

# Runs that do not become steady are given this many rounds and this long, whichever takes longer …
WARMUP_ROUNDS = 20
WARMUP_S = 2.0
WARMUP_LIMIT_S = 20.0  # … but no longer: a model that takes seconds a run is warm after its first ones.
# An idle GPU's clocks take a few tenths of a second to rise; short runs look steady long before that.
CUDA_WARMUP_S = 0.5
# Right after another model's run the caches are that model's: a run that is bound by launching kernels then took 19 %
# longer on an H200 (6.86 ms against 5.77 ms alone). One untimed run before the timed one takes that out.
SETTLE_RUNS = 1
REPORT_S = 0.25  # between two reports during the timed runs

Clock = Callable[[], float]
"""Seconds, from any start."""


def measure(
    context: Context,
    variants: Sequence[Mapping[str, Any]],
    feeds_npz: Sequence[str],
    out_json: str,
    provider: str = "auto",
    runs: int = 20,
    seed: int = 0,
) -> None:
    """Time `variants` on the arrays in each file of `feeds_npz` and write `Timings` to `out_json`.

    A variant is {"name", "model", "data_folder", "sdpa_kernel", "cuda_graph"}. One that does not load, or not run on
    some inputs, is refused there in words. If none runs anywhere, the first refusal is raised: InputError when the
    inputs do not fit, else SessionError.
    """
    context.progress(0.0, "Looking for the execution provider")
    device, provider_note = choose_provider(context, provider)
    loaded: list[Loaded] = []
    for index, variant in enumerate(variants):
        context.progress(0.02 + 0.13 * index / len(variants), f"Loading {variant['name']}")
        loaded.append(load(variant, device, beside=_sessions(loaded)))
    points: list[Point] = []
    refusals: list[ExplorerError | None] = []
    for index, path in enumerate(feeds_npz):
        report = Report(context, index, len(feeds_npz))
        point, refused = measure_point(report, loaded, arrays.load(path), runs, seed, cuda=device == "cuda")
        points.append(point)
        refusals += refused
    if refusals[0] is not None and None not in refusals:
        raise refusals[0]
    timings = Timings(
        provider="cuda" if device == "cuda" else "cpu",
        provider_note=provider_note,
        environment=tuple(environment(context).items()),
        loadings=tuple(item.loading for item in loaded),
        points=tuple(points),
    )
    answers.write(out_json, timings)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A variant with its session, or with the error that there is instead."""

    name: str
    session: Session | ExplorerError
    loading: Loading


def load(variant: Mapping[str, Any], device: str, *, beside: int = 0) -> Loaded:
    """The variant, loaded `beside` so many other sessions at the highest optimization level that works."""
    spec = SessionSpec(
        variant["model"],
        device,
        variant["data_folder"],
        sdpa_kernel=variant["sdpa_kernel"],
        cuda_graph=variant["cuda_graph"] and device == "cuda",
    )
    try:
        session, spec, lowered = load_best(spec)
    except ExplorerError as error:
        return Loaded(variant["name"], _kept(error, beside), Loading(None, spec.optimization, ""))
    return Loaded(variant["name"], session, Loading(session.load_s, spec.optimization, lowered or ""))


class Report:
    """Tells the caller how far the measurements of one of several points are."""

    def __init__(self, context: Context, point: int, points: int) -> None:
        self._context, self._point, self._points = context, point, points
        self._last_s = -REPORT_S

    def __call__(self, share: float, text: str) -> None:
        """`share` (0 to 1) of this point is done."""
        where = f" (shape {self._point + 1} of {self._points})" if self._points > 1 else ""
        self._context.progress(0.15 + 0.85 * (self._point + share) / self._points, text + where)

    def round(self, done: int, runs: int) -> None:
        """A timed round is over: told only now and then.

        Each report wakes the parent process, which takes cycles from the run after it, and that is always the first
        variant's: reported after every round, a model is several percent slower than itself.
        """
        now_s = time.monotonic()
        if done == runs or now_s - self._last_s >= REPORT_S:
            self._last_s = now_s
            self(0.3 + 0.7 * done / runs, f"Timed run {done} of {runs}")


class Runner:
    """The runs of a variant on some inputs. Once it is refused, `refusal`, it does nothing any more.

    So a variant that fails leaves the times of the others alone. `beside` so many other sessions are loaded.
    """

    def __init__(self, session: Session | ExplorerError, feeds: Mapping[str, Array], *, beside: int = 0) -> None:
        self.refusal: ExplorerError | None = None
        self._beside = beside
        self._run: Callable[[], object] = _nothing
        if isinstance(session, ExplorerError):
            self.refusal = session
            return
        try:
            self._run = session.bind(feeds)
        except ExplorerError as error:
            self._refuse(error)

    def __call__(self) -> None:
        try:
            self._run()
        except ExplorerError as error:
            self._refuse(error)

    def _refuse(self, error: ExplorerError) -> None:
        self.refusal = _kept(error, self._beside)
        self._run = _nothing


def _nothing() -> None:
    pass


def _sessions(loaded: Sequence[Loaded]) -> int:
    return sum(not isinstance(item.session, ExplorerError) for item in loaded)


def _kept(error: ExplorerError, beside: int) -> ExplorerError:
    """The error in words alone, for its traceback would hold on to the memory on the device.

    Where that ran out they tell of the other sessions, so many, that were loaded `beside` the refused one.
    """
    text = str(error)
    if beside and is_out_of_memory(text):
        others = "1 other session was" if beside == 1 else f"{beside} other sessions were"
        text = f"{text.removesuffix('.')}; {others} loaded beside it, so it may run alone."
    return type(error)(text)


def measure_point(
    report: Report, loaded: Sequence[Loaded], feeds: Mapping[str, Array], runs: int, seed: int, *, cuda: bool
) -> tuple[Point, list[ExplorerError | None]]:
    """All variants on one set of inputs, and for each the error that its refusal was, if it was refused."""
    others = _sessions(loaded) - 1
    runners = [Runner(item.session, feeds, beside=others) for item in loaded]
    first_ms = []
    for index, (item, runner) in enumerate(zip(loaded, runners, strict=True)):
        report(0.2 * index / len(loaded), f"First run of {item.name}")
        first_ms += take_turns([runner], 1)[0]
    report(0.2, "Warming up")
    warmup, steady = warm_up(_running(runners), minimum_s=CUDA_WARMUP_S if cuda else 0.0)
    before = gpu.state() if cuda else None
    running = _running(runners)
    take_turns(running, 1)  # for asking the GPU's state left it idle
    settle = SETTLE_RUNS if len(running) > 1 else 0
    times_ms = take_turns(running, runs, settle=settle, on_round=lambda done: report.round(done, runs))
    after = gpu.state() if cuda else None

    latencies = {id(runner): Latency(tuple(own)) for runner, own in zip(running, times_ms, strict=True)}
    found = [latencies[id(runner)] if runner.refusal is None else None for runner in runners]
    reference = found[0]
    measurements = tuple(
        Measurement(
            variant=item.name,
            first_run_ms=None if own is None else first,
            latency=own,
            ratio=Ratio.of(reference, own, seed) if index and reference is not None and own is not None else None,
            trace=None,
            dispatch=(),
            refusal="" if runner.refusal is None else str(runner.refusal),
        )
        for index, (item, runner, first, own) in enumerate(zip(loaded, runners, first_ms, found, strict=True))
    )
    point = Point(
        shapes=tuple((name, array.shape) for name, array in feeds.items()),
        warmup=warmup,
        steady=steady,
        gpu=tuple(state for state in (before, after) if state is not None),
        measurements=measurements,
    )
    return point, [runner.refusal for runner in runners]


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
    for done in range(rounds if runners else 0):
        for runner, own in zip(runners, times_ms, strict=True):
            for _ in range(settle):
                runner()
            start = clock()
            runner()
            own.append((clock() - start) * 1e3)
        on_round(done + 1)
    return times_ms


def warm_up(runners: Sequence[Runner], *, minimum_s: float = 0.0, clock: Clock = time.perf_counter) -> tuple[int, bool]:
    """Run rounds for `minimum_s`, then until no runner gets faster any more: (rounds run, whether they are steady).

    It gives up after 20 rounds and 2 s, whichever takes longer, but after 20 s at the latest. A runner that is refused
    on the way is not waited for.
    """
    history: dict[Runner, list[float]] = {runner: [] for runner in runners}
    start, rounds = clock(), 0
    while running := _running(runners):
        rounds += 1
        for runner, (latest,) in zip(running, take_turns(running, 1, clock=clock), strict=True):
            history[runner].append(latest)
        elapsed_s = clock() - start
        if elapsed_s >= minimum_s and all(is_steady(history[runner]) for runner in _running(running)):
            return rounds, True
        if elapsed_s > WARMUP_LIMIT_S or (rounds >= WARMUP_ROUNDS and elapsed_s >= WARMUP_S):
            return rounds, False
    return rounds, True


def _running(runners: Sequence[Runner]) -> list[Runner]:
    return [runner for runner in runners if runner.refusal is None]
