"""Ties the GPU's work to the nodes that asked for it: from a Recording to a Trace. Pure.

A kernel runs long after the call that launched it, but both carry the same correlation id, and the call was made while
its node was being computed: the node is the innermost one whose time on the host holds the middle of the call. It does
not matter on which thread the call was made, nor on which stream the kernel ran.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from explorer.profile.blocks import Membership
from explorer.profile.kernels import shorten
from explorer.profile.ort_graph import OrtGraph
from explorer.profile.recording import GpuWork, Launch, NodeRun, Recording
from explorer.profile.trace import UNATTRIBUTED, Copies, CopyKind, Kernel, NodeTime, Slice, Trace
from explorer.profile.values import Region

ROUNDING_NS = 1000
"""ONNX Runtime's profile has whole microseconds, rounded down: a node may end this much later than it says."""

_NOTES = {
    "cupti": (
        "GPU time of {runs} runs of their own as CUPTI recorded it; launching took longer in them than untraced."
    ),
    "launch-blocking": (
        "Times of {runs} runs of their own in which each launch waited for the GPU (CUDA_LAUNCH_BLOCKING=1), as ONNX "
        "Runtime's node timer has them: the GPU's work and 5 to 10 µs for each launch, without kernels or gaps."
    ),
    "node-timer": (
        "Times of {runs} runs of their own by ONNX Runtime's node timer on the CPU, which adds some 10 µs to each "
        "node: compare operators with each other, not their sum with the latency."
    ),
}
_DROPPED = " CUPTI had no room for {dropped} records: some of the GPU's work is missing here."

_Key = tuple[str, ...]
"""Names of a node and of those whose bodies it is in, the outermost first."""


@dataclass(slots=True)
class _Execution:
    """A node run with what belongs to it: its key, its run, its time without that of its body, its work on the GPU."""

    node: NodeRun
    run: int
    key: _Key
    self_ns: int
    work: list[GpuWork] = field(default_factory=list)


def trace_of(recording: Recording, graph: OrtGraph, regions: Sequence[Region]) -> Trace:
    """Where the time of the recorded runs went. `graph` is the one that ran, `regions` the file's attention blocks."""
    runs = len(recording.runs)
    executions = _executions(recording)
    by_run, unattributed = _attribute(recording, executions)
    kernels = _kernels(by_run, runs)
    kernel_index = {kernel.name: at for at, kernel in enumerate(kernels)}
    nodes, node_index = _nodes(recording, executions, kernel_index, Membership(graph, regions))
    gaps = [list(_gaps(work)) for work in by_run]
    timed_us = sum(node.time_us for node in nodes)
    note = _NOTES[recording.method].format(runs=runs)
    return Trace(
        method=recording.method,
        note=note + (_DROPPED.format(dropped=recording.dropped) if recording.dropped else ""),
        runs=runs,
        wall_us=sum(run.end_ns - run.start_ns for run in recording.runs) / runs / 1000,
        busy_us=sum(map(_union_ns, by_run)) / runs / 1000 if recording.method == "cupti" else timed_us,
        idle_us=sum(map(sum, gaps)) / runs / 1000,
        longest_gap_us=max((gap for found in gaps for gap in found), default=0) / 1000,
        unattributed_us=sum(work.end_ns - work.start_ns for work in unattributed) / runs / 1000,
        arena_peak_bytes=recording.arena_peak_bytes,
        arena_held_bytes=recording.arena_held_bytes,
        nodes=nodes,
        kernels=kernels,
        copies=_copies(by_run, runs),
        timeline=_timeline(recording, executions, by_run[-1], node_index, kernel_index),
    )


def _executions(recording: Recording) -> list[_Execution]:
    """The node runs, in order of their starts. A run within the time of another is of a node in that one's body."""
    starts = [run.start_ns for run in recording.runs]
    found: list[_Execution] = []
    around: list[_Execution] = []  # those that the current one lies in, the innermost last
    for node in recording.nodes:
        while around and not _holds(around[-1].node, node):
            around.pop()
        parent = around[-1] if around else None
        length = node.end_ns - node.start_ns
        if parent is not None:
            parent.self_ns = max(parent.self_ns - length, 0)
        key = (*(parent.key if parent is not None else ()), node.name)
        found.append(_Execution(node, max(bisect_right(starts, node.start_ns) - 1, 0), key, length))
        around.append(found[-1])
    return found


def _holds(outer: NodeRun, inner: NodeRun) -> bool:
    return inner.start_ns < outer.end_ns and inner.end_ns <= outer.end_ns + ROUNDING_NS


def _attribute(recording: Recording, executions: list[_Execution]) -> tuple[list[list[GpuWork]], list[GpuWork]]:
    """Hand the GPU's work to the executions that launched it. Returns all work of each run, and what nobody launched.

    Work that was launched before the first run is none of theirs. Where its launch was not recorded, its correlation
    id tells: they count up.
    """
    starts = [run.start_ns for run in recording.runs]
    launches = {launch.correlation: launch for launch in recording.launches}
    owners = _owners(recording.launches, executions)
    first = min(launches, default=0)
    by_run: list[list[GpuWork]] = [[] for _ in starts]
    unattributed: list[GpuWork] = []
    for work in recording.work:
        launch, owner = launches.get(work.correlation), owners.get(work.correlation)
        when_ns = work.start_ns if launch is None else _middle(launch)
        if when_ns < starts[0] or (launch is None and work.correlation < first):
            continue
        by_run[bisect_right(starts, when_ns) - 1 if owner is None else owner.run].append(work)
        (unattributed if owner is None else owner.work).append(work)
    return by_run, unattributed


