"""The end-to-end truth: the very function that a file describes, in float64 throughout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import Meaning, Spelling, feeds_for, oracle, render
from onnx import TensorProto, numpy_helper

from explorer.errors import ModelError
from explorer.runtime import arrays
from explorer.runtime.context import Context
from explorer.verify import runs, verify
from explorer.verify.truth import float32_outputs, float64_outputs, widen

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>'


def context(folder: Path) -> Context:
    log = folder / "log"
    log.touch()
    return Context(lambda fraction, text: None, folder, log)


@pytest.fixture
def truth(tmp_path: Path):
    """The outputs in float64, computed in this process by the function that the worker runs."""

    def truth(graph: str | onnx.ModelProto, feeds: dict[str, np.ndarray], opset: int = 17) -> dict[str, np.ndarray]:
        proto = onnx.parser.parse_model(HEADER.format(opset=opset) + graph) if isinstance(graph, str) else graph
        path, given, out = tmp_path / "m.onnx", tmp_path / "feeds.npz", tmp_path / "out.npz"
        path.write_bytes(proto.SerializeToString())
        arrays.save(given, feeds)
        (reason,) = float64_outputs(context(tmp_path), str(path), [str(given)], [str(out)])
        if reason is not None:
            raise ModelError(reason)
        return arrays.load(out)

    return truth


x32 = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
x64 = x32.astype(np.float64)


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("Erf (x)", erf(x64)),
        ("Tanh (x)", np.tanh(x64)),
        ("Sigmoid (x)", 1 / (1 + np.exp(-x64))),
        ("Exp (x)", np.exp(x64)),
        ("Softmax <axis = -1> (x)", np.exp(x64) / np.exp(x64).sum(-1, keepdims=True)),
        ("ReduceMean <axes = [-1], keepdims = 1> (x)", x64.mean(-1, keepdims=True)),
        ("Relu (x)", np.maximum(x64, 0)),
        ("LeakyRelu <alpha = 0.5> (x)", np.where(x64 > 0, x64, 0.5 * x64)),
        ("Softplus (x)", np.log1p(np.exp(x64))),
        ("Sin (x)", np.sin(x64)),
        ("Cos (x)", np.cos(x64)),
        ("Cast <to = 1> (x)", x64),
        ("Cast <to = 10> (x)", x64),
        ("Transpose (x)", x64.T),
    ],
)
def test_operators_of_transformers_are_double_throughout(truth, node, expected):
    result = truth(f"g (float[3, 4] x) => (float[a, b] y) {{ y = {node} }}", {"x": x32})["y"]
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-14, atol=1e-15)


def test_a_constant_that_does_not_say_its_type_is_double(truth):
    text = "g (float[3, 4] x) => (float[a, b] y) { s = Shape (x) zeros = ConstantOfShape (s) y = Add (x, zeros) }"
    np.testing.assert_array_equal(truth(text, {"x": x32})["y"], x64)


def test_gelu_is_double(truth):
    result = truth("g (float[3, 4] x) => (float[3, 4] y) { y = Gelu (x) }", {"x": x32}, opset=20)["y"]
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, 0.5 * x64 * (1 + erf(x64 / math.sqrt(2))), rtol=1e-13, atol=1e-15)


def test_layer_normalization_is_double(truth):
    text = """g (float[3, 4] x) => (float[3, 4] y) <float[4] w = {1, 2, 3, 4}, float[4] b = {0, 1, 0, 1}> {
        y = LayerNormalization <epsilon = 0.5> (x, w, b) }"""
    result = truth(text, {"x": x32})["y"]
    centred = x64 - x64.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.5)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, normed * [1, 2, 3, 4] + [0, 1, 0, 1], rtol=1e-13, atol=1e-14)


def test_a_half_model_end_to_end(truth):
    """A projection, attention and GELU with fp16 weights, against numpy: the weights rounded, all else exact."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((8, 8)).astype(np.float16)
    x = rng.standard_normal((2, 5, 8)).astype(np.float16)
    text = """g (float16[b, s, 8] x) => (float16[b, s, 8] y) {
        q = MatMul (x, w) k = Transpose <perm = [0, 2, 1]> (q) l = MatMul (q, k) f = Cast <to = 1> (l)
        c = Constant <value = float {0.1}> () m = Mul (f, c) p = Softmax <axis = -1> (m) h = Cast <to = 10> (p)
        o = MatMul (h, x) root = Constant <value_float = 1.25> () rh = Cast <to = 10> (root) d = Div (o, rh)
        y = Erf (d) }"""
    proto = onnx.parser.parse_model(HEADER.format(opset=17) + text)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    result = truth(proto, {"x": x})["y"]
    wide, w = x.astype(np.float64), weight.astype(np.float64)
    q = wide @ w
    logits = float(np.float32(0.1)) * (q @ q.transpose(0, 2, 1))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, erf(weights @ wide / 1.25), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("meaning", "spelling"),
    [
        (Meaning(half=True, mask="padding"), Spelling(casts="after")),
        (Meaning(half=True), Spelling(casts="before", two_casts=True, key="native")),
        (Meaning(mask="causal"), Spelling()),
        (Meaning(mask="additive4"), Spelling(scale_source="sqrt", scale_at="both")),
    ],
)
def test_attention_graphs_mean_what_their_oracle_says(truth, meaning, spelling):
    feeds = feeds_for(meaning, spelling)
    result = truth(render(meaning, spelling), feeds)["y"]
    assert result.dtype == np.float64
    # the scale itself is stored in the graph's own type
    tolerance = 1e-2 if meaning.half or spelling.scale_at == "both" else 1e-12
    np.testing.assert_allclose(result, oracle(meaning, spelling, feeds), atol=tolerance)


