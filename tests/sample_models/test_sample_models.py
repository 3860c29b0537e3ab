"""The committed samples are what their builders make, run, and are spelled as promised."""

from collections import Counter
from pathlib import Path

import build
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bert import bert
from f5_dit import f5_dit
from gpt import gpt
from onnx import helper, numpy_helper

ONE, TWO, BERT, GPT = build.SAMPLES
KILOBYTES = {ONE: 600, TWO: 600, BERT: 300, GPT: 300}


def f5_feeds(seq, time_size=8):
    rng = np.random.default_rng(1)
    shapes = {"x": (2, seq, 100), "time": (2, time_size)}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def token_feeds(batch, seq):
    return {"input_ids": np.random.default_rng(1).integers(0, 128, (batch, seq))}


def bert_feeds(batch, seq):
    return token_feeds(batch, seq) | {"attention_mask": np.ones((batch, seq), np.int64)}


FEEDS = {
    ONE: (f5_feeds(7), f5_feeds(130)),
    TWO: (f5_feeds(7), f5_feeds(130)),
    BERT: (bert_feeds(1, 5), bert_feeds(3, 40)),
    GPT: (token_feeds(1, 5), token_feeds(3, 40)),
}


def load(sample):
    return onnx.load(build.HERE / sample)


def run(model, feeds, *values):
    """The model's output, or the named inner values, as ONNX Runtime computes them without any fusion."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(list(values) or None, feeds)
    return results if values else results[0]


def weights(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model):
    return {output: node for node in model.graph.node for output in node.output}


def consumer(model, node):
    (found,) = (other for other in model.graph.node if node.output[0] in other.input)
    return found


@pytest.mark.parametrize("sample", build.SAMPLES)
class TestEverySample:
    def test_is_what_its_builder_makes(self, sample):
        assert build.SAMPLES[sample]().SerializeToString(deterministic=True) == (build.HERE / sample).read_bytes()

    def test_is_a_valid_model(self, sample):
        onnx.checker.check_model(load(sample), full_check=True)

    def test_is_small(self, sample):
        assert (build.HERE / sample).stat().st_size < 1000 * KILOBYTES[sample]

    def test_names_every_node_once(self, sample):
        names = [node.name for node in load(sample).graph.node]
        assert all(names)
        assert len(names) == len(set(names))

    def test_has_value_info_for_every_inner_value_or_none(self, sample):
        model = load(sample)
        inner = set(producers(model)) - {output.name for output in model.graph.output}
        assert {info.name for info in model.graph.value_info} == (set() if sample == TWO else inner)

    def test_runs_at_two_shapes_with_finite_outputs(self, sample):
        for feeds in FEEDS[sample]:
            output = run(load(sample), feeds)
            first = next(iter(feeds.values()))
            assert output.shape[:2] == first.shape[:2]
            assert np.isfinite(output).all()
            assert 0.1 < output.std() < 10


@pytest.mark.parametrize("sample", [ONE, BERT, GPT])
def test_value_info_tells_the_shapes_and_types_of_a_run(sample):
    model, feeds = load(sample), FEEDS[sample][1]
    batch, seq = next(iter(feeds.values())).shape[:2]
    sizes = {"batch": batch, "seq": seq}
    infos = list(model.graph.value_info)
    for info, value in zip(infos, run(model, feeds, *(info.name for info in infos)), strict=True):
        tensor = info.type.tensor_type
        assert value.shape == tuple(sizes.get(dim.dim_param, dim.dim_value) for dim in tensor.shape.dim), info.name
        assert value.dtype == helper.tensor_dtype_to_np_dtype(tensor.elem_type), info.name


class TestF5Dit:
    @pytest.mark.parametrize(("sample", "after"), [(ONE, ["Cast"]), (TWO, ["Cast", "Cast"])])
    def test_attention_is_spelled_as_reported(self, sample, after):
        model = load(sample)
        softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
        assert [node.name for node in softmaxes] == [f"/transformer_blocks.{i}/attn/Softmax" for i in range(2)]
        for node in softmaxes:
            above, made = [], producers(model)
            while not above or above[-1].op_type != "MatMul":
                above.append(made[(above or [node])[-1].input[0]])
            assert [n.op_type for n in above] == ["Mul", "Cast", "MatMul"]
            unbake = made[above[0].input[1]]
            assert numpy_helper.to_array(unbake.attribute[0].t) == np.float32(100)
            assert [made[name].op_type for name in above[-1].input] == ["Add", "Add"], "RoPE, no Transpose"
            below = [node]
            while below[-1].op_type != "Reshape":
                below.append(consumer(model, below[-1]))
            assert [n.op_type for n in below] == ["Softmax", *after, "MatMul", "Transpose", "Reshape"]

    @pytest.mark.parametrize(("softmax_casts", "casts"), [("one", 2), ("two", 3)])
    def test_has_no_cast_outside_attention(self, softmax_casts, casts):
        model = f5_dit(layers=3, softmax_casts=softmax_casts)
        assert Counter(node.op_type for node in model.graph.node)["Cast"] == 3 * casts

    def test_both_spellings_compute_the_same(self):
        one, two = (run(load(sample), f5_feeds(33)) for sample in (ONE, TWO))
        np.testing.assert_allclose(one, two, atol=8e-3)  # their GELUs round differently in fp16

    @pytest.mark.parametrize("layer", [0, 1])
    def test_logits_are_those_of_plain_attention_with_unscaled_weights(self, layer):
        model, scope = load(ONE), f"transformer_blocks.{layer}"
        q_in = next(node.input[0] for node in model.graph.node if node.name == f"/{scope}/attn/to_q/MatMul")
        softmax = next(node for node in model.graph.node if node.name == f"/{scope}/attn/Softmax")
        x, logits = run(model, f5_feeds(130), q_in, softmax.input[0])

        params = {name: array.astype(np.float64) for name, array in weights(model).items()}
        q, k = (
            x @ params[f"{scope}.attn.{name}.weight"] + params[f"{scope}.attn.{name}.bias"] for name in ("to_q", "to_k")
        )
        baked = 0.1 * 64**-0.25
        q, k = (rope(t.reshape(2, 130, 2, 64).transpose(0, 2, 1, 3) / baked) for t in (q, k))
        expected = q @ k.swapaxes(-1, -2) / np.sqrt(64)
        np.testing.assert_allclose(logits, expected, atol=0.02 * expected.std())
        assert 1 < logits.std() < 4

    def test_query_and_key_weights_are_a_tenth_of_their_size(self):
        params = weights(load(ONE))
        for name in ("weight", "bias"):
            q, k, v = (params[f"transformer_blocks.0.attn.to_{i}.{name}"].astype(np.float32).std() for i in "qkv")
            assert q / v == pytest.approx(2**0.5 * 0.1 * 64**-0.25, rel=0.25)
            assert k / v == pytest.approx(2**0.5 * 0.1 * 64**-0.25, rel=0.25)

    def test_rotary_tables_are_good_at_every_position_up_to_8192(self):
        model = load(ONE)
        rotary = [node for node in model.graph.node if node.name.startswith("/rotary_embed/")]
        del model.graph.node[:], model.graph.output[:]
        model.graph.node.extend(rotary)
        cos, sin = run(model, f5_feeds(8192), "/rotary_embed/Slice_output_0", "/rotary_embed/Slice_1_output_0")
        angles = rope_angles(8192)
        np.testing.assert_allclose(cos[0, 0], np.cos(angles), atol=2e-3)
        np.testing.assert_allclose(sin[0, 0], np.sin(angles), atol=2e-3)

    def test_attention_matters_to_the_output(self):
        model = load(ONE)
        expected = run(model, f5_feeds(130)).astype(np.float32)
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].t.data_type == onnx.TensorProto.FLOAT:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(80)))
        changed = run(model, f5_feeds(130)).astype(np.float32)
        assert np.abs(changed - expected).mean() > 0.005 * expected.std()

    def test_other_sizes_build_and_run(self):
        model = f5_dit(layers=3, heads=4)
        assert [node.op_type for node in model.graph.node].count("Softmax") == 3
        assert np.isfinite(run(model, f5_feeds(9, time_size=256))).all()


def rope_angles(positions):
    return np.outer(np.arange(positions), np.repeat(10000.0 ** (-np.arange(0, 64, 2) / 64), 2))


def rope(x):
    """F5's: neighbouring channels are the real and the imaginary part."""
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * rope_angles(x.shape[-2])[:, ::2])
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


