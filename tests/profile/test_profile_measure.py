from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest

from explorer.errors import InputError, SessionError
from explorer.profile import answers, measure
from explorer.profile.answers import Loading, Timings
from explorer.profile.measure import Loaded, Report, Runner
from explorer.profile.values import Ratio
from explorer.runtime import arrays, sessions
from explorer.runtime.gpu import GpuState
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
            duration_ms = next(durations)
            if duration_ms is None:
                raise SessionError("refused")
            self.now_s += duration_ms / 1e3

        return run

    def bound(self, name, log, durations_ms):
        """A `Runner` whose runs, each a duration or an error, take as long."""

        class Bound:
            def bind(own, feeds):  # noqa: N805
                return self.runner(name, log, durations_ms)

        return Runner(Bound(), {})


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


def test_nobody_takes_no_turns():
    assert measure.take_turns([], 10**9) == []
    assert measure.warm_up([]) == (0, True)


@pytest.mark.parametrize(
    ("a", "b", "minimum_s", "expected"),
    [
        ([1] * 20, [1] * 20, 0.0, (6, True)),
        ([1] * 20, [9, 8, 7, 6, 5, 4, 4, 4, 4, 4], 0.0, (10, True)),  # it waits for the slowest to settle
        ([110] * 20, [0.5**n for n in range(20)], 0.0, (20, False)),  # 20 rounds are enough, if they took 2 s
        ([6000] * 20, [6000] * 20, 0.0, (2, False)),  # 24 s are enough
        ([10] * 100, [10] * 100, 0.5, (25, True)),  # an idle device's clocks take that long to rise
        ([0.97**n for n in range(2000)], [20] * 2000, 0.0, (99, False)),  # 2 s are enough, if they are 20 rounds
    ],
)
def test_warming_up_ends_when_all_are_steady_or_at_a_bound(a, b, minimum_s, expected):
    clock, log = FakeClock(), []
    runners = [clock.bound("a", log, a), clock.bound("b", log, b)]
    assert measure.warm_up(runners, minimum_s=minimum_s, clock=clock) == expected
    assert log == ["a", "b"] * expected[0]


@pytest.mark.parametrize(
    ("steady", "refused", "expected"),
    [
        ([1] * 20, [9, 8, 7, None], (6, True)),  # its times fell until it was refused
        ([1] * 20, [9, 8, 7, 6, 5, 4, None], (7, True)),
        ([1, 1, None], [9, 8, 7, None], (4, True)),  # nobody is left
    ],
)
def test_who_is_refused_while_warming_up_is_not_waited_for(steady, refused, expected):
    clock, log = FakeClock(), []
    runners = [clock.bound("a", log, steady), clock.bound("b", log, refused)]
    assert measure.warm_up(runners, clock=clock) == expected
    assert log.count("b") == refused.index(None) + 1


class FakeSession:
    """A session whose runs are told: each an error to raise or None."""

    load_s = 0.25

    def __init__(self, *runs, bind=None):
        self.runs, self.bind_error, self.ran = iter(runs), bind, 0

    def bind(self, feeds):
        if self.bind_error is not None:
            raise self.bind_error
        return self.run

    def run(self):
        self.ran += 1
        error = next(self.runs, None)
        if error is not None:
            raise error


def test_a_runner_that_is_refused_does_nothing_any_more():
    session = FakeSession(None, SessionError("no memory"))
    runner = Runner(session, {})
    runner()
    assert runner.refusal is None
    runner()
    runner()
    assert (str(runner.refusal), type(runner.refusal), session.ran) == ("no memory", SessionError, 2)
    assert runner.refusal.__traceback__ is None


def test_a_runner_is_refused_where_its_session_is_or_its_inputs_are():
    refused = Runner(SessionError("does not load"), {})
    refused()
    assert str(refused.refusal) == "does not load"
    assert str(Runner(FakeSession(bind=InputError("takes x")), {}).refusal) == "takes x"
    with pytest.raises(ZeroDivisionError):  # a defect is no refusal
        Runner(FakeSession(ZeroDivisionError()), {})()


@pytest.fixture
def loaded():
    def make(**sessions):
        return [Loaded(name, session, Loading(0.25, "all", "")) for name, session in sessions.items()]

    return make


def test_a_variant_that_fails_leaves_the_others_untouched(context, loaded, feeds):
    variants = loaded(
        first=FakeSession(),
        absent=SessionError("It does not load."),
        early=FakeSession(SessionError("No memory.")),
        late=FakeSession(*[None] * 12, SessionError("Gone.")),
        last=FakeSession(),
    )
    point, errors = measure.measure_point(Report(context, 0, 1), variants, feeds, 5, 0, cuda=False)
    assert [item.variant for item in point.measurements] == ["first", "absent", "early", "late", "last"]
    assert [item.refusal for item in point.measurements] == ["", "It does not load.", "No memory.", "Gone.", ""]
    assert [str(error) for error in errors] == ["None", "It does not load.", "No memory.", "Gone.", "None"]
    for item in point.measurements:
        if item.refusal:
            assert (item.first_run_ms, item.latency, item.ratio) == (None, None, None)
        else:
            assert len(item.latency.runs_ms) == 5
    assert [item.ratio is None for item in point.measurements] == [True, True, True, True, False]
    first, last = point.of("first"), point.of("last")
    assert last.ratio == Ratio.of(first.latency, last.latency, 0)
    assert point.shapes == (("q", (1, 2, 5, 8)), ("k", (1, 2, 8, 5)), ("v", (1, 2, 5, 8)))
    assert point.gpu == ()


