"""The sessions of the worker process; most of them through a real worker."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from explorer.errors import InputError, SessionError
from explorer.runtime import arrays, sessions

LOAD = "explorer.runtime.sessions:load"
RELU = "g (float[2,N] x) => (float[2,N] y) { y = Relu (x) }"


@pytest.fixture
def external_model(tmp_path):
    """y = x + w, where w is 1, 2, 3, 4 in the file data/w.bin, which is not beside the model."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes())
    weight = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def test_load_says_where_the_session_runs_and_how_long_it_took(worker, save_model):
    answer = worker.call(LOAD, {"model": save_model(RELU), "provider": "cpu"})
    assert answer.pop("load_s") > 0
    assert answer == {
        "provider": "cpu",
        "provider_note": "On the CPU, as asked.",
        "providers": ["CPUExecutionProvider"],
        "optimization": "all",
        "optimization_note": "",
    }


@pytest.mark.parametrize(
    ("graph", "header", "reason", "hint"),
    [
        (
            "g (float[2] x) => (float[2] y) { y = other.org.Strange (x) }",
            '<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>',
            "other.org:Strange(-1) is not a registered function/op",
            "replace that operator or export the model without it",
        ),
        (
            "g (float[2] x) => (float[2] y) { y = Relu (x) }",
            '<ir_version: 8, opset_import: ["" : 99]>',
            " and the model needs 99",
            "convert the model to an opset that is supported",
        ),
        (
            "g (float[2] x) => (float16[2] y) { y = Relu (x) }",
            '<ir_version: 8, opset_import: ["" : 17]>',
            "Type Error: Type (tensor(float16)) of output arg (y) of node () does not match expected type",
            "repair the model or export it again",
        ),
    ],
    ids=["unknown domain", "opset 99", "ill-typed"],
)
def test_a_model_that_does_not_load_gets_one_sentence(worker, save_model, graph, header, reason, hint):
    model = save_model(graph, header)
    with pytest.raises(SessionError) as caught:
        worker.call(LOAD, {"model": model, "provider": "cpu"})
    message = str(caught.value)
    assert "cannot load model.onnx: " in message
    assert reason in message
    assert message.endswith(f"; {hint}.")
    assert "ONNXRuntimeError" not in message
    assert ".h:" not in message
    assert "\n" not in message


def test_missing_external_data_is_named(worker, external_model):
    with pytest.raises(SessionError, match=r'does not exist: ".*w\.bin"; put the file with the weights where'):
        worker.call(LOAD, {"model": external_model, "provider": "cpu"})


@pytest.mark.parametrize("content", [b"", b"garbage garbage"])
def test_what_is_no_model_is_a_session_error(worker, tmp_path, content):
    (tmp_path / "no.onnx").write_bytes(content)
    with pytest.raises(
        SessionError, match=r"cannot load no\.onnx: .*; check that the path leads to a complete model\."
    ):
        worker.call(LOAD, {"model": str(tmp_path / "no.onnx"), "provider": "cpu"})


def test_external_data_is_found_in_another_folder(run, external_model, tmp_path):
    outputs = run(external_model, {"x": np.zeros(4, np.float32)}, data_folder=str(tmp_path / "data"))
    np.testing.assert_array_equal(outputs["y"], [1, 2, 3, 4])


@pytest.mark.parametrize("level", ["all", "extended", "basic", "disabled"])
def test_every_optimization_level_runs(run, save_model, level):
    outputs = run(save_model(RELU), {"x": np.array([[-1], [2]], np.float32)}, optimization=level)
    np.testing.assert_array_equal(outputs["y"], [[0], [2]])


def test_an_unknown_optimization_level_is_an_input_error(worker, save_model):
    with pytest.raises(InputError, match="among all, extended, basic, disabled, found 'most'"):
        worker.call(LOAD, {"model": save_model(RELU), "provider": "cpu", "optimization": "most"})


def test_only_the_outputs_asked_for_come_back(run, save_model):
    model = save_model('g (float[1] x) => (float[1] "/a/b:0", float[1] z) { "/a/b:0" = Relu (x) z = Neg (x) }')
    x = {"x": np.array([3], np.float32)}
    assert {name: array.tolist() for name, array in run(model, x).items()} == {"/a/b:0": [3], "z": [-3]}
    assert list(run(model, x, outputs=["/a/b:0"])) == ["/a/b:0"]
    with pytest.raises(InputError, match=r"has the outputs /a/b:0, z, not y; ask for those\."):
        run(model, x, outputs=["y"])


