"""What ONNX Runtime makes of a model, in the worker process: seen in a session and in runs that nobody times."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from explorer.profile import dispatch
from explorer.profile.values import Counts, KernelDispatch, OpTime, Placement, counts
from explorer.runtime.arrays import Array
from explorer.runtime.context import Context
from explorer.runtime.sessions import Session, SessionSpec

NODE_TIME_RUNS = 5
# Their bodies' nodes have times of their own, so theirs would count twice.
CONTAINERS = frozenset({"If", "Loop", "Scan"})

CPU_NODE_TIMES = (
    "Mean of {runs} runs of their own by ONNX Runtime's node timer on the CPU, which adds some 10 µs to each node: "
    "compare operators with each other, not their sum with the latency."
)
CUDA_NODE_TIMES = (
    "Not shown on CUDA, where ONNX Runtime's profile times how long the host takes to launch a node, "
    "not how long the GPU works on it."
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was seen of one variant; the fields are those of `explorer.profile.values.Variant`."""

    ops: Counts
    ops_optimized: Counts
    op_times: tuple[OpTime, ...]
    op_times_note: str
    kernels: tuple[KernelDispatch, ...]
    placement: tuple[Placement, ...]


def inspect(context: Context, spec: SessionSpec, feeds: Mapping[str, Array], runs: int) -> Inspection:
    """Load the model once more, with everything recorded, and run it: a few times on the CPU, once on CUDA."""
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        optimized = Path(folder, "optimized.onnx")
        recorded = replace(spec, optimized_model=optimized)
        if spec.provider == "cpu":
            session = Session(replace(recorded, node_times=Path(folder, "times")))
            measured_runs = min(runs, NODE_TIME_RUNS)
            for _ in range(1 + measured_runs):
                session.run(feeds)
            times = op_times(json.loads(session.end_node_times().read_text()))
            note = CPU_NODE_TIMES.format(runs=measured_runs)
            kernels: tuple[KernelDispatch, ...] = ()
        else:
            mark = context.log_mark()
            with _environment(dispatch.DEBUG_VARIABLE, "1"):
                session = Session(recorded)
                session.run(feeds)
            times, note = (), CUDA_NODE_TIMES
            kernels = dispatch.parse(context.log_since(mark))
        return Inspection(
            ops=count_ops(spec.model),
            ops_optimized=count_ops(optimized),
            op_times=times,
            op_times_note=note,
            kernels=kernels,
            placement=_placement(session.assignments()),
        )


def count_ops(path: str | Path) -> Counts:
    """The nodes of a model file by op type, subgraphs included. Its external data is not read."""
    return counts(_op_types(onnx.load(path, load_external_data=False).graph))


def op_times(events: Sequence[Mapping[str, Any]]) -> tuple[OpTime, ...]:
    """Time by op type, the longest first: the mean of all runs in ONNX Runtime's profile but the first, a warm-up."""
    starts_us = sorted(event["ts"] for event in events if event["name"] == "model_run")[1:]
    times_us: dict[str, list[float]] = defaultdict(list)
    for event in events:
        op_type = event.get("args", {}).get("op_name")
        is_kernel = event["cat"] == "Node" and event["name"].endswith("_kernel_time")
        if is_kernel and op_type not in CONTAINERS and event["ts"] >= starts_us[0]:
            times_us[op_type].append(event["dur"])
    means = [OpTime(op_type, sum(us) / len(starts_us), len(us) / len(starts_us)) for op_type, us in times_us.items()]
    return tuple(sorted(means, key=lambda mean: (-mean.time_us, mean.op_type)))


def _op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _op_types(subgraph)


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
