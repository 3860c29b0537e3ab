from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from profile_values import TRACE, measurement, point, refused

from explorer.errors import Cancelled, InputError, SessionError, WorkerDied, WorkerError, WorkerTimeout
from explorer.model import load
from explorer.profile import Profile, Region, Subject, client, codec, profile, remarks
from explorer.profile.answers import Loading, Regions, Timings, Traced, Traces, read, write
from explorer.runtime.client import Worker


def test_a_profile_of_two_models_at_two_shapes_on_the_cpu(worker, pair, make_feeds, tmp_path):
    heard = []
    region = Region("b0", (("MatMul:l", "qk"), ("Softmax:p", "softmax")), ("l", "p"))
    original, fused = replace(pair[0], regions=(region,)), replace(pair[1], plan="00ff")
    result = profile(
        worker,
        [original, fused],
        [make_feeds(5), make_feeds(7)],
        provider="cpu",
        runs=4,
        seed=3,
        labels=(("b0", "attn0"),),
        on_progress=lambda *now: heard.append(now),
    )

    assert [(variant.name, variant.plan) for variant in result.variants] == [("original", ""), ("fused", "00ff")]
    assert (result.runs, result.seed, result.labels) == (4, 3, (("b0", "attn0"),))
    assert (result.provider, result.provider_note) == ("cpu", "On the CPU, as asked.")
    assert [point.shapes for point in result.points] == [
        (("q", (1, 2, size, 8)), ("k", (1, 2, 8, size)), ("v", (1, 2, size, 8))) for size in (5, 7)
    ]
    assert result.variant("original").ops == (("Cast", 2), ("MatMul", 2), ("Softmax", 1))
    assert (result.variant("original").casts_exported, result.variant("fused").casts_exported) == (2, 0)
    assert result.variant("original").casts_optimized == 4  # q, k, v and y: float16 MatMul has no kernel on the CPU
    assert result.source == ""  # two files
    for variant in result.variants:
        assert variant.load_s > 0
        assert (variant.optimization, variant.memcpy_nodes) == ("all", 0)
        assert [part.provider for part in variant.placement] == ["CPUExecutionProvider"]
    for found in result.points:
        assert found.gpu == ()
        for item in found.measurements:
            assert len(item.latency.runs_ms) == 4
            assert min(item.latency.runs_ms) > 0
            assert item.first_run_ms > 0
            assert (item.refusal, item.dispatch, item.trace.method) == ("", (), "node-timer")
            counted = {time.op_type: time.count for time in item.trace.ops}
            assert counted == dict(result.variant(item.variant).ops_optimized)
        first, other = found.measurements
        assert first.ratio is None
        assert other.ratio.value == pytest.approx(first.latency.median_ms / other.latency.median_ms, rel=1e-4)
        (timed,) = first.trace.regions
        assert timed.block == "b0"
        assert {"softmax", "qk"} <= {part.op_type for part in timed.parts}
    assert {remarks.NO_FLASH_ON_CPU, remarks.CASTS_ON_CPU} <= set(result.notes)
    assert dict(result.environment)["onnxruntime"]
    assert Profile.load(result.save(tmp_path / "p.json")) == result

    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    texts = [text for _, text in heard]
    stages = ("Loading original", "Warming up (shape 1 of 2)", "Timed run 4 of 4 (shape 2 of 2)", "Tracing fused")
    assert [text for text in texts if text in stages] == list(stages)


def test_one_model_alone_untraced(worker, make_subject):
    subject = make_subject("relu", "g (float[N] x) => (float[N] y) { y = Relu (x) }")
    result = profile(worker, [subject], [{"x": np.ones(3, np.float32)}], provider="cpu", runs=1, trace=False)
    (found,) = result.points[0].measurements
    assert (found.ratio, found.trace, found.dispatch) == (None, None, ())
    assert result.variants[0].ops == (("Relu", 1),)
    assert (result.variants[0].ops_optimized, result.variants[0].placement) == ((), ())
    assert result.source == subject.model.digest
    assert result.notes == (remarks.NO_FLASH_ON_CPU,)


