from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from profile_values import TRACE

from explorer.errors import SessionError
from explorer.profile import answers, codec, inspection
from explorer.profile.answers import Regions, Traced, Traces
from explorer.profile.ort_graph import OrtGraph, OrtNode
from explorer.profile.recorder import NoTracer, Recorded
from explorer.profile.recording import Recording
from explorer.profile.values import Dispatch, Placement, Region
from explorer.runtime import arrays
from explorer.runtime.sessions import SessionSpec

REGION = Region("b0", (("r", "softmax"),), ("y",))


@pytest.fixture
def inspect(context, tmp_path):
    """What `inspect` writes about a model run on vectors of these sizes."""

    def run(model: str, *sizes: int, **changes) -> Traces:
        files = []
        for size in sizes:
            files.append(str(tmp_path / f"{size}.npz"))
            arrays.save(files[-1], {"x": np.ones(size, np.float32)})
        args = {
            "name": "relu",
            "model": model,
            "data_folder": None,
            "provider": "cpu",
            "optimization": "all",
            "sdpa_kernel": 0,
            "compute_capability": "",
            "regions": codec.to_json(Regions((REGION,))),
            "feeds_npz": files,
            "out_json": str(tmp_path / "out.json"),
        }
        inspection.inspect(context, **args | changes)
        return answers.read(tmp_path / "out.json", Traces)

    return run


def test_a_model_is_traced_on_each_of_its_inputs(inspect, save_model):
    model = save_model("relu", "g (float[N] x) => (float[N] y) { [r] y = Relu (x) }")
    found = inspect(model, 3, 4)
    assert (found.no_tracer, found.ops_optimized, found.memcpy_nodes) == ("", (("Relu", 1),), 0)
    assert found.placement == (Placement("CPUExecutionProvider", (("Relu", 1),)),)
    assert [traced.refusal for traced in found.traced] == ["", ""]
    for size, traced in zip((3, 4), found.traced, strict=True):
        assert (traced.trace.method, traced.trace.runs) == ("node-timer", inspection.TRACED_RUNS)
        (node,) = traced.trace.nodes
        assert (node.name, node.block, node.role, node.inputs) == ("r", "b0", "softmax", (f"float32[{size}]",))


def test_inputs_that_it_does_not_run_on_are_refused_alone(inspect, save_model):
    model = save_model("add", "g (float[N] x) => (float[M] y) <float[3] c = {1, 2, 3}> { [r] y = Add (x, c) }")
    found = inspect(model, 3, 4)
    assert [traced.trace is None for traced in found.traced] == [False, True]
    assert "cannot run add.onnx" in found.traced[1].refusal


def test_a_model_that_does_not_load_is_a_session_error(inspect, save_model):
    with pytest.raises(SessionError, match=r"cannot load bad\.onnx"):
        inspect(save_model("bad", "g (float[N] x) => (float[N] y) { y = Nonsense (x) }"), 3)


def test_what_the_recording_says_is_passed_on(inspect, monkeypatch):
    node = OrtNode("a", "MultiHeadAttention", "com.microsoft", (), (), ())
    graph = OrtGraph((node, replace(node, name="m", op_type="MemcpyToHost", domain="")), frozenset(), frozenset())
    dispatch = Dispatch("a", "MultiHeadAttention", "fp16", "MATH", "", "It has a bias.")
    asked = []

    def record(context, spec, feeds, runs):
        asked.append((spec, [found["x"].shape for found in feeds], runs))
        recording = Recording("cupti", (), (), (), (), 0, None, None, "the log")
        return Recorded(
            graph, (Placement("CUDAExecutionProvider", (("MultiHeadAttention", 1),)),), (recording, "Gone.")
        )

    monkeypatch.setattr(inspection, "record", record)
    monkeypatch.setattr(inspection, "trace_of", lambda *given: asked.append(given[1:]) or TRACE)
    monkeypatch.setattr(inspection, "dispatches", lambda *given: asked.append(given) or (dispatch,))
    changes = {"provider": "cuda", "optimization": "basic", "sdpa_kernel": 8, "compute_capability": "9.0"}
    found = inspect("m.onnx", 3, 4, data_folder="weights", **changes)
    assert found.traced == (Traced(TRACE, (dispatch,), ""), Traced(None, (), "Gone."))
    assert (found.memcpy_nodes, dict(found.ops_optimized)) == (1, {"MultiHeadAttention": 1, "MemcpyToHost": 1})
    assert asked == [
        (SessionSpec("m.onnx", "cuda", "weights", "basic", sdpa_kernel=8), [(3,), (4,)], inspection.TRACED_RUNS),
        (graph, (REGION,)),
        (TRACE, "the log", graph, 8, "9.0"),
    ]


def test_a_process_that_sees_no_gpu_says_so(inspect, monkeypatch):
    def record(*_):
        raise NoTracer("CUPTI is not there.")

    monkeypatch.setattr(inspection, "record", record)
    assert inspect("m.onnx", 3, provider="cuda") == Traces("CUPTI is not there.", (), 0, (), ())
