from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
import recorded_runs

from explorer.errors import InputError, SessionError
from explorer.profile import ort_graph, recorder
from explorer.profile.attribution import trace_of
from explorer.profile.cupti import NoTracer
from explorer.profile.dispatch import DEBUG_VARIABLE
from explorer.profile.recorder import BLOCKING_VARIABLE, NO_ROOM, WARMUP_RUNS, record
from explorer.profile.recording import NodeRun, Recording, RunSpan
from explorer.profile.values import Placement, Region
from explorer.runtime.context import Context
from explorer.runtime.sessions import Session, SessionSpec

BODIES = """g (int64 n, float[S,4] x, bool c) => (float[S,4] w) {
    on = Constant <value = bool {1}> ()
    [first] r = Relu (x)
    [loop] y = Loop <body = b (int64 i, bool on_in, float[S,4] a) => (bool on_out, float[S,4] a_out)
                     { [on] on_out = Identity (on_in) [add] t = Add (a, a) [sin] a_out = Sin (t) }> (n, on, r)
    [transpose] k = Transpose (y)
    [qk] s = MatMul (y, k)
    [choice] p = If (c) <then_branch = t () => (float[S,S] o) { [softmax] o = Softmax (s) },
                         else_branch = e () => (float[S,S] u) { [tanh] u = Tanh (s) }>
    [pv] w = MatMul (p, r)
}"""


@pytest.fixture
def context(tmp_path):
    (tmp_path / "work").mkdir()
    log = tmp_path / "log"
    log.touch()
    return Context(lambda fraction, text: None, tmp_path / "work", log)


@pytest.fixture
def model(tmp_path):
    def save(graph: str) -> str:
        path = tmp_path / "m.onnx"
        text = f'<ir_version: 8, opset_import: ["" : 17]>{graph}'
        path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
        return str(path)

    return save


def bodies(rows):
    return {"n": np.array(2), "x": np.ones((rows, 4), np.float32), "c": np.array(True)}


def test_a_session_on_the_cpu_is_recorded_for_each_feeds(context, model):
    found = record(context, SessionSpec(model(BODIES), "cpu"), [bodies(64), bodies(3)], runs=2)

    assert found.graph.ops[0] == ("MatMul", 2)
    assert found.graph.memcpy_nodes == 0
    (placement,) = found.placement
    assert placement.provider == "CPUExecutionProvider"
    assert dict(placement.ops)["Loop"] == 1
    for recording, rows in zip(found.recordings, (64, 3), strict=True):
        assert (recording.method, len(recording.runs), recording.launches, recording.work) == ("node-timer", 2, (), ())
        first = next(node for node in recording.nodes if node.op_type == "Relu")
        assert (first.name, first.provider) == ("first", "cpu")
        assert (first.inputs, first.outputs) == ((f"float32[{rows},4]",), (f"float32[{rows},4]",))
        for run in recording.runs:
            inside = [node for node in recording.nodes if run.start_ns <= node.start_ns <= run.end_ns]
            assert [node.op_type for node in inside].count("Sin") == 2
    large, small = found.recordings
    assert large.arena_peak_bytes > small.arena_peak_bytes > 0
    assert large.arena_held_bytes >= large.arena_peak_bytes
    assert list(context.folder.iterdir()) == []


def test_its_trace_counts_each_node_once(context, model):
    found = record(context, SessionSpec(model(BODIES), "cpu"), [bodies(64)], runs=3)
    (recording,) = found.recordings
    block = Region("block", (("qk", "qk"), ("choice", ""), ("pv", "pv")), ("s", "p", "w"))
    trace = trace_of(recording, found.graph, [block])
    assert [node.name for node in trace.nodes] == [
        "first",
        "loop",
        "add",
        "sin",
        "on",
        "transpose",
        "qk",
        "choice",
        "softmax",
        "pv",
    ]
    assert [node.name for node in trace.nodes if node.block] == ["qk", "choice", "pv"]
    assert {node.role for node in trace.nodes} == {"", "qk", "pv"}
    assert sum(node.time_us for node in trace.nodes) == pytest.approx(trace.busy_us)
    assert trace.busy_us < trace.wall_us
    assert trace.unattributed_us == 0