def test_a_variant_that_does_not_run_is_told_in_words_and_the_others_are_measured(worker, make_subject, make_feeds):
    inputs = "(float[N] x) => (float[M] y)"
    good = make_subject("good", f"g {inputs} {{ y = Relu (x) }}")
    bad = make_subject("bad", f"g {inputs} <float[3] c = {{1, 2, 3}}> {{ y = Add (x, c) }}")
    broken = make_subject("broken", f"g {inputs} {{ y = Nonsense (x) }}")
    points = [{"x": np.ones(size, np.float32)} for size in (3, 4)]
    result = profile(worker, [good, bad, broken], points, provider="cpu", runs=2)
    three, four = result.points
    assert three.of("bad").latency is not None
    assert three.of("bad").trace is not None
    assert four.of("bad").latency is None
    assert "cannot run bad.onnx" in four.of("bad").refusal
    for found in result.points:
        assert found.of("good").trace is not None
        assert "cannot load broken.onnx" in found.of("broken").refusal
    assert result.variant("broken").load_s is None


def test_inputs_that_fit_no_model_are_an_input_error(worker, pair):
    with pytest.raises(InputError, match=r"original\.onnx takes the inputs q, k, v, but was given x"):
        profile(worker, pair, [{"x": np.ones(3, np.float32)}], provider="cpu")


def test_a_model_that_does_not_load_alone_is_a_session_error(worker, make_subject):
    subject = make_subject("broken", "g (float[N] x) => (float[N] y) { y = Nonsense (x) }")
    with pytest.raises(SessionError, match=r"cannot load broken\.onnx"):
        profile(worker, [subject], [{"x": np.ones(3, np.float32)}], provider="cpu")


def test_nothing_to_measure_is_an_input_error(worker, pair, feeds):
    for subjects, points, runs in (([], [feeds], 1), (pair, [], 1), (pair, [feeds], 0)):
        with pytest.raises(InputError, match="at least one model, one set of inputs and one run"):
            profile(worker, subjects, points, runs=runs)
    with pytest.raises(InputError, match="a name of its own for each model, found original, original"):
        profile(worker, [pair[0], replace(pair[1], name="original")], [feeds])


def test_a_cuda_graph_on_the_cpu_is_a_note(worker, pair, feeds):
    subject = replace(pair[0], cuda_graph=True, sdpa_kernel=8)
    result = profile(worker, [subject], [feeds], provider="cpu", runs=1, trace=False)
    assert (result.variants[0].cuda_graph, result.variants[0].sdpa_kernel) == (False, 0)
    assert result.notes[0] == "CUDA graphs were asked for, but there are none on the CPU."


def test_external_data_in_another_folder_is_found_in_every_session(worker, tmp_path):
    (tmp_path / "w.bin").write_bytes(np.ones(4096, np.float32).tobytes())
    weight = TensorProto(name="w", dims=[4096], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4096]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    subject = Subject("m", load(tmp_path / "m.onnx"))
    result = profile(worker, [subject], [{"x": np.zeros(4096, np.float32)}], provider="cpu", runs=1)
    assert result.variants[0].ops_optimized == (("Add", 1),)


def test_nodes_are_named_by_their_keys_where_they_are_not_and_a_model_is_written_once(tmp_path, make_subject):
    graph = """g (float[1] x, int64 n, bool c) => (float[1] z) {
                  y, s = Loop <body = l (int64 i, bool o, float[1] a) => (bool p, float[1] b, float[1] t)
                                 { p = Identity (o) b = Relu (a) t = Relu (b) }> (n, c, x)
                  z = Relu (y) }"""
    unnamed, named = (
        make_subject("unnamed", graph),
        make_subject("named", "g (float[1] x) => (float[1] z) { z = Relu (x) }"),
    )
    named.model.ir.graph[0].name = "r"
    named = replace(named, model=type(named.model)(named.model.ir, path=named.model.path, digest="", types={}))
    files = client._write_models(tmp_path, [unnamed, named, replace(unnamed, name="again")])
    assert files[0] == files[2]
    assert Path(files[0].model).name == "unnamed.onnx"
    written = onnx.load(files[0].model).graph
    bodies = [attribute.g for node in written.node for attribute in node.attribute if attribute.g.node]
    names = [node.name for graph in (written, *bodies) for node in graph.node]
    assert sorted(names) == sorted(unnamed.model.key(node) for node in unnamed.model.nodes)
    assert len(set(names)) == 5
    assert all(not node.name for node in unnamed.model.nodes)  # which nobody may change
    assert [node.name for node in onnx.load(files[1].model).graph.node] == ["r"]