def test_an_output_that_is_an_input_comes_back_as_it_was(run, save_model):
    x = {"x": np.arange(1000, dtype=np.float32), "b": np.array([1.5, 2], np.float32)}
    model = save_model("g (float[N] x, bfloat16[2] b) => (float[N] x, float[N] y, bfloat16[2] b) { y = Neg (x) }")
    found = run(model, x)
    np.testing.assert_array_equal(found["x"], x["x"])
    np.testing.assert_array_equal(found["y"], -x["x"])
    np.testing.assert_array_equal(found["b"], x["b"])
    np.testing.assert_array_equal(run(model, x, outputs=["x"])["x"], x["x"])


class TestSeveralRuns:
    """One session for all inputs; what does not run does not stop the others."""

    @pytest.fixture
    def call(self, worker, save_model, tmp_path):
        def call(lengths: list[int], **options) -> tuple[list, list[str]]:
            """The refusals, and the names of the files written."""
            model = save_model(
                "g (float[a] x) => (float[b, 4] y) { s = Constant <value = int64[2] {-1, 4}> () y = Reshape (x, s) }"
            )
            ins, outs = ([str(tmp_path / f"{kind}{length}.npz") for length in lengths] for kind in ("in", "out"))
            for path, length in zip(ins, lengths, strict=True):
                arrays.save(path, {"x": np.zeros(length, np.float32)})
            args = {"model": model, "feeds_npz": ins, "out_npz": outs, "provider": "cpu", **options}
            answer = worker.call("explorer.runtime.sessions:run", args)
            return answer["refusals"], [path.name for path in sorted(tmp_path.glob("out*"))]

        return call

    def test_each_is_answered(self, call):
        refusals, written = call([4, 5, 8])
        assert [refused is None for refused in refusals] == [True, False, True]
        kind, words = refusals[1]
        assert kind == "SessionError"
        assert words.endswith("give shapes that the model is made for (--shape), or inputs of your own (--inputs).")
        assert written == ["out4.npz", "out8.npz"]

    def test_until_one_runs(self, call):
        refusals, written = call([5, 6, 4, 8], until_one_runs=True)
        assert [refused is None for refused in refusals] == [False, False, True]
        assert written == ["out4.npz"]
        refusals, written = call([5], until_one_runs=True)
        assert refusals[0] is not None


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"use_tf32": "1", "sdpa_kernel": "0"}),
        ({"sdpa_kernel": 8, "tf32": False}, {"use_tf32": "0", "sdpa_kernel": "8"}),
        ({"cuda_graph": True}, {"use_tf32": "1", "sdpa_kernel": "0", "enable_cuda_graph": "1"}),
    ],
    ids=["default", "kernel and rounding", "graph"],
)
def test_what_cuda_is_asked_to_do(monkeypatch, options, asked):
    given = {}

    def session(model, options, providers, provider_options, enable_fallback):
        given.update(zip(providers, provider_options, strict=True))
        raise RuntimeError("enough")

    monkeypatch.setattr(sessions.ort, "InferenceSession", session)
    with pytest.raises(SessionError, match="enough"):
        sessions.Session(sessions.SessionSpec("m.onnx", "cuda", **options))
    assert given == {"CUDAExecutionProvider": asked, "CPUExecutionProvider": {}}


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"takes the inputs x, but was given \(none\)"),
        ({"x": np.zeros((2, 1), np.float32), "w": np.zeros(1)}, "takes the inputs x, but was given x, w"),
        ({"x": np.zeros((3, 1), np.float32)}, "Got invalid dimensions for input: x .* Got: 3 Expected: 2"),
        ({"x": np.zeros(2, np.float32)}, "Invalid rank for input: x Got: 1 Expected: 2"),
        ({"x": np.zeros((2, 1), np.float16)}, "Unexpected input data type"),
    ],
    ids=["missing", "too many", "shape", "rank", "type"],
)
def test_feeds_that_do_not_fit_are_an_input_error(run, save_model, feeds, message):
    with pytest.raises(InputError, match=message):
        run(save_model(RELU), feeds)


def test_float16_stays_float16(run, save_model):
    x = np.array([0.1, -65504, np.inf], np.float16)
    y = run(save_model("g (float16[3] x) => (float16[3] y) { y = Identity (x) }"), {"x": x})["y"]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("shape", [(2, 5), (10,)])