def test_without_the_first_there_is_no_ratio_and_without_anyone_no_warm_up(context, loaded):
    point, _ = measure.measure_point(
        Report(context, 0, 1), loaded(a=SessionError("No."), b=FakeSession()), {}, 1, 0, cuda=False
    )
    assert point.of("b").ratio is None
    point, _ = measure.measure_point(Report(context, 0, 1), loaded(a=SessionError("No.")), {}, 10**9, 0, cuda=False)
    assert (point.warmup, point.measurements[0].refusal) == (0, "No.")


SHORT = "ONNX Runtime cannot run m.onnx: it ran out of GPU memory; use a smaller batch or sequence, or free memory."


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (0, SHORT),
        (1, SHORT[:-1] + "; 1 other session was loaded beside it, so it may run alone."),
        (2, SHORT[:-1] + "; 2 other sessions were loaded beside it, so it may run alone."),
    ],
)
def test_who_finds_no_memory_beside_others_may_run_alone(context, loaded, monkeypatch, others, said):
    def refuse(spec):
        raise SessionError(SHORT)

    beside = {f"other{index}": FakeSession() for index in range(others)}
    short = FakeSession(SessionError(SHORT))
    variants = loaded(short=short, absent=SessionError("No."), **beside)
    point, _ = measure.measure_point(Report(context, 0, 1), variants, {}, 1, 0, cuda=False)
    assert (point.of("short").refusal, point.of("absent").refusal) == (said, "No.")
    monkeypatch.setattr(measure, "load_best", refuse)
    late = measure.load(spec("m.onnx"), "cpu", beside=others)
    assert str(late.session) == said
    point, _ = measure.measure_point(Report(context, 0, 1), [*loaded(**beside), late], {}, 1, 0, cuda=False)
    assert point.of("m").refusal == said  # told once


def test_who_is_refused_for_another_reason_is_told_nothing_of_others(context, loaded):
    variants = loaded(a=FakeSession(), b=FakeSession(SessionError("Gone.")))
    point, _ = measure.measure_point(Report(context, 0, 1), variants, {}, 1, 0, cuda=False)
    assert point.of("b").refusal == "Gone."


def test_a_later_variant_is_loaded_beside_those_that_are_there(context, save_model, tmp_path, monkeypatch):
    def refuse(spec):
        if "second" in spec.model:
            raise SessionError(SHORT)
        return sessions.load_best(spec)

    monkeypatch.setattr(measure, "load_best", refuse)
    relu = "g (float[N] x) => (float[N] y) { y = Relu (x) }"
    variants = [spec(save_model(name, relu), name=name) for name in ("first", "second")]
    arrays.save(tmp_path / "feeds.npz", {"x": np.ones(3, np.float32)})
    measure.measure(context, variants, [str(tmp_path / "feeds.npz")], str(tmp_path / "out"), "cpu", runs=1)
    (point,) = answers.read(tmp_path / "out", Timings).points
    assert point.of("second").refusal.endswith("; 1 other session was loaded beside it, so it may run alone.")


def test_the_gpu_is_asked_right_before_and_after_the_timed_runs(context, loaded, monkeypatch):
    a, b = FakeSession(), FakeSession()
    asked = []

    def state():
        asked.append((a.ran, b.ran))
        return GpuState(1980, 1980, None, None, None, None, None, None, (), (str(len(asked)),))

    monkeypatch.setattr(measure.gpu, "state", state)
    monkeypatch.setattr(measure, "CUDA_WARMUP_S", 0.0)
    point, _ = measure.measure_point(Report(context, 0, 1), loaded(a=a, b=b), {}, 4, 0, cuda=True)
    warm = 1 + point.warmup
    assert asked == [(warm, warm), (warm + 1 + 8, warm + 1 + 8)]  # one to wake up, and one to settle before each
    assert [seen.others for seen in point.gpu] == [("1",), ("2",)]


def heard(context):
    said = []
    return type(context)(lambda fraction, text: said.append((fraction, text)), context.folder, context.log_path), said


def test_progress_tells_which_of_several_shapes_it_is(context, loaded):
    told, said = heard(context)
    measure.measure_point(Report(told, 1, 2), loaded(a=FakeSession()), {}, 2, 0, cuda=False)
    assert [text for _, text in said] == [
        "First run of a (shape 2 of 2)",
        "Warming up (shape 2 of 2)",
        "Timed run 1 of 2 (shape 2 of 2)",
        "Timed run 2 of 2 (shape 2 of 2)",
    ]
    assert (said[0][0], said[-1][0]) == (pytest.approx(0.575), pytest.approx(1.0))