def test_integers_stay_integers(truth):
    text = """g (int64[n] ids, float[n] x) => (int64[n] y, float[n] z, bool[n] b) {
        two = Constant <value = int64 {2}> () y = Mul (ids, two) c = Cast <to = 1> (y) z = Mul (c, x)
        b = Greater (x, c) }"""
    feeds = {"ids": np.array([3, 4]), "x": np.array([0.5, 9], np.float32)}
    result = truth(text, feeds)
    assert {name: array.dtype.name for name, array in result.items()} == {"y": "int64", "z": "float64", "b": "bool"}
    assert result["y"].tolist() == [6, 8]
    assert result["b"].tolist() == [False, True]


def test_an_unknown_operator_has_no_truth(truth):
    text = "g (float[n] x) => (float[n] y) { y = other.org.Magic (x) }"
    with pytest.raises(ModelError) as caught:
        truth(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "other.org": 1]>' + text), {"x": x32[0]})
    assert "reference evaluator" in str(caught.value)
    assert "Magic" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_external_weights_are_found(truth, tmp_path):
    weight = np.arange(4, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    proto = onnx.parser.parse_model(HEADER.format(opset=17) + "g (float[4] x) => (float[4] y) { y = Mul (x, w) }")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    proto.graph.initializer.append(tensor)
    np.testing.assert_array_equal(truth(proto, {"x": x32[0]})["y"], x64[0] * weight)


def test_widen_reaches_bodies_and_attributes():
    proto = onnx.parser.parse_model(
        HEADER.format(opset=17)
        + """g (float16[n] x, bool c) => (float16[n] y) {
               y = If (c) <then_branch = t () => (float16[n] o) {
                                f = Constant <value = float {0.5}> () k = Cast <to = 10> (f) o = Mul (x, k) },
                           else_branch = e () => (float16[n] p) { i = Cast <to = 1> (x) p = Cast <to = 10> (i) }>
             }"""
    )
    widen(proto)
    text = onnx.printer.to_text(proto)
    assert "float" not in text.replace("value_float", "")
    assert "to: int = 10" not in text
    assert "to: int = 1," not in text
    onnx.checker.check_model(proto, full_check=True)


class TestLadder:
    """Where there is no float64 truth the next best is taken, and the verdict says which and why."""

    UNKNOWN = "g ({0}[4, 4] x) => ({0}[4, 4] y) {{ a = com.microsoft.Inverse (x) y = Neg (a) }}"

    def test_its_own_outputs_without_optimisations(self, worker, opened):
        """The reference evaluator does not know this operator of com.microsoft; ONNX Runtime does."""
        model = opened(self.UNKNOWN.format("float"))
        verdict = verify(worker, model, model, [])
        assert verdict.passed
        assert verdict.truth.startswith(
            "the original's own outputs, without ONNX Runtime's optimisations, since there is no float64 truth: "
        )
        assert "Inverse" in verdict.truth
        assert "\n" not in verdict.truth
        assert verdict.outputs[0].original.relative < 1e-6
        assert verdict.blocks == ()

    def test_a_half_model_in_float32(self, worker, opened):
        model = opened(self.UNKNOWN.format("float16"))
        verdict = verify(worker, model, model, [])
        assert verdict.passed
        assert verdict.truth.startswith(
            "the original in float32, by ONNX Runtime on the CPU, since there is no float64"
        )

    def test_an_evaluator_that_is_slow_does_the_first_case_only(self, worker, opened, monkeypatch):
        monkeypatch.setattr(runs, "TRUTH_BUDGET_S", 0.0)
        model = opened("g (float[n, s] x) => (float[n, s] y) { y = Neg (x) }")
        first, *others = verify(worker, model, model, []).cases
        assert "in float64" in first.truth
        assert len(others) == 4
        assert all("own outputs" in case.truth and "too slow" in case.truth for case in others)

    def test_one_that_does_not_end_is_stopped(self, worker, opened, monkeypatch):
        monkeypatch.setattr(runs, "TRUTH_LIMIT_S", 0.0)
        model = opened("g (float[n, s] x) => (float[n, s] y) { y = Neg (x) }")
        verdict = verify(worker, model, model, [])
        assert verdict.passed
        assert all("takes longer than 0 s" in case.truth for case in verdict.cases)

    def test_a_value_too_large_for_float64(self, worker, opened, monkeypatch):
        monkeypatch.setattr(runs, "MAX_TRUTH_BYTES", 8 * 32 * 32)
        model = opened("g (float[1, s] x) => (float[s, s] y) { t = Transpose (x) y = MatMul (t, x) }")
        assert "in float64, by" in verify(worker, model, model, [], shapes={"x": (1, 32)}).truth
        assert "one of its values takes 0.0 GB" in verify(worker, model, model, [], shapes={"x": (1, 33)}).truth


def test_float32_outputs_are_those_of_float32(tmp_path):
    """1 + 2⁻¹² is 1 in float16."""
    proto = onnx.parser.parse_model(
        HEADER.format(opset=17)
        + "g (float16[2] x) => (float16[2] y) { one = Constant <value = float {1.0}> () h = Cast <to = 10> (one) "
        "y = Add (x, h) }"
    )
    path, given, out = tmp_path / "m.onnx", tmp_path / "feeds.npz", tmp_path / "out.npz"
    path.write_bytes(proto.SerializeToString())
    arrays.save(given, {"x": np.array([2**-12, 2**-13], np.float16)})
    (reason,) = float32_outputs(context(tmp_path), str(path), [str(given)], [str(out)])
    assert reason is None
    assert arrays.load(out)["y"].tolist() == [1 + 2**-12, 1 + 2**-13]
    assert arrays.load(given)["x"].dtype == np.float16, "others need it as it is"
    assert not list(tmp_path.glob("float32*"))


def test_the_verdict_says_when_the_model_is_too_large_for_truth(worker, opened, monkeypatch):
    monkeypatch.setattr(runs, "MAX_TRUTH_PARAMETERS", 3)
    model = opened("g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> { y = Mul (x, w) }")
    verdict = verify(worker, model, model, [])
    assert verdict.passed
    assert "too many to hold in float64" in verdict.truth