def test_a_float16_block_gets_what_was_put_into_it(context, model):
    """The CPU has no kernel for Softmax in float16: it is inlined, as nodes without names, between Casts."""
    graph = """g (float16[1,2,5,8] q, float16[1,2,8,5] k, float16[1,2,5,8] v)
                => (float16[1,2,5,8] z, float16[1,2,5,8] o) {
        [qk] s = MatMul (q, k)
        [softmax] p = Softmax (s)
        [pv] y = MatMul (p, v)
        [outside] o = Softmax (v)
        [next] z = Relu (y)
    }"""
    feeds = {
        name: np.ones(dims, np.float16)
        for name, dims in (("q", (1, 2, 5, 8)), ("k", (1, 2, 8, 5)), ("v", (1, 2, 5, 8)))
    }
    found = record(context, SessionSpec(model(graph), "cpu"), [feeds], runs=1)
    block = Region("b", (("qk", "qk"), ("softmax", "softmax"), ("pv", "pv")), ("s", "p", "y"))
    trace = trace_of(found.recordings[0], found.graph, [block])
    assert "Softmax" not in dict(found.graph.ops)
    assert {node.name for node in trace.nodes} == {node.name for node in found.graph.nodes}
    inside = {node.op_type: node.name for node in trace.nodes if node.block == "b"}
    assert {"MatMul", "Exp", "Div"} <= inside.keys()
    assert sum(node.op_type == "Exp" for node in trace.nodes) == 2  # that of the other Softmax is not the block's
    assert {node.block for node in trace.nodes if node.op_type == "Exp"} == {"", "b"}
    exp = next(node for node in trace.nodes if node.name == inside["Exp"])
    assert exp.inputs == ("float32[1,2,5,5]",)


def test_feeds_that_do_not_run_give_a_sentence_and_others_a_recording(context, model):
    spec = SessionSpec(model("g (float[A,B] x, float[B,C] y) => (float[A,C] z) { z = MatMul (x, y) }"), "cpu")
    good = {"x": np.ones((2, 3), np.float32), "y": np.ones((3, 2), np.float32)}
    bad = {"x": np.ones((2, 3), np.float32), "y": np.ones((4, 2), np.float32)}
    refusal, recording = record(context, spec, [bad, good], runs=1).recordings
    assert "cannot run" in refusal
    assert len(recording.nodes) == 1
    with pytest.raises(InputError):
        record(context, spec, [{"x": good["x"]}], runs=1)


def test_a_model_that_does_not_load_is_a_session_error(context, model):
    with pytest.raises(SessionError, match="cannot load"):
        record(context, SessionSpec(model("g (float[1] x) => (float16[1] y) { y = Relu (x) }"), "cpu"), [], runs=1)


class CudaSession(Session):
    """A session on the CPU that passes for one on CUDA and prints its kernel if it was told to when it was created."""

    log_path = Path()

    def __init__(self, spec):
        self.prints = os.environ.get(DEBUG_VARIABLE) == "1"
        super().__init__(recorder.replace(spec, provider="cpu"))

    def bind(self, feeds):
        run = super().bind(feeds)

        def run_and_print():
            run()
            with self.log_path.open("a") as log:
                log.write("Operator=MultiHeadAttention Node=a DataType=fp16 SdpaKernel=MATH\n" * self.prints)

        return run_and_print


@pytest.fixture
def cuda(context, monkeypatch):
    monkeypatch.setattr(CudaSession, "log_path", context.log_path)
    monkeypatch.setattr(recorder, "Session", CudaSession)
    monkeypatch.setattr(recorder, "choose_provider", lambda context, provider: (provider, ""))
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    monkeypatch.delenv(BLOCKING_VARIABLE, raising=False)


@pytest.mark.usefixtures("cuda")
def test_with_launch_blocking_the_node_timer_is_the_method(context, model, monkeypatch):
    monkeypatch.setenv(BLOCKING_VARIABLE, "1")
    found = record(context, SessionSpec(model(BODIES), "cuda"), [bodies(3)], runs=2)
    (recording,) = found.recordings
    assert recording.method == "launch-blocking"
    assert recording.log.count("SdpaKernel=MATH") >= 2
    assert context.log_path.read_text().count("SdpaKernel") == WARMUP_RUNS + 3
    assert DEBUG_VARIABLE not in os.environ


@pytest.mark.usefixtures("cuda")
def test_without_cupti_and_without_launch_blocking_nothing_is_recorded(context, model, monkeypatch):
    monkeypatch.setitem(recorder.cupti.importlib.sys.modules, "cupti", None)
    with pytest.raises(NoTracer, match="cupti-python"):
        record(context, SessionSpec(model(BODIES), "cuda"), [bodies(3)], runs=1)


def test_without_cuda_it_says_so_before_anything_is_attached(context, model, monkeypatch):
    monkeypatch.setattr(recorder, "_tracer", None)
    with pytest.raises(SessionError, match="Provider cuda was asked for"):
        record(context, SessionSpec(model(BODIES), "cuda"), [], runs=1)


@pytest.mark.usefixtures("cuda")
def test_with_cupti_the_traced_runs_are_those_that_it_watched(context, model, monkeypatch):
    class Collector:
        def collect(self, work):
            work()
            return recorder.Collected((), (), 3)

    @recorder.contextmanager
    def attached():
        yield Collector()

    monkeypatch.setattr(recorder.cupti, "attached", attached)
    (recording,) = record(context, SessionSpec(model(BODIES), "cuda"), [bodies(3)], runs=2).recordings
    assert (recording.method, recording.dropped, len(recording.runs)) == ("cupti", 3, 2)


