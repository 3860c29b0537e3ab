"""A profile's traces as Chrome trace events, which ui.perfetto.dev and chrome://tracing open. Pure.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from explorer.profile.trace import UNATTRIBUTED, NodeTime, Slice, Trace
from explorer.profile.values import Profile, Shapes

_HOST = "host"


def chrome_trace(profile: Profile) -> dict[str, Any]:
    """A JSON object of the last traced runs: a process per variant and shape, a thread for the host and each stream.

    All runs start at 0, so that variants lie above each other. An arrow leads from the node on the host to its work on
    the GPU; what is known of the node (operator, block, shapes) is in the arguments of both.
    """
    labels = dict(profile.labels)
    events: list[dict[str, Any]] = []
    numbers, flows = count(1), count(1)
    for point in profile.points:
        for measurement in point.measurements:
            if measurement.trace is None:
                continue
            pid = next(numbers)
            name = f"{measurement.variant} · {_words(point.shapes)}"
            events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
            events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}})
            events += _events(measurement.trace, labels, pid, flows)
    return {
        "displayTimeUnit": "ns",
        "otherData": {**dict(profile.environment), "provider": profile.provider, "source": profile.source},
        "traceEvents": events,
    }


def _events(trace: Trace, labels: Mapping[str, str], pid: int, flows: Iterator[int]) -> Iterator[dict[str, Any]]:
    lanes = {lane: at for at, lane in enumerate(dict.fromkeys((_HOST, *(slice_.lane for slice_ in trace.timeline))))}
    for lane, tid in lanes.items():
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": lane}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
    launched_us: dict[int, list[float]] = defaultdict(list)
    for slice_ in trace.timeline:
        if slice_.lane == _HOST:
            launched_us[slice_.node].append(slice_.start_us)
    for starts in launched_us.values():
        starts.sort()
    for slice_ in trace.timeline:
        place = {"pid": pid, "tid": lanes[slice_.lane]}
        node = None if slice_.node == UNATTRIBUTED else trace.nodes[slice_.node]
        yield {
            "ph": "X",
            "name": _name(trace, slice_, node),
            "cat": "node" if slice_.lane == _HOST else slice_.what or "kernel",
            "ts": slice_.start_us,
            "dur": slice_.duration_us,
            **place,
            "args": {} if node is None else _arguments(node, labels),
        }
        starts = launched_us[slice_.node] if slice_.lane != _HOST and node is not None else []
        before = bisect_right(starts, slice_.start_us)
        if before:
            flow = {"name": "launch", "cat": "launch", "id": next(flows)}
            yield {"ph": "s", **flow, "ts": starts[before - 1], "pid": pid, "tid": lanes[_HOST]}
            yield {"ph": "f", "bp": "e", **flow, "ts": slice_.start_us, **place}


def _name(trace: Trace, slice_: Slice, node: NodeTime | None) -> str:
    if slice_.kernel >= 0:
        return trace.kernels[slice_.kernel].name
    return slice_.what or (node.name if node is not None else "")


def _arguments(node: NodeTime, labels: Mapping[str, str]) -> dict[str, Any]:
    known = {
        "node": node.name,
        "op_type": node.op_type,
        "provider": node.provider,
        "block": labels.get(node.block, node.block),
        "role": node.role,
        "inputs": ", ".join(node.inputs),
        "outputs": ", ".join(node.outputs),
    }
    return {name: text for name, text in known.items() if text}


def _words(shapes: Shapes) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, dims)) or 'scalar'}" for name, dims in shapes)
