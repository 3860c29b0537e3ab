"""Sees what ONNX Runtime makes of one variant and where its time goes, in the worker process, in runs nobody times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from explorer.profile import answers, codec
from explorer.profile.answers import Regions, Traced, Traces
from explorer.profile.attribution import trace_of
from explorer.profile.dispatch import dispatches
from explorer.profile.ort_graph import OrtGraph
from explorer.profile.recorder import NoTracer, record
from explorer.profile.recording import Recording
from explorer.runtime import arrays
from explorer.runtime.context import Context
from explorer.runtime.sessions import SessionSpec

TRACED_RUNS = 3


def inspect(
    context: Context,
    name: str,
    model: str,
    data_folder: str | None,
    provider: str,
    optimization: str,
    sdpa_kernel: int,
    compute_capability: str,
    regions: Mapping[str, Any],
    feeds_npz: Sequence[str],
    out_json: str,
) -> None:
    """Trace a variant on the arrays in each file of `feeds_npz` and write `Traces` to `out_json`.

    `provider` and `optimization` are those that it was timed at, `compute_capability` is the device's ("9.0"; "" if
    unknown), `regions` are `Regions` as JSON. SessionError if the model does not load.
    """
    context.progress(0.0, f"Tracing {name}")
    spec = SessionSpec(model, provider, data_folder, optimization, sdpa_kernel=sdpa_kernel)
    blocks = codec.from_json(Regions, regions).regions
    try:
        recorded = record(context, spec, [arrays.load(path) for path in feeds_npz], TRACED_RUNS)
    except NoTracer as error:
        answers.write(out_json, Traces(str(error), (), 0, (), ()))
        return
    context.progress(0.9, f"Reading the traces of {name}")

    def traced(found: Recording | str, graph: OrtGraph) -> Traced:
        if isinstance(found, str):
            return Traced(None, (), found)
        trace = trace_of(found, graph, blocks)
        return Traced(trace, dispatches(trace, found.log, graph, sdpa_kernel, compute_capability), "")

    graph = recorded.graph
    all_traced = tuple(traced(found, graph) for found in recorded.recordings)
    answers.write(out_json, Traces("", graph.ops, graph.memcpy_nodes, recorded.placement, all_traced))