def _owners(launches: Iterable[Launch], executions: Sequence[_Execution]) -> dict[int, _Execution]:
    """For each launch (its correlation id) that was made for a node: the execution whose time holds it most closely."""
    owners: dict[int, _Execution] = {}
    waiting = iter(executions)
    upcoming = next(waiting, None)
    around: list[_Execution] = []
    for launch in sorted(launches, key=_middle):
        when_ns = _middle(launch)
        while upcoming is not None and upcoming.node.start_ns <= when_ns:
            around.append(upcoming)
            upcoming = next(waiting, None)
        around = [execution for execution in around if when_ns < execution.node.end_ns + ROUNDING_NS]
        if around:
            owners[launch.correlation] = around[-1]
    return owners


def _middle(launch: Launch) -> int:
    return (launch.start_ns + launch.end_ns) // 2


def _nodes(
    recording: Recording, executions: Sequence[_Execution], kernel_index: dict[str, int], membership: Membership
) -> tuple[tuple[NodeTime, ...], dict[_Key, int]]:
    """All nodes with their means over the runs, in the order of the last run; and where each is among them."""
    runs = len(recording.runs)
    by_key: dict[_Key, list[_Execution]] = defaultdict(list)
    for execution in (
        *(it for it in executions if it.run == runs - 1),
        *(it for it in executions if it.run < runs - 1),
    ):
        by_key[execution.key].append(execution)
    nodes = []
    for group in by_key.values():
        last = max(group, key=lambda execution: execution.node.start_ns).node
        host_us = sum(execution.self_ns for execution in group) / runs / 1000
        work = [done for execution in group for done in execution.work]
        if recording.method == "cupti":
            time_us = sum(done.end_ns - done.start_ns for done in work) / runs / 1000
        else:  # where the GPU is timed, nodes that compute on the CPU take none of its time
            time_us = 0.0 if recording.method == "launch-blocking" and last.provider == "cpu" else host_us
        kernel_ns: dict[int, int] = defaultdict(int)
        for done in work:
            if done.kind == "kernel":
                kernel_ns[kernel_index[shorten(done.name)]] += done.end_ns - done.start_ns
        block, role = membership.of(last.name)
        nodes.append(
            NodeTime(
                name=last.name,
                op_type=last.op_type,
                provider=last.provider,
                block=block,
                role=role,
                time_us=time_us,
                host_time_us=host_us,
                launches=len(work) / runs,
                kernels=tuple(sorted(kernel_ns, key=lambda at: (-kernel_ns[at], at))),
                inputs=last.inputs,
                outputs=last.outputs,
            )
        )
    return tuple(nodes), {key: at for at, key in enumerate(by_key)}


def _kernels(by_run: Iterable[Iterable[GpuWork]], runs: int) -> tuple[Kernel, ...]:
    times_ns: dict[str, list[int]] = defaultdict(list)
    for work in (done for of_run in by_run for done in of_run if done.kind == "kernel"):
        times_ns[shorten(work.name)].append(work.end_ns - work.start_ns)
    found = (Kernel(name, sum(ns) / runs / 1000, len(ns) / runs) for name, ns in times_ns.items())
    return tuple(sorted(found, key=lambda kernel: (-kernel.time_us, kernel.name)))


def _copies(by_run: Iterable[Iterable[GpuWork]], runs: int) -> tuple[Copies, ...]:
    moves: dict[CopyKind, list[GpuWork]] = defaultdict(list)
    for work in (done for of_run in by_run for done in of_run):
        if work.kind != "kernel":
            moves[work.kind].append(work)
    found = (
        Copies(
            kind=kind,
            count=len(moved) / runs,
            size_bytes=sum(work.size_bytes for work in moved) / runs,
            time_us=sum(work.end_ns - work.start_ns for work in moved) / runs / 1000,
        )
        for kind, moved in moves.items()
    )
    return tuple(sorted(found, key=lambda copies: (-copies.time_us, copies.kind)))


def _stretches(works: Iterable[GpuWork]) -> Iterator[tuple[int, int]]:
    """(start, end) of the stretches in which the GPU worked on anything, in order."""
    start = end = None
    for work in sorted(works, key=lambda work: work.start_ns):
        if start is None or end is None:
            start, end = work.start_ns, work.end_ns
        elif work.start_ns > end:
            yield start, end
            start, end = work.start_ns, work.end_ns
        else:
            end = max(end, work.end_ns)
    if start is not None and end is not None:
        yield start, end


def _union_ns(works: Iterable[GpuWork]) -> int:
    return sum(end - start for start, end in _stretches(works))


def _gaps(works: Iterable[GpuWork]) -> Iterator[int]:
    return (after - end for (_, end), (after, _) in pairwise(_stretches(works)))


def _timeline(
    recording: Recording,
    executions: Sequence[_Execution],
    last_work: Sequence[GpuWork],
    node_index: dict[_Key, int],
    kernel_index: dict[str, int],
) -> tuple[Slice, ...]:
    origin = recording.runs[-1].start_ns
    last = [execution for execution in executions if execution.run == len(recording.runs) - 1]
    owners = {id(work): node_index[execution.key] for execution in last for work in execution.work}

    def place(timed: NodeRun | GpuWork) -> tuple[float, float]:
        return (timed.start_ns - origin) / 1000, (timed.end_ns - timed.start_ns) / 1000

    host = (Slice("host", *place(it.node), node_index[it.key], -1, "") for it in last)
    gpu = (
        Slice(
            f"stream {work.stream}",
            *place(work),
            owners.get(id(work), UNATTRIBUTED),
            kernel_index[shorten(work.name)] if work.kind == "kernel" else -1,
            "" if work.kind == "kernel" else work.kind,
        )
        for work in sorted(last_work, key=lambda work: (work.stream, work.start_ns))
    )
    return (*host, *gpu)