def test_the_worker_leaves_no_files(worker, pair, feeds):
    profile(worker, pair, [feeds], provider="cpu", runs=1)
    assert [path.name for path in Path(worker._process.folder.name).iterdir()] == ["worker.log"]


STAGES = ["Loading original", "Warming up", "Timed run 1 of 3", "Tracing fused"]


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_works_at_each_stage_and_the_next_profile_succeeds(pair, feeds, stage):
    cancel = threading.Event()

    def on_progress(fraction, text):
        if text == stage:
            cancel.set()

    with Worker() as worker:
        with pytest.raises(Cancelled):
            profile(worker, pair, [feeds], provider="cpu", runs=3, cancel=cancel, on_progress=on_progress)
        assert worker.pid is None
        assert profile(worker, pair, [feeds], provider="cpu", runs=1).runs == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_kill_in_the_middle_is_a_message_and_in_a_trace_a_note(pair, feeds):
    def killing(stage):
        return lambda fraction, text: os.kill(worker.pid, signal.SIGKILL) if text == stage else None

    with Worker() as worker:
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            profile(worker, pair, [feeds], provider="cpu", runs=3, on_progress=killing("Timed run 1 of 3"))
        result = profile(worker, pair, [feeds], provider="cpu", runs=3, on_progress=killing("Tracing original"))
        original, fused = result.points[0].measurements
        assert (len(original.latency.runs_ms), original.trace) == (3, None)
        assert fused.trace is not None  # by the next process
        assert result.notes[0].startswith("original was not traced: The worker process was killed by SIGKILL")


def test_a_profile_past_its_time_limit_is_stopped(pair, feeds):
    with Worker() as worker, pytest.raises(WorkerTimeout, match=r"The profile's time limit is over: .* after 1\.5 s"):
        profile(worker, pair, [feeds], provider="cpu", runs=10**9, timeout_s=1.5)


class FakeWorker:
    """A worker on a machine with a GPU: what it answers is told by `seen`, a function of its environment."""

    seen = None
    calls = None

    def __init__(self, env=None):
        self.env = env

    def __enter__(self):
        self.calls.append(("start", self.env))
        return self

    def __exit__(self, *_):
        self.calls.append(("stop", self.env))

    def call(self, function, args, *, on_progress=None, cancel=None, timeout_s=None):
        name = function.rpartition(":")[2]
        self.calls.append((name, self.env, timeout_s))
        if name == "measure":
            names = [variant["name"] for variant in args["variants"]]
            points = [point(*map(measurement, names), shapes=(("x", (at,)),)) for at, _ in enumerate(args["feeds_npz"])]
            points[-1] = replace(points[-1], measurements=(points[-1].measurements[0], refused(names[1], "No.")))
            environment = (("compute_capability", "9.0"),)
            loadings = (Loading(1.0, "basic", "it is broken."),) * len(names)
            write(args["out_json"], Timings("cuda", "On CUDA.", environment, loadings, tuple(points)))
        else:
            self.calls.append(args)
            answer = type(self).seen(self, args)
            if isinstance(answer, Exception):
                raise answer
            write(args["out_json"], answer)


TRACES = Traces("", (("Cast", 3),), 2, (), (Traced(TRACE, (), ""), Traced(None, (), "Gone.")))
NO_CUPTI = Traces("CUPTI is not there.", (), 0, (), ())


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeWorker, "calls", [])
    monkeypatch.setattr(client, "Worker", FakeWorker)

    def make(seen):
        monkeypatch.setattr(FakeWorker, "seen", staticmethod(seen))
        return FakeWorker("given")

    return make


def fit(traces, args):
    return replace(traces, traced=traces.traced[: len(args["feeds_npz"])])


def inspected():
    return [call for call in FakeWorker.calls if not isinstance(call, dict) and call[0] != "measure"]


