from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from explorer.errors import Cancelled, InputError, SessionError, WorkerDied, WorkerTimeout
from explorer.profile import VariantSpec, measure, profile
from explorer.runtime import sessions
from explorer.runtime.client import Worker
from explorer.runtime.sessions import Session, SessionSpec


class FakeClock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def runner(self, name, log, durations_ms):
        durations = iter(durations_ms)

        def run():
            log.append(name)
            self.now_s += next(durations) / 1e3

        return run


def test_variants_take_turns_and_only_their_runs_are_timed():
    clock, log = FakeClock(), []
    runners = [clock.runner("a", log, [1, 2, 3]), clock.runner("b", log, [10, 20, 30])]

    def on_round(done):
        log.append(done)
        clock.now_s += 1000

    times = measure.take_turns(runners, 3, clock=clock, on_round=on_round)
    assert log == ["a", "b", 1, "a", "b", 2, "a", "b", 3]
    assert times == [pytest.approx([1, 2, 3]), pytest.approx([10, 20, 30])]


def test_a_runner_settles_in_untimed_runs_of_its_own():
    clock, log = FakeClock(), []
    runners = [clock.runner("a", log, [9, 1, 9, 2]), clock.runner("b", log, [90, 10, 90, 20])]
    times = measure.take_turns(runners, 2, settle=1, clock=clock)
    assert log == ["a", "a", "b", "b"] * 2
    assert times == [pytest.approx([1, 2]), pytest.approx([10, 20])]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1] * 20, [1] * 20, (6, True)),
        ([1] * 20, [9, 8, 7, 6, 5, 4, 4, 4, 4, 4], (10, True)),  # it waits for the slowest to settle
        ([1] * 20, [0.5**n for n in range(20)], (20, False)),
        ([6000] * 20, [6000] * 20, (2, False)),  # 24 s are enough
    ],
)
def test_warming_up_ends_when_all_are_steady_or_at_a_bound(a, b, expected):
    clock, log = FakeClock(), []
    assert measure.warm_up([clock.runner("a", log, a), clock.runner("b", log, b)], clock=clock) == expected
    assert log == ["a", "b"] * expected[0]


def test_a_profile_of_two_models_on_the_cpu(worker, pair, feeds):
    heard = []
    result = profile(worker, pair, feeds, provider="cpu", runs=4, seed=3, on_progress=lambda *now: heard.append(now))

    original, fused = result.variants
    assert (original.name, fused.name, result.runs, result.seed) == ("original", "fused", 4, 3)
    assert (result.provider, result.provider_note) == ("cpu", "On the CPU, as asked.")
    assert result.shapes == (("q", (1, 2, 5, 8)), ("k", (1, 2, 8, 5)), ("v", (1, 2, 5, 8)))
    assert original.ops == (("Cast", 2), ("MatMul", 2), ("Softmax", 1))
    assert fused.ops == (("MatMul", 2), ("Softmax", 1))
    assert (original.casts_exported, fused.casts_exported) == (2, 0)
    assert original.casts_optimized == 4  # q, k, v and y: float16 MatMul has no kernel on the CPU
    assert {time.op_type: time.count for time in original.op_times} == dict(original.ops_optimized)
    for variant in result.variants:
        assert len(variant.latency.runs_ms) == 4
        assert min(variant.latency.runs_ms) > 0
        assert variant.load_s > 0
        assert variant.first_run_ms > 0
        assert variant.optimization == "all"
        assert variant.kernels == ()
        assert [part.provider for part in variant.placement] == ["CPUExecutionProvider"]
    assert result.ratio.value == pytest.approx(original.latency.median_ms / fused.latency.median_ms)
    assert result.ratio.low <= result.ratio.value <= result.ratio.high
    assert measure.NO_FLASH_ON_CPU in result.notes
    assert measure.CASTS_ON_CPU in result.notes
    assert dict(result.environment)["onnxruntime"]

    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    texts = [text for _, text in heard]
    for stage in ("Loading original", "Loading fused", "Warming up", "Timed run 4 of 4", "Inspecting fused"):
        assert stage in texts


