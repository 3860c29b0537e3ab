"""Recordings for tests: those from an H200, and short ones that a test writes down."""

from __future__ import annotations

import json
from pathlib import Path

from explorer.profile.ort_graph import OrtGraph, OrtNode
from explorer.profile.recording import GpuWork, Launch, NodeRun, Recording, RunSpan

FOLDER = Path(__file__).with_name("recorded")
NO_GRAPH = OrtGraph((), frozenset(), frozenset())


def recorded(name: str) -> Recording:
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Recording(
        **{
            **data,
            "runs": tuple(RunSpan(*row) for row in data["runs"]),
            "nodes": tuple(NodeRun(*row[:5], tuple(row[5]), tuple(row[6])) for row in data["nodes"]),
            "launches": tuple(Launch(*row) for row in data["launches"]),
            "work": tuple(GpuWork(*row) for row in data["work"]),
        }
    )


def recording(runs, nodes, launches=(), work=(), *, method="cupti", dropped=0, log="") -> Recording:
    """Times in µs: runs (start, end), nodes (name, start, end), launches (id, start, end), work (id, start, end)."""
    return Recording(
        method=method,
        runs=tuple(RunSpan(start * 1000, end * 1000) for start, end in runs),
        nodes=tuple(
            node if isinstance(node, NodeRun) else node_run(node[0], node[1], node[2], *node[3:]) for node in nodes
        ),
        launches=tuple(Launch(at, start * 1000, end * 1000) for at, start, end in launches),
        work=tuple(
            GpuWork("kernel", "kernel", at, 7, start * 1000, end * 1000, 0) if len(rest) == 0 else rest[0]
            for at, start, end, *rest in work
        ),
        dropped=dropped,
        arena_peak_bytes=None,
        arena_held_bytes=None,
        log=log,
    )


def node_run(name, start, end, op_type="Relu", provider="cuda", inputs=(), outputs=()) -> NodeRun:
    return NodeRun(name, op_type, provider, start * 1000, end * 1000, inputs, outputs)


def graph(*nodes: tuple, constants=(), outputs=()) -> OrtGraph:
    """Of nodes (name, inputs, outputs), both names in one text."""
    return OrtGraph(
        tuple(
            OrtNode(name, "Op", "", tuple(inputs.split(" ")) if inputs else (), tuple(made.split()), ())
            for name, inputs, made in nodes
        ),
        frozenset(constants),
        frozenset(outputs),
    )