def test_what_was_timed_is_traced_as_it_was_timed(fake, pair, make_feeds):
    region = Region("b0", (("n", "qk"),), ("v",))
    subjects = [replace(pair[0], regions=(region,), sdpa_kernel=8, cuda_graph=True), pair[1]]
    result = profile(fake(lambda worker, args: fit(TRACES, args)), subjects, [make_feeds(1), make_feeds(2)])
    first, second = (call for call in FakeWorker.calls if isinstance(call, dict))
    assert (first["name"], first["provider"], first["optimization"], first["sdpa_kernel"]) == (
        "original",
        "cuda",
        "basic",
        8,
    )
    assert first["compute_capability"] == "9.0"
    assert codec.from_json(Regions, first["regions"]).regions == (region,)
    assert (len(first["feeds_npz"]), len(second["feeds_npz"])) == (2, 1)  # it did not run at the second
    assert result.points[0].of("original").trace == TRACE
    assert result.points[1].of("original").trace is None
    assert result.points[0].of("fused").trace == TRACE
    assert result.points[1].of("fused") == refused("fused", "No.")
    assert result.variant("original").cuda_graph
    assert (result.variant("fused").ops_optimized, result.variant("fused").memcpy_nodes) == ((("Cast", 3),), 2)
    assert result.notes == (
        "ONNX Runtime loads original only at optimization level basic: it is broken.",
        "ONNX Runtime loads fused only at optimization level basic: it is broken.",
        "original was not traced at x 1: Gone.",
    )
    assert inspected() == [("inspect", "given", None)] * 2


def test_without_cupti_a_process_whose_launches_wait_traces_all(fake, pair, make_feeds):
    blocking = {"CUDA_LAUNCH_BLOCKING": "1"}
    worker = fake(lambda worker, args: fit(TRACES, args) if worker.env == blocking else NO_CUPTI)
    result = profile(worker, pair, [make_feeds(1), make_feeds(2)])
    assert inspected() == [
        ("inspect", "given", None),
        ("start", {}),
        ("inspect", {}, None),
        ("stop", {}),
        ("start", blocking),
        ("inspect", blocking, None),
        ("inspect", blocking, None),
        ("stop", blocking),
    ]
    assert result.points[0].of("fused").trace == TRACE
    assert f"CUPTI is not there. {remarks.LAUNCH_BLOCKING}" in result.notes


def test_where_cupti_starts_once_in_a_process_each_variant_has_its_own(fake, pair, make_feeds):
    spent = set()

    def seen(worker, args):
        if id(worker) in spent:
            return NO_CUPTI
        spent.add(id(worker))
        kept.append(worker)
        return fit(TRACES, args)

    kept = []
    result = profile(fake(seen), pair, [make_feeds(1), make_feeds(2)])
    profile(kept[0], pair, [make_feeds(1), make_feeds(2)])
    assert [call[:2] for call in inspected()] == [
        ("inspect", "given"),
        ("inspect", "given"),
        ("start", {}),
        ("inspect", {}),
        ("stop", {}),
        ("inspect", "given"),
        ("start", {}),
        ("inspect", {}),
        ("inspect", {}),
        ("stop", {}),
        ("start", {}),
        ("inspect", {}),
        ("stop", {}),
    ]
    assert result.points[0].of("fused").trace == TRACE
    assert not any(remarks.LAUNCH_BLOCKING in note for note in result.notes)


@pytest.mark.parametrize("error", [WorkerDied("It died."), SessionError("No."), WorkerError("A defect.")])
def test_what_cannot_be_traced_keeps_its_times(fake, pair, make_feeds, error):
    def seen(worker, args):
        return error if args["name"] == "original" else fit(TRACES, args)

    result = profile(fake(seen), pair, [make_feeds(1), make_feeds(2)])
    assert f"original was not traced: {error}" in result.notes
    assert result.points[0].of("original").latency is not None
    assert result.points[0].of("fused").trace == TRACE


@pytest.mark.parametrize("error", [WorkerTimeout("Too long."), Cancelled("Enough.")])
def test_whoever_stops_a_trace_stops_the_profile(fake, pair, make_feeds, error):
    with pytest.raises(type(error)):
        profile(fake(lambda worker, args: error), pair, [make_feeds(1), make_feeds(2)], timeout_s=9)


def test_all_calls_share_one_time_limit(fake, pair, make_feeds, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    profile(fake(lambda worker, args: fit(TRACES, args)), pair, [make_feeds(1), make_feeds(2)], timeout_s=2.0)
    assert [call[2] for call in FakeWorker.calls if isinstance(call, tuple)] == [1.0, 0.0, 0.0]


def test_answers_are_read_as_they_were_written(tmp_path):
    write(tmp_path / "a.json", TRACES)
    assert read(tmp_path / "a.json", Traces) == TRACES