def test_one_model_alone_has_no_ratio_and_float32_no_word_about_casts(worker, save_model):
    model = save_model("relu", "g (float[N] x) => (float[N] y) { y = Relu (x) }")
    result = profile(worker, [VariantSpec("relu", model)], {"x": np.ones(3, np.float32)}, provider="cpu", runs=1)
    assert result.ratio is None
    assert measure.NO_FLASH_ON_CPU in result.notes
    assert measure.CASTS_ON_CPU not in result.notes


def test_external_data_in_another_folder_is_found_in_every_session(worker, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.ones(4096, np.float32).tobytes())
    weight = TensorProto(name="w", dims=[4096], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4096]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    spec = VariantSpec("m", str(tmp_path / "m.onnx"), data_folder=str(tmp_path / "data"))
    result = profile(worker, [spec], {"x": np.zeros(4096, np.float32)}, provider="cpu", runs=1)
    assert result.variants[0].ops_optimized == (("Add", 1),)


def test_the_worker_leaves_no_files(worker, pair, feeds):
    profile(worker, pair, feeds, provider="cpu", runs=1)
    assert [path.name for path in Path(worker._process.folder.name).iterdir()] == ["worker.log"]


def test_a_model_that_the_optimizer_breaks_is_measured_at_the_next_level(context, pair, monkeypatch):
    class Picky(Session):
        def __init__(self, spec):
            if spec.model == pair[0].model and spec.optimization in ("all", "extended"):
                raise SessionError(f"not at {spec.optimization}.")
            super().__init__(spec)

    monkeypatch.setattr(sessions, "Session", Picky)
    session, spec, refusal = sessions.load_best(SessionSpec(pair[0].model, "cpu"))
    assert (type(session), spec.optimization, refusal) == (Picky, "basic", "not at all.")
    assert sessions.load_best(SessionSpec(pair[1].model, "cpu"))[1:] == (SessionSpec(pair[1].model, "cpu"), None)


def test_a_model_that_loads_at_no_level_gets_the_reason_of_the_first(context, save_model):
    model = save_model("bad", "g (float[1] x) => (float16[1] y) { y = Relu (x) }")
    with pytest.raises(SessionError, match=r"cannot load bad\.onnx: Type Error"):
        sessions.load_best(SessionSpec(model, "cpu"))


@pytest.mark.parametrize(("variants", "runs"), [([], 1), ([{"name": "a", "model": "a"}], 0)])
def test_nothing_to_measure_is_an_input_error(context, variants, runs):
    with pytest.raises(InputError, match="at least one variant and one run"):
        measure.measure(context, variants, "", runs=runs)


STAGES = ["Loading original", "Warming up", "Timed run 1 of 3", "Inspecting fused"]


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_works_at_each_stage_and_the_next_profile_succeeds(pair, feeds, stage):
    cancel = threading.Event()
    with Worker() as worker:
        with pytest.raises(Cancelled):
            profile(
                worker,
                pair,
                feeds,
                provider="cpu",
                runs=3,
                cancel=cancel,
                on_progress=lambda fraction, text: cancel.set() if text == stage else None,
            )
        assert worker.pid is None
        assert profile(worker, pair, feeds, provider="cpu", runs=1).runs == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_kill_in_the_middle_is_a_message(pair, feeds):
    with Worker() as worker:
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            profile(
                worker,
                pair,
                feeds,
                provider="cpu",
                runs=3,
                on_progress=lambda fraction, text: (
                    os.kill(worker.pid, signal.SIGKILL) if text == "Timed run 1 of 3" else None
                ),
            )
        assert profile(worker, pair, feeds, provider="cpu", runs=1).runs == 1


def test_a_profile_past_its_time_limit_is_stopped(pair, feeds):
    with Worker() as worker, pytest.raises(WorkerTimeout, match="its time limit"):
        profile(worker, pair, feeds, provider="cpu", runs=10**9, timeout_s=1.5)
