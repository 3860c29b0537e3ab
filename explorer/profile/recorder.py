"""Runs a model with everything recorded, in the worker process."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from explorer.errors import SessionError
from explorer.profile import cupti, ort_graph
from explorer.profile.cupti import Collected, NoTracer
from explorer.profile.dispatch import DEBUG_VARIABLE
from explorer.profile.ort_graph import OrtGraph
from explorer.profile.recording import NodeRun, Recording, RunSpan
from explorer.profile.trace import Method
from explorer.profile.values import Placement, counts
from explorer.runtime.arrays import Array
from explorer.runtime.context import Context
from explorer.runtime.providers import choose_provider
from explorer.runtime.sessions import Session, SessionSpec

BLOCKING_VARIABLE = "CUDA_LAUNCH_BLOCKING"
"""With it set to 1 when CUDA starts in a process, each launch waits until the GPU has done it."""
WARMUP_RUNS = 3
NO_ROOM = (
    "ONNX Runtime's node timer keeps a million events and had no room for these runs; profile fewer shapes at a time."
)

_TYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's C++ words
_NODE_EVENT = "_kernel_time"
_NOTHING = Collected((), (), 0)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was seen of one variant.

    graph       the one that ran
    placement   which execution provider got which nodes of it
    recordings  for each feeds, in the order given; a sentence if there is none: why
    """

    graph: OrtGraph
    placement: tuple[Placement, ...]
    recordings: tuple[Recording | str, ...]


@dataclass(frozen=True, slots=True)
class _Take:
    """Traced runs, before ONNX Runtime's profile of them is there: when they were, and what else was seen."""

    start_ns: int
    end_ns: int
    collected: Collected
    log: str


def record(context: Context, spec: SessionSpec, feeds_list: Sequence[Mapping[str, Array]], runs: int) -> Recorded:
    """Load the model once more, with everything recorded, and run it on each of `feeds_list`: `runs` traced runs each.

    On CUDA the GPU is watched by CUPTI, or if this process has CUDA_LAUNCH_BLOCKING=1, by ONNX Runtime's node times;
    on the CPU those are true. It knows a node by its name alone, so those of the model should have one. Feeds that the
    model does not run on give a sentence instead of a recording. Raises NoTracer if CUPTI is needed and does not work,
    SessionError if the model does not load.
    """
    choose_provider(context, spec.provider)  # which lets the first session of a process find CUDA's libraries
    with tempfile.TemporaryDirectory(dir=context.folder) as name, _tracer(spec.provider) as (method, collect):
        folder = Path(name)
        optimized = folder / "optimized.onnx"
        with _environment(DEBUG_VARIABLE, "1"):
            session = Session(replace(spec, optimized_model=optimized, node_times=folder / "node_times"))
        started_ns = session.profiling_start_ns()
        # Its profile counts from a moment of a clock that is not the same on every system.
        clock = min(
            (time.time_ns, time.monotonic_ns, time.perf_counter_ns), key=lambda clock: abs(clock() - started_ns)
        )
        takes: dict[int, _Take | str] = {}
        # The smallest first: what ONNX Runtime tells of its arena is the most that was in use since the session began.
        for at in sorted(range(len(feeds_list)), key=lambda at: sum(array.nbytes for array in feeds_list[at].values())):
            try:
                takes[at] = _take(context, session.bind(feeds_list[at]), runs, collect, clock)
            except SessionError as error:
                takes[at] = str(error)
        events = json.loads(session.end_node_times().read_text(encoding="utf-8", errors="replace"))
        recordings = tuple(
            _recording(takes[at], runs, events, started_ns, method, spec.provider) for at in range(len(feeds_list))
        )
        recorded = next((recording for recording in recordings if not isinstance(recording, str)), None)
        graph = ort_graph.read(optimized, () if recorded is None else _executed(recorded))
        return Recorded(graph, _placement(session.assignments()), recordings)


def _take(
    context: Context,
    run: Callable[[], None],
    runs: int,
    collect: Callable[[Callable[[], None]], Collected],
    clock: Callable[[], int],
) -> _Take:
    bounds_ns: list[int] = []

    def traced() -> None:
        run()  # not counted: right after CUPTI started, kernels are loaded anew, which took 36 ms on an H200
        bounds_ns.append(clock())
        for _ in range(runs):
            run()
        bounds_ns.append(clock())

    for _ in range(WARMUP_RUNS):
        run()
    mark = context.log_mark()
    collected = collect(traced)
    start_ns, end_ns = bounds_ns
    return _Take(start_ns, end_ns, collected, context.log_since(mark))


