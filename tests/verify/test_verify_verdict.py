"""A right fusion passes; a fused model with one thing wrong in it fails, per block and end to end, with the numbers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, feeds_for, render
from onnx import TensorProto, helper, numpy_helper

from explorer.attention import recognise
from explorer.errors import Cancelled, InputError
from explorer.fusion import Plan, apply
from explorer.model import Model, load
from explorer.model.save import serialize
from explorer.runtime import Worker
from explorer.verify import Case, Verdict, verify, verify_models

SHAPES = {"q": (2, 8, 16)}
Edit = Callable[[onnx.ModelProto], object]


def fuse(model: Model) -> onnx.ModelProto:
    blocks = recognise(model)
    plan = Plan(model.digest)
    for block in blocks:
        plan = plan.with_fusion(block, "mha")
    return onnx.load_from_string(serialize(apply(model, blocks, plan).ir))


def attention_node(proto: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.op_type == "MultiHeadAttention")


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


@pytest.fixture
def judged(worker: Worker, tmp_path: Path):
    """The verdict on a model fused rightly and then edited."""

    def judged(meaning: Meaning, edit: Edit, spelling: Spelling = Spelling(), **options: object) -> Verdict:  # noqa: B008
        path, fused_path = tmp_path / "original.onnx", tmp_path / "fused.onnx"
        path.write_bytes(render(meaning, spelling).SerializeToString())
        original = load(path)
        proto = fuse(original)
        edit(proto)
        fused_path.write_bytes(proto.SerializeToString())
        options.setdefault("shapes", {} if not spelling.dynamic else SHAPES)
        return verify_models(worker, original, load(fused_path), **options)

    return judged


def nothing(proto: onnx.ModelProto) -> None:
    pass


def scale_up(proto: onnx.ModelProto) -> None:
    attribute(attention_node(proto), "scale").f *= 1.1


def scale_default(proto: onnx.ModelProto) -> None:
    node = attention_node(proto)
    node.attribute.remove(attribute(node, "scale"))


def drop_mask(proto: onnx.ModelProto) -> None:
    node = attention_node(proto)
    assert len(node.input) == 6
    del node.input[3:]


def drop_causality(proto: onnx.ModelProto) -> None:
    node = attention_node(proto)
    node.attribute.remove(attribute(node, "unidirectional"))


def swap_key_and_value(proto: onnx.ModelProto) -> None:
    node = attention_node(proto)
    node.input[1], node.input[2] = node.input[2], node.input[1]


def value_is_key(proto: onnx.ModelProto) -> None:
    node = attention_node(proto)
    node.input[2] = node.input[1]


def more_heads(proto: onnx.ModelProto) -> None:
    """Two heads read as one: each input keeps a shape that the operator takes."""
    node = attention_node(proto)
    attribute(node, "num_heads").i = 1
    at = list(proto.graph.node).index(node)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, -1, 16]), "one_head"))
    for position in (1, 2):
        new = helper.make_node("Reshape", [node.input[position], "one_head"], [f"merged{position}"])
        node.input[position] = new.output[0]
        proto.graph.node.insert(at, new)


def poison(proto: onnx.ModelProto) -> None:
    """One NaN in an otherwise right result."""
    node = attention_node(proto)
    final = node.output[0]
    node.output[0] = "clean"
    at = list(proto.graph.node).index(node)
    bad = np.zeros((1, 1, 16), np.float32)
    bad[..., 3] = np.nan
    proto.graph.initializer.append(numpy_helper.from_array(bad, "bad"))
    proto.graph.node.insert(at + 1, helper.make_node("Add", ["clean", "bad"], [final]))


def all_nan(proto: onnx.ModelProto) -> None:
    node = attention_node(proto)
    final, node.output[0] = node.output[0], "clean"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "bad"))
    at = list(proto.graph.node).index(node)
    proto.graph.node.insert(at + 1, helper.make_node("Add", ["clean", "bad"], [final]))


def one_row_less(proto: onnx.ModelProto) -> None:
    """A block output of another shape."""
    node = attention_node(proto)
    final, node.output[0] = node.output[0], "whole"
    for name, number in (("one", 1), ("end", 1 << 40), ("axis", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([number]), f"cut_{name}"))
    at = list(proto.graph.node).index(node)
    cut = helper.make_node("Slice", ["whole", "cut_one", "cut_end", "cut_axis"], [final])
    proto.graph.node.insert(at + 1, cut)
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")


MASKED = Meaning(mask="padding")
CAUSAL = Meaning(mask="causal")


@pytest.mark.parametrize(
    ("meaning", "spelling"),
    [
        (Meaning(), Spelling()),
        (MASKED, Spelling()),
        (CAUSAL, Spelling()),
        (Meaning(half=True), Spelling(casts="after", key="native")),
        (Meaning(half=True, mask="additive4"), Spelling(casts="before", two_casts=True)),
        (Meaning(), Spelling(merge="none")),
        (Meaning(), Spelling(merge="transpose")),
    ],
)
def test_a_right_fusion_passes(judged, meaning, spelling):
    verdict = judged(meaning, nothing, spelling)
    assert verdict.passed
    assert len(verdict.blocks) == 1
    assert [output.name for output in verdict.outputs] == ["y"]
    for comparison in (*verdict.cases[0].blocks, *verdict.cases[0].outputs):
        assert comparison.fused.relative < (4e-3 if meaning.half else 4e-6)
        assert comparison.fused.nonfinite == 0
        assert comparison.dtype == ("float16" if meaning.half else "float32")
        assert comparison.shape[:2] == ((2, 2) if spelling.merge == "none" else (2, 8))
    assert dict(verdict.shapes)["q"] == (2, 8, 16)
    assert verdict.seed == 0
    assert "in float64" in verdict.truth


SABOTAGES = [
    (Meaning(), scale_up),
    (Meaning(scale=1.0), scale_default),
    (MASKED, drop_mask),
    (Meaning(mask="additive4"), drop_mask),
    (CAUSAL, drop_causality),
    (Meaning(), swap_key_and_value),
    (Meaning(), value_is_key),
    (Meaning(), more_heads),
]


@pytest.mark.parametrize(("meaning", "edit"), SABOTAGES, ids=lambda item: getattr(item, "__name__", ""))
def test_a_sabotage_fails_in_the_block_and_end_to_end(judged, tmp_path, meaning, edit):
    options = {}
    if meaning is MASKED:  # seeded numbers of 0 and 1 in a float mask would hide little: give a real padding mask
        feeds = feeds_for(Meaning(rows=8, keys=8, mask="padding"))
        np.savez(tmp_path / "feeds.npz", **feeds)
        options = {"inputs": tmp_path / "feeds.npz"}
    verdict = judged(meaning, edit, **options)
    assert not verdict.passed
    (block,), (output,) = verdict.blocks, verdict.outputs
    for comparison in (block, output):
        assert not comparison.passed
        assert comparison.original.relative < 1e-5, "the original is innocent"
        assert comparison.fused.relative > 100 * comparison.allowed
        assert comparison.fused.max_abs > 1e-3


def test_a_sabotage_in_half_precision_fails_too(judged):
    verdict = judged(Meaning(half=True, scale=1.0), scale_up, Spelling(casts="after"))
    assert not verdict.blocks[0].passed
    assert not verdict.outputs[0].passed


class TestNotANumber:
    def test_one_nan_fails(self, judged):
        verdict = judged(Meaning(), poison)
        (block,), (output,) = verdict.blocks, verdict.outputs
        assert not verdict.passed
        for comparison in (block, output):
            assert not comparison.passed
            assert comparison.original.nonfinite == 0
            assert comparison.fused.nonfinite == 2 * 8, "one in each row"
            assert comparison.fused.relative < 4e-6, "the others are right"

    def test_nothing_but_nan_fails(self, judged):
        verdict = judged(Meaning(), all_nan)
        assert not verdict.passed
        assert not verdict.blocks[0].passed
        assert verdict.outputs[0].fused.nonfinite == 2 * 8 * 16

    @pytest.mark.parametrize("edit", [poison, all_nan])
    def test_the_document_is_json_all_the_same(self, judged, edit):
        """Infinity and NaN are not JSON: browsers and jq refuse them."""
        text = json.dumps(judged(Meaning(), edit).to_json(), allow_nan=False)
        assert json.loads(text)["passed"] is False


def test_another_shape_fails(judged):
    """Whatever made that file, it does not compute the same: that is a failed verdict, not a traceback."""
    verdict = judged(Meaning(), one_row_less)
    assert not verdict.passed
    assert not verdict.blocks[0].passed
    assert not verdict.outputs[0].passed
    json.dumps(verdict.to_json(), allow_nan=False)


def test_only_the_wrong_block_of_two_fails(worker, samples, tmp_path):
    original = load(samples / "bert_fp32.onnx")
    proto = fuse(original)
    second = [node for node in proto.graph.node if node.op_type == "MultiHeadAttention"][1]
    attribute(second, "scale").f *= 1.1
    (tmp_path / "fused.onnx").write_bytes(proto.SerializeToString())
    verdict = verify_models(worker, original, load(tmp_path / "fused.onnx"), shapes={"input_ids": (2, 8)})
    assert [block.passed for block in verdict.blocks] == [True, False]
    assert [block.block for block in verdict.blocks] == [block.id for block in recognise(original)]
    assert not any(output.passed for output in verdict.outputs)


@pytest.mark.parametrize("sample", ["bert_fp32", "gpt_fp32"])
def test_the_samples_pass(worker, samples, sample, tmp_path):
    original = load(samples / f"{sample}.onnx")
    (tmp_path / "fused.onnx").write_bytes(fuse(original).SerializeToString())
    verdict = verify_models(worker, original, load(tmp_path / "fused.onnx"), shapes={"input_ids": (2, 9)})
    assert verdict.passed
    assert len(verdict.blocks) == len(recognise(original))


def test_the_same_file_passes_without_any_block(worker, samples):
    original = load(samples / "bert_fp32.onnx")
    verdict = verify_models(worker, original, original, shapes={"input_ids": (1, 5)})
    assert verdict.passed
    assert verdict.blocks == ()
    assert all(output.fused == output.original for output in verdict.outputs)


@pytest.mark.parametrize("what", ["inputs", "outputs"])
def test_unrelated_models_are_an_error_in_words(worker, opened, what):
    one = opened("g (float[n] x) => (float[n] y) { y = Neg (x) }", "one.onnx")
    text = {"inputs": "g (float[n] z) => (float[n] y) { y = Neg (z) }",
            "outputs": "g (float[n] x) => (float[n] z) { z = Neg (x) }"}[what]  # fmt: skip
    with pytest.raises(InputError) as caught:
        verify_models(worker, one, opened(text, "other.onnx"))
    assert f"same {what}" in str(caught.value)
    assert "z" in str(caught.value)
    assert "made from it" in str(caught.value)


def test_users_inputs_have_no_seed(worker, opened, tmp_path):
    model = opened("g (float[n] x) => (float[n] y) { y = Neg (x) }")
    np.savez(tmp_path / "feeds.npz", x=np.ones(3, np.float32))
    verdict = verify_models(worker, model, model, inputs=tmp_path / "feeds.npz")
    assert verdict.seed is None
    assert verdict.shapes == (("x", (3,)),)


class TestRoundings:
    """Where a rounding decides, float64 decides otherwise."""

    def test_something_discrete_is_judged_in_the_models_own_type(self, worker, opened):
        """In float32 the sum swallows the input, in float64 it does not: no fusion has anything to do with it."""
        model = opened("""g (float[n] x) => (float[n] y) {
            big = Constant <value = float {16777216.0}> () a = Add (x, big) y = Sub (a, big) }""")
        verdict = verify(worker, model, model, [], [Case("by hand", {"x": np.full(3, 0.5, np.float32)})])
        assert verdict.passed
        assert verdict.truth.endswith(
            "without ONNX Runtime's optimisations, since in float64 a rounding decides otherwise"
        )
        assert verdict.outputs[0].original.relative == 0
        assert verdict.notes == ()

    def test_a_float16_model_that_rounds_badly_is_no_yardstick(self, worker, opened):
        """What float32 says, too, is no accident of float64."""
        model = opened("""g (float[n] x) => (float[n] y) {
            big = Constant <value = float {2048.0}> () a = Add (x, big) h = Cast <to = 10> (a) w = Cast <to = 1> (h)
            y = Sub (w, big) }""")
        verdict = verify(worker, model, model, [], [Case("by hand", {"x": np.full(3, 0.5, np.float32)})])
        assert "in float64, by" in verdict.truth
        (note,) = [note for note in verdict.notes if "proves little" in note]
        assert "'y'" in note
        assert "100%" in note
        assert "by hand" in note


def test_half_precision_on_the_cpu_is_said_to_be_that(judged):
    assert any("16-bit" in note for note in judged(Meaning(half=True), nothing).notes)
    assert not any("16-bit" in note for note in judged(Meaning(), nothing).notes)


def test_integer_outputs_are_not_compared_as_floats(worker, opened):
    model = opened(
        "g (float[n, 4] x) => (float[n, 4] y, int64[n] best) { y = Neg (x) best = ArgMax <axis = 1, keepdims = 0> (y) }"
    )
    verdict = verify(worker, model, model, [])
    assert verdict.passed
    assert "y" in [output.name for output in verdict.outputs]


def test_progress_goes_from_start_to_end(worker, samples):
    seen = []
    model = load(samples / "bert_fp32.onnx")
    verify_models(worker, model, model, shapes={"input_ids": (1, 4)})
    verify(worker, model, model, [], on_progress=lambda at, text: seen.append((at, text)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < 0.5
    assert all(text for _, text in seen)


def test_cancelled_before_it_starts(worker, opened):
    cancel = threading.Event()
    cancel.set()
    model = opened("g (float[n] x) => (float[n] y) { y = Neg (x) }")
    with pytest.raises(Cancelled, match="cancelled"):
        verify(worker, model, model, [], cancel=cancel)
    assert verify(worker, model, model, []).passed


def test_external_weights(worker, tmp_path):
    """Both models refer to the same file of weights, which lies beside neither of the temporary copies."""
    proto = render(Meaning(), Spelling())
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    (tmp_path / "w.bin").write_bytes(numpy_helper.to_array(tensor).tobytes())
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    original = load(tmp_path / "m.onnx")
    (tmp_path / "fused.onnx").write_bytes(fuse(original).SerializeToString())
    assert verify_models(worker, original, load(tmp_path / "fused.onnx"), shapes=SHAPES).passed