class TestBert:
    def test_padding_changes_nothing_at_real_tokens(self):
        feeds = bert_feeds(2, 20)
        feeds["attention_mask"][1, 12:] = 0
        changed = feeds | {"input_ids": np.where(feeds["attention_mask"], feeds["input_ids"], 7)}
        assert (changed["input_ids"] != feeds["input_ids"]).any()
        real = feeds["attention_mask"].astype(bool)
        np.testing.assert_array_equal(run(load(BERT), feeds)[real], run(load(BERT), changed)[real])

    def test_key_is_transposed_straight_from_bsnh(self):
        model = load(BERT)
        made = producers(model)
        key = made[next(n for n in model.graph.node if n.name.endswith("layer.0/attention/self/MatMul")).input[1]]
        assert key.op_type == "Transpose"
        assert list(key.attribute[0].ints) == [0, 2, 3, 1]
        assert made[key.input[0]].op_type == "Reshape"


def test_gpt_sees_no_later_token():
    feeds = token_feeds(2, 20)
    changed = {"input_ids": np.where(np.arange(20) < 12, feeds["input_ids"], 127 - feeds["input_ids"])}
    before, after = run(load(GPT), feeds), run(load(GPT), changed)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] != after[:, 12:]).any()


@pytest.mark.parametrize(("builder", "feeds"), [(bert, bert_feeds(2, 9)), (gpt, token_feeds(2, 9))])
def test_token_models_build_in_other_sizes(builder, feeds):
    model = builder(layers=3, heads=4, head_size=32)
    assert [node.op_type for node in model.graph.node].count("Softmax") == 3
    assert np.isfinite(run(model, feeds)).all()


@pytest.mark.parametrize("sample", [BERT, GPT])
def test_token_models_have_sane_logits(sample):
    model = load(sample)
    scaled = [node.output[0] for node in model.graph.node if node.op_type == "Div" and "/att" in node.name]
    assert len(scaled) == 2
    for logits in run(model, FEEDS[sample][1], *scaled):
        assert 1 < logits.std() < 4


def test_command_line_writes_the_size_asked_for(tmp_path: Path, monkeypatch, capsys):
    output = tmp_path / "model.onnx"
    sizes = ["--layers", "1", "--heads", "1", "--head-size", "8"]
    options = ["f5_dit", *sizes, "--softmax-casts", "two", "--no-value-info", "--output"]
    monkeypatch.setattr("sys.argv", ["build.py", *options, str(output)])
    build.main()
    expected = f5_dit(layers=1, heads=1, head_size=8, softmax_casts="two", value_info=False)
    assert onnx.load(output) == expected
    assert str(output) in capsys.readouterr().out