@contextmanager
def _tracer(provider: str) -> Iterator[tuple[Method, Callable[[Callable[[], None]], Collected]]]:
    """How the work of a provider's nodes is timed here, and what calls a function and gives what the GPU did."""
    if provider == "cpu":
        yield "node-timer", _collect_nothing
    elif os.environ.get(BLOCKING_VARIABLE) == "1":
        yield "launch-blocking", _collect_nothing
    else:
        with cupti.attached() as collector:
            yield "cupti", collector.collect


def _collect_nothing(work: Callable[[], None]) -> Collected:
    work()
    return _NOTHING


def _recording(
    take: _Take | str,
    asked: int,
    events: Sequence[Mapping[str, Any]],
    started_ns: int,
    method: Method,
    provider: str,
) -> Recording | str:
    """The take with ONNX Runtime's events of its `asked` runs; a sentence if they are not all there."""
    if isinstance(take, str):
        return take
    inside = [event for event in events if take.start_ns <= started_ns + event["ts"] * 1000 < take.end_ns]
    runs = sorted((_span(event, started_ns) for event in inside if event["name"] == "model_run"), key=_start)
    if len(runs) != asked:  # half a run would count as one, and its GPU work as another's
        return NO_ROOM
    nodes = [
        event for event in inside if event["cat"] == "Node" and event["name"].endswith(_NODE_EVENT) and event["args"]
    ]
    if method == "cupti" and not take.collected.work and any(_provider(event) == "cuda" for event in nodes):
        raise NoTracer("CUPTI starts here but records nothing; another profiler may be attached to this process.")
    arena = [event["args"] for event in nodes if _provider(event) == provider]
    return Recording(
        method=method,
        runs=tuple(runs),
        nodes=tuple(sorted((_node_run(event, started_ns) for event in nodes), key=_start)),
        launches=take.collected.launches,
        work=take.collected.work,
        dropped=take.collected.dropped,
        arena_peak_bytes=_most(arena, "mem_in_use_peak"),
        arena_held_bytes=_most(arena, "mem_arena_held"),
        log=take.log,
    )


def _executed(recording: Recording) -> Iterator[tuple[str, str]]:
    """(name, op type) of the nodes of the last run, without those that ran within another, in order."""
    done_ns = recording.runs[-1].start_ns
    for node in recording.nodes:
        if node.start_ns >= done_ns:
            yield node.name, node.op_type
            done_ns = node.end_ns


def _span(event: Mapping[str, Any], started_ns: int) -> RunSpan:
    start_ns = started_ns + event["ts"] * 1000
    return RunSpan(start_ns, start_ns + event["dur"] * 1000)


def _node_run(event: Mapping[str, Any], started_ns: int) -> NodeRun:
    args, span = event["args"], _span(event, started_ns)
    return NodeRun(
        name=event["name"].removesuffix(_NODE_EVENT),
        op_type=args["op_name"],
        provider="cuda" if _provider(event) == "cuda" else "cpu",
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        inputs=_tensors(args.get("input_type_shape", ())),
        outputs=_tensors(args.get("output_type_shape", ())),
    )


def _provider(event: Mapping[str, Any]) -> str:
    """ "cuda", "cpu" or another, of the node whose event this is."""
    return str(event["args"].get("provider", "")).removesuffix("ExecutionProvider").lower()


def _tensors(described: Sequence[Mapping[str, Sequence[int]]]) -> tuple[str, ...]:
    """[{"float": [2, 3]}] as ("float32[2,3]",)."""
    return tuple(
        f"{_TYPES.get(kind, kind)}[{','.join(map(str, shape))}]"
        for tensor in described
        for kind, shape in tensor.items()
    )


def _most(arena: Sequence[Mapping[str, Any]], statistic: str) -> int | None:
    return max((int(args[statistic]) for args in arena if statistic in args), default=None)


def _start(timed: RunSpan | NodeRun) -> tuple[int, int]:
    """What orders by start; of two that start together the one that holds the other comes first."""
    return timed.start_ns, -timed.end_ns


def _placement(assignments: Sequence[tuple[str, str]]) -> tuple[Placement, ...]:
    providers = dict.fromkeys(provider for provider, _ in assignments)
    return tuple(
        Placement(provider, counts(op_type for owner, op_type in assignments if owner == provider))
        for provider in providers
    )


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable that ONNX Runtime reads when it creates a session."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


__all__ = ["BLOCKING_VARIABLE", "NoTracer", "Recorded", "record"]