def test_timed_runs_are_not_disturbed_by_a_report_each(context):
    told, said = heard(context)
    report = Report(told, 0, 1)
    for done in range(1, 1001):
        report.round(done, 1000)
    assert said[0][1] == "Timed run 1 of 1000"
    assert said[-1] == (1.0, "Timed run 1000 of 1000")
    assert len(said) < 100


def spec(model: str, **changes):
    return {"name": "m", "model": model, "data_folder": None, "sdpa_kernel": 0, "cuda_graph": False} | changes


def test_a_cuda_graph_is_for_cuda(monkeypatch):
    made = []
    monkeypatch.setattr(measure, "load_best", lambda spec: (made.append(spec) or FakeSession(), spec, None))
    for device in ("cuda", "cpu"):
        measure.load(spec("m.onnx", sdpa_kernel=8, cuda_graph=True), device)
    assert made == [
        SessionSpec("m.onnx", "cuda", sdpa_kernel=8, cuda_graph=True),
        SessionSpec("m.onnx", "cpu", sdpa_kernel=8),
    ]


def test_a_model_that_the_optimizer_breaks_is_measured_at_the_next_level(save_model, monkeypatch):
    class Picky(Session):
        def __init__(self, spec):
            if spec.optimization in ("all", "extended"):
                raise SessionError(f"not at {spec.optimization}.")
            super().__init__(spec)

    monkeypatch.setattr(sessions, "Session", Picky)
    found = measure.load(spec(save_model("relu", "g (float[1] x) => (float[1] y) { y = Relu (x) }")), "cpu")
    assert type(found.session) is Picky
    assert (found.loading.optimization, found.loading.lowered) == ("basic", "not at all.")
    assert found.loading.load_s > 0


def test_a_load_that_failed_holds_on_to_nothing(monkeypatch):
    class Native:
        def __init__(self, *args, **options):
            made.append(weakref.ref(self))

        def get_providers(self):
            return ["CPUExecutionProvider"]

    made: list[weakref.ref] = []
    monkeypatch.setattr(sessions.ort, "InferenceSession", Native)
    gc.disable()  # what only a collection frees is held, too
    try:
        found = measure.load(spec("m.onnx"), "cuda")
        assert isinstance(found.session, SessionError)
        assert found.session.__traceback__ is None
        assert [native() for native in made] == [None] * len(sessions.LEVELS)
    finally:
        gc.enable()


@pytest.mark.parametrize("first", ["its graph is broken.", ""])
def test_where_memory_runs_out_no_lower_level_is_tried(monkeypatch, first):
    tried = []

    def refuse(spec):
        tried.append(spec.optimization)
        raise SessionError(first if first and len(tried) == 1 else SHORT)

    monkeypatch.setattr(sessions, "Session", refuse)
    with pytest.raises(SessionError) as caught:
        sessions.load_best(SessionSpec("m.onnx", "cuda"))
    assert str(caught.value) == (first or SHORT)  # the reason at the level that was asked for
    assert tried == (["all", "extended"] if first else ["all"])


def test_a_model_that_loads_at_no_level_has_the_reason_of_the_first(save_model):
    model = save_model("bad", "g (float[1] x) => (float16[1] y) { y = Relu (x) }")
    found = measure.load(spec(model), "cpu")
    assert isinstance(found.session, SessionError)
    assert "cannot load bad.onnx: Type Error" in str(found.session)
    assert found.loading == Loading(None, "all", "")


def test_if_nothing_runs_the_first_refusal_is_raised(context, save_model, feeds, tmp_path):
    model = save_model("relu", "g (float[N] x) => (float[N] y) { y = Relu (x) }")
    arrays.save(tmp_path / "feeds.npz", feeds)
    with pytest.raises(InputError, match=r"relu\.onnx takes the inputs x"):
        measure.measure(context, [spec(model)], [str(tmp_path / "feeds.npz")], str(tmp_path / "out"), "cpu")


def test_timings_are_written_as_json(context, save_model, tmp_path):
    model = save_model("relu", "g (float[N] x) => (float[N] y) { y = Relu (x) }")
    files = []
    for size in (3, 4):
        files.append(str(tmp_path / f"{size}.npz"))
        arrays.save(files[-1], {"x": np.ones(size, np.float32)})
    out = tmp_path / "out.json"
    measure.measure(context, [spec(model)], files, str(out), "cpu", runs=2, seed=1)
    assert json.loads(out.read_text())["provider"] == "cpu"
    timings = answers.read(out, Timings)
    assert [point.shapes for point in timings.points] == [(("x", (3,)),), (("x", (4,)),)]
    assert [len(point.measurements[0].latency.runs_ms) for point in timings.points] == [2, 2]
    assert dict(timings.environment)["onnxruntime"]