def test_bfloat16_travels_as_float32_rounded_to_nearest_even(run, save_model, shape):
    bits = [
        0x3F808000,
        0x3F818000,
        0x3F808001,
        0x3F807FFF,
        0x7F7FFFFF,
        0x7F800000,
        0xFF800000,
        0x7FFFFFFF,
        0x80000001,
        0,
    ]
    x = np.array(bits, np.uint32).view(np.float32).reshape(shape)
    dims = ",".join(map(str, shape))
    y = run(save_model(f"g (bfloat16[{dims}] x) => (bfloat16[{dims}] y) {{ y = Identity (x) }}"), {"x": x})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_empty_tensor_and_a_scalar_run(run, save_model):
    model = save_model("g (float[N] x, bfloat16 s) => (float[N] y, bfloat16 t) { y = Relu (x) t = Identity (s) }")
    y = run(model, {"x": np.zeros(0, np.float32), "s": np.array(1.5, np.float32)})
    assert (y["y"].shape, y["t"].shape, float(y["t"])) == ((0,), (), 1.5)


def test_a_session_that_quietly_left_its_provider_is_refused(monkeypatch):
    class OnTheCpu:
        def __init__(self, *args, **options):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(sessions.ort, "InferenceSession", OnTheCpu)
    with pytest.raises(
        SessionError, match="was to run on CUDAExecutionProvider, but its session has CPUExecutionProvider"
    ):
        sessions.Session(sessions.SessionSpec("m.onnx", "cuda"))


def test_what_is_bound_runs_and_its_node_times_count_from_a_known_moment(save_model, tmp_path):
    before_ns = time.time_ns()
    session = sessions.Session(sessions.SessionSpec(save_model(RELU), "cpu", node_times=tmp_path / "times"))
    run = session.bind({"x": np.zeros((2, 3), np.float32)})
    run()
    run()
    assert before_ns <= session.profiling_start_ns() <= time.time_ns()
    events = json.loads(session.end_node_times().read_text())
    assert [event["name"] for event in events].count("model_run") == 2


class TestCudaGraphs:
    """What is asked of ONNX Runtime; a CPU session passes over the graphs' numbers, the rest is real."""

    @pytest.fixture
    def session(self, save_model, monkeypatch):
        session = sessions.Session(sessions.SessionSpec(save_model(RELU), "cpu"))
        monkeypatch.setattr(session, "_spec", replace(session._spec, cuda_graph=True))
        return session

    @pytest.fixture
    def runs(self, session, monkeypatch):
        """(graph id, where its output lies afterwards) of each run."""
        runs = []
        run_with_iobinding = session._session.run_with_iobinding

        def spy(binding, options):
            run_with_iobinding(binding, options)
            (output,) = binding.get_outputs()
            runs.append((options.get_run_config_entry("gpu_graph_id"), output.data_ptr(), output.numpy().shape))

        monkeypatch.setattr(session._session, "run_with_iobinding", spy)
        return runs

    def test_outputs_are_allocated_before_the_capture_and_stay_where_they_are(self, session, runs):
        run = session.bind({"x": np.zeros((2, 3), np.float32)})
        run()
        run()
        run()
        assert [graph for graph, _, _ in runs] == ["-1", "1", "1", "1"]
        assert len({address for _, address, _ in runs}) == 1

    def test_a_session_takes_several_shapes_each_with_a_graph_of_its_own(self, session, runs):
        for size in (3, 5):
            run = session.bind({"x": np.zeros((2, size), np.float32)})
            run()
            run()
        assert [(graph, shape) for graph, _, shape in runs] == [
            ("-1", (2, 3)),
            ("1", (2, 3)),
            ("1", (2, 3)),
            ("-1", (2, 5)),
            ("2", (2, 5)),
            ("2", (2, 5)),
        ]

    def test_a_run_that_fails_to_allocate_can_be_tried_again(self, session, runs, monkeypatch):
        run = session.bind({"x": np.zeros((2, 3), np.float32)})
        with monkeypatch.context() as patch:
            patch.setattr(session._session, "run_with_iobinding", lambda binding, options: 1 / 0)
            with pytest.raises(SessionError, match="division by zero"):
                run()
        run()
        assert [graph for graph, _, _ in runs] == ["-1", "1"]

    def test_a_run_on_other_arrays_leaves_the_graphs_alone(self, session, monkeypatch):
        given = []
        run_with_ort_values = session._session.run_with_ort_values

        def spy(names, values, options):
            given.append(options.get_run_config_entry("gpu_graph_id"))
            return run_with_ort_values(names, values)

        monkeypatch.setattr(session._session, "run_with_ort_values", spy)
        np.testing.assert_array_equal(session.run({"x": np.array([[-1], [2]], np.float32)})["y"], [[0], [2]])
        assert given == ["-1"]

    def test_on_the_cpu_they_are_refused(self, save_model):
        spec = sessions.SessionSpec(save_model(RELU), "cpu", cuda_graph=True)
        with pytest.raises(
            SessionError, match=r"model\.onnx was to run with CUDA graphs, but on the CPU; use provider"
        ):
            sessions.Session(spec)