def test_the_debug_variable_is_put_back(context, model, monkeypatch):
    monkeypatch.setenv(DEBUG_VARIABLE, "0")
    record(context, SessionSpec(model(BODIES), "cpu"), [], runs=1)
    assert os.environ[DEBUG_VARIABLE] == "0"


def event(name, start_us, length_us, cat="Node", **args):
    return {"cat": cat, "name": name, "ts": start_us, "dur": length_us, "args": args}


def test_events_are_read_as_onnx_runtime_writes_them():
    shape = [{"float": [2, 3]}, {"int64": []}]
    arena = {"mem_in_use_peak": "640", "mem_arena_held": "1024", "provider": "CUDAExecutionProvider"}
    events = [
        event("model_run", 1, 3, "Session"),  # before the traced runs
        event("a_kernel_time", 2, 1, op_name="Relu", **arena | {"mem_in_use_peak": "9999"}),
        event("model_run", 10, 20, "Session"),
        event("SequentialExecutor::Execute", 11, 18, "Session"),
        event("c_kernel_time", 15, 1, op_name="Shape", provider="CPUExecutionProvider"),
        event("b_kernel_time", 15, 3, op_name="If", provider="CPUExecutionProvider", mem_in_use_peak="7000"),
        event("a_kernel_time", 12, 2, op_name="Relu", input_type_shape=shape, output_type_shape=shape[1:], **arena),
        event("a_fence_before", 12, 0),
    ]
    take = recorder._Take(1_005_000, 1_040_000, recorder._NOTHING, "said")
    assert recorder._recording(take, 1, events, 1_000_000, "launch-blocking", "cuda") == Recording(
        method="launch-blocking",
        runs=(RunSpan(1_010_000, 1_030_000),),
        nodes=(
            NodeRun("a", "Relu", "cuda", 1_012_000, 1_014_000, ("float32[2,3]", "int64[]"), ("int64[]",)),
            NodeRun("b", "If", "cpu", 1_015_000, 1_018_000, (), ()),  # before what began with it in its body
            NodeRun("c", "Shape", "cpu", 1_015_000, 1_016_000, (), ()),
        ),
        launches=(),
        work=(),
        dropped=0,
        arena_peak_bytes=640,
        arena_held_bytes=1024,
        log="said",
    )
    assert recorder._recording(take, 1, events[:2], 1_000_000, "cupti", "cuda") == NO_ROOM
    # ONNX Runtime stopped in the second run: what it did there is nobody's
    assert recorder._recording(take, 2, events, 1_000_000, "launch-blocking", "cuda") == NO_ROOM
    with pytest.raises(NoTracer, match="records nothing"):
        recorder._recording(take, 1, events, 1_000_000, "cupti", "cuda")


def test_placement_counts_by_provider():
    pairs = (("CUDAExecutionProvider", "MatMul"), ("CPUExecutionProvider", "Shape"), ("CUDAExecutionProvider", "Cast"))
    assert recorder._placement(pairs) == (
        Placement("CUDAExecutionProvider", (("Cast", 1), ("MatMul", 1))),
        Placement("CPUExecutionProvider", (("Shape", 1),)),
    )


def test_a_graph_is_read_with_its_bodies(model):
    found = ort_graph.read(model(BODIES))
    assert found.ops[0] == ("MatMul", 2)
    assert {"Sin", "Softmax", "Tanh"} <= dict(found.ops).keys()
    assert found.outputs >= {"w", "a_out", "o"}
    text = 'g (float[1,2,4] x) => (float[1,2,4] y) { y = Op <num_heads = 2, scale = 0.5, mode = "s"> (x, , w) }'
    attention = ort_graph.read(model(text)).nodes[0]
    assert (attention.inputs, attention.attributes) == (("x", "", "w"), (("num_heads", 2.0), ("scale", 0.5)))


def test_nodes_that_ran_under_a_made_up_name_are_told_by_their_order(model):
    path = model("g (float[1] x) => (float[1] z) { y = Sin (x) [a] u = Relu (y) v = Sin (u) z = Exp (v) }")
    executed = [("Sin_7", "Sin"), ("a", "Relu"), ("Sin_2", "Sin")]  # no Exp: that one stays without a name
    assert [node.name for node in ort_graph.read(path, executed).nodes] == ["Sin_7", "a", "Sin_2", ""]
    assert [node.name for node in ort_graph.read(path).nodes] == ["", "a", "", ""]


def test_the_order_of_a_run_leaves_bodies_out():
    nodes = [
        ("a", 0, 4),
        ("old", 5, 9),
        ("a", 20, 30),
        ("loop", 30, 50),
        ("step", 30, 40),
        ("step", 40, 50),
        ("b", 50, 51),
    ]
    found = recorder._executed(recorded_runs.recording([(0, 10), (20, 60)], nodes))
    assert list(found) == [("a", "Relu"), ("loop", "Relu"), ("b", "Relu")]
