"""Fusing replaces a block and nothing else; what would change the meaning does not happen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, feeds_for, oracle, render, run_on_cpu
from onnx import helper, numpy_helper

from explorer import __version__
from explorer.attention import recognise
from explorer.errors import BlockError, ModelError, PlanError
from explorer.fusion import PROVENANCE, TARGETS, Fusion, Plan, apply, choose
from explorer.model import Model, TensorType, load
from explorer.model.save import serialize


def plan_of(model: Model, target: str) -> Plan:
    plan = Plan(model.digest)
    for block in recognise(model):
        if chosen := choose(model, block, target).target:
            plan = plan.with_fusion(block, chosen)
    return plan


def fuse_all(model: Model, target: str = "auto") -> Model:
    return apply(model, recognise(model), plan_of(model, target))


def twice(first: Meaning, second: Meaning) -> onnx.ModelProto:
    """Two independent blocks in one graph; names of the second end in _b."""
    one, two = render(first), render(second)
    names = {name for node in two.graph.node for name in (*node.input, *node.output)}
    rename = {name: f"{name}_b" for name in names if name}
    for node in two.graph.node:
        node.name += "_b"
        node.input[:] = [rename.get(name, name) for name in node.input]
        node.output[:] = [rename.get(name, name) for name in node.output]
    for value in (*two.graph.input, *two.graph.output, *two.graph.initializer):
        value.name = rename.get(value.name, f"{value.name}_b")
    for field in ("node", "input", "output", "initializer"):
        getattr(one.graph, field).extend(getattr(two.graph, field))
    return one


@pytest.mark.parametrize("name", ["f5_dit_fp16", "f5_dit_fp16_two_casts", "bert_fp32", "gpt_fp32"])
def test_samples_fuse_completely_and_keep_their_source(samples: Path, name: str) -> None:
    model = load(samples / f"{name}.onnx")
    before = serialize(model.ir)
    fused = fuse_all(model)
    assert serialize(model.ir) == before
    counts, old = fused.op_counts(), model.op_counts()
    assert counts["MultiHeadAttention"] == old["Softmax"] == 2
    assert "Softmax" not in counts
    assert old["MatMul"] - counts["MatMul"] == 4
    if "f5" in name:
        assert "Cast" not in counts
        assert old["Cast"] == (6 if "two" in name else 4)
    for side in ("inputs", "outputs"):
        old_names, new_names = ([v.name for v in getattr(m.ir.graph, side)] for m in (model, fused))
        assert old_names == new_names
    onnx.checker.check_model(onnx.load_from_string(serialize(fused.ir)))


def test_the_golden_fusion_of_f5(samples: Path) -> None:
    """What the first block becomes, as readable text."""
    model = load(samples / "f5_dit_fp16.onnx")
    fused = fuse_all(model)
    block = recognise(model)[0]
    new = [node for node in fused.nodes if node.metadata_props.get(f"{PROVENANCE}block") == block.id]
    written = [
        f"{node.outputs[0].name.split('/')[-1]} = {node.op_type}"
        f"({', '.join(value.name.split('/')[-1] for value in node.inputs)})"
        f" {fused.type(node.outputs[0])}"
        for node in new
    ]
    assert written == [
        "Transpose_4_output_0 = Transpose(Add_output_0) float16[2, seq, 2, 64]",
        "Reshape_8_output_0 = Reshape(Transpose_4_output_0, shape) float16[2, seq, 128]",
        "Transpose_5_output_0 = Transpose(Add_1_output_0) float16[2, seq, 2, 64]",
        "Reshape_9_output_0 = Reshape(Transpose_5_output_0, shape_2) float16[2, seq, 128]",
        "Reshape_7_output_0 = MultiHeadAttention(Reshape_8_output_0, Reshape_9_output_0, Add_output_0)"
        " float16[2, seq, 128]",
    ]
    mha = new[-1]
    assert {name: attribute.value for name, attribute in mha.attributes.items()} == {"num_heads": 2, "scale": 100.0}
    for node in new:
        said = {name: node.metadata_props[f"{PROVENANCE}{name}"] for name in ("target", "plan", "version")}
        assert said == {"target": "mha", "plan": plan_of(model, "auto").digest, "version": __version__}
        assert node.metadata_props[f"{PROVENANCE}replaces"] == ", ".join(block.nodes)


def test_two_blocks_with_different_scales_keep_their_own(save) -> None:
    first, second = Meaning(scale=0.25), Meaning(scale=2.0, seed=1)
    model = load(save(twice(first, second)))
    fused = fuse_all(model)
    scales = [n.attributes["scale"].value for n in fused.nodes if n.op_type == "MultiHeadAttention"]
    assert scales == [0.25, 2.0]
    feeds = feeds_for(first) | {f"{name}_b": array for name, array in feeds_for(second).items()}
    for result, meaning in zip(run_on_cpu(serialize(fused.ir), feeds), (first, second), strict=True):
        np.testing.assert_allclose(result, oracle(meaning, Spelling(), feeds_for(meaning)), atol=1e-5)


def test_layers_that_share_a_mask_share_its_bias(samples: Path) -> None:
    fused = fuse_all(load(samples / "bert_fp32.onnx"))
    biases = {n.inputs[5].name for n in fused.nodes if n.op_type == "MultiHeadAttention"}
    assert len(biases) == 1
    assert fused.op_counts()["Expand"] == 1


def test_a_causal_mask_becomes_the_attribute_and_its_buffer_goes(samples: Path) -> None:
    model = load(samples / "gpt_fp32.onnx")
    fused = fuse_all(model)
    for node in fused.nodes:
        if node.op_type == "MultiHeadAttention":
            assert node.attributes["unidirectional"].value == 1
            assert len(node.inputs) == 3
    gone = set(model.ir.graph.initializers) - set(fused.ir.graph.initializers)
    assert any(model.ir.graph.initializers[name].const_value.shape[-1] == 256 for name in gone)


def test_a_final_reshape_to_two_dimensions_stays_outside(save) -> None:
    """ORT's own DiT fusion is silently wrong here."""
    meaning = Meaning()
    proto = render(meaning)
    reshape = next(
        node for node in proto.graph.node if node.op_type == "Reshape" and node.output[0] == _before_y(proto)
    )
    flat = next(t for t in proto.graph.initializer if t.name == reshape.input[1])
    flat.CopyFrom(numpy_helper.from_array(np.array([-1, meaning.heads * meaning.head_size]), flat.name))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None, meaning.heads * meaning.head_size]))
    model = load(save(proto))
    feeds = feeds_for(meaning)
    (result,) = run_on_cpu(serialize(fuse_all(model).ir), feeds)
    truth = oracle(meaning, Spelling(), feeds).reshape(-1, meaning.heads * meaning.head_size)
    assert result.shape == truth.shape
    np.testing.assert_allclose(result, truth, atol=1e-5)


def _before_y(proto: onnx.ModelProto) -> str:
    return next(node.input[0] for node in proto.graph.node if node.output[0] == "y")


def test_values_that_others_read_stay(save) -> None:
    """K's own Transpose feeds a second reader: the block is fused, the Transpose stays for the other."""
    meaning = Meaning()
    proto = render(meaning)
    key = next(node for node in proto.graph.node if node.op_type == "MatMul").input[1]
    proto.graph.node.append(helper.make_node("Identity", [key], ["also"], name="reader"))
    proto.graph.output.append(helper.make_tensor_value_info("also", 1, ["batch", 2, 8, "rows"]))
    model = load(save(proto))
    fused = fuse_all(model)
    assert fused.op_counts()["MultiHeadAttention"] == 1
    feeds = feeds_for(meaning)
    result, also = run_on_cpu(serialize(fused.ir), feeds)
    np.testing.assert_allclose(result, oracle(meaning, Spelling(), feeds), atol=1e-5)
    np.testing.assert_array_equal(also, run_on_cpu(serialize(model.ir), feeds)[1])


def test_what_was_dead_before_stays_and_metadata_too(save) -> None:
    proto = render(Meaning())
    proto.graph.node.append(helper.make_node("Neg", ["v"], ["nobody"], name="dead"))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    proto.metadata_props.add(key="author", value="someone")
    fused = fuse_all(load(save(proto)))
    assert "dead" in {node.name for node in fused.nodes}
    assert "unused" in fused.ir.graph.initializers
    assert fused.ir.metadata_props["author"] == "someone"


def test_names_are_unique_whatever_the_model_calls_its_nodes(save) -> None:
    proto = render(Meaning(mask="padding"))
    for node in proto.graph.node:
        node.name = "Softmax"
    proto.graph.node[0].output[0], old = "Softmax/MultiHeadAttention", proto.graph.node[0].output[0]
    for node in proto.graph.node:
        node.input[:] = ["Softmax/MultiHeadAttention" if name == old else name for name in node.input]
    fused = fuse_all(load(save(proto)))
    written = [node.name for node in fused.nodes if node.metadata_props]
    values = [value.name for node in fused.nodes for value in node.outputs]
    assert len(set(written)) == len(written) >= 3
    assert len(set(values)) == len(values)


def test_an_fp32_mask_is_clamped_before_it_becomes_fp16(save) -> None:
    meaning, spelling = Meaning(mask="padding", half=True, keys=6, rows=6), Spelling(casts="before")
    proto = render(meaning, spelling)
    fused = fuse_all(load(save(proto)))
    assert {"Max", "Cast", "Expand"} <= set(fused.op_counts())
    feeds = feeds_for(meaning, spelling)
    assert feeds["mask"].min() < -65504
    (result,) = run_on_cpu(serialize(fused.ir), feeds)
    np.testing.assert_allclose(result, oracle(meaning, spelling, feeds), atol=5e-3)


def test_a_blocked_block_is_refused_with_its_obstacle(save) -> None:
    proto = render(Meaning())
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    proto.graph.output.append(helper.make_tensor_value_info(softmax.output[0], 1, None))
    model = load(save(proto))
    (block,) = recognise(model)
    with pytest.raises(BlockError, match="also an output of the graph"):
        apply(model, [block], Plan(model.digest).with_fusion(block, "mha"))


def test_a_plan_for_another_model_or_block_is_refused(samples: Path) -> None:
    model = load(samples / "gpt_fp32.onnx")
    blocks = recognise(model)
    with pytest.raises(PlanError, match="another"):
        apply(model, blocks, Plan("0" * 64))
    with pytest.raises(PlanError, match="attn-00000000"):
        apply(model, blocks, Plan(model.digest, (Fusion("attn-00000000", "mha"),)))


def test_an_unknown_target_is_refused(samples: Path) -> None:
    model = load(samples / "gpt_fp32.onnx")
    blocks = recognise(model)
    with pytest.raises(BlockError, match="auto, mha"):
        choose(model, blocks[0], "flash")
    with pytest.raises(BlockError, match="auto, mha"):
        apply(model, blocks, Plan(model.digest).with_fusion(blocks[0], "flash"))


def test_the_fused_operator_is_listed_with_the_same_fields(samples: Path, tmp_path: Path) -> None:
    model = load(samples / "f5_dit_fp16.onnx")
    path = tmp_path / "fused.onnx"
    path.write_bytes(serialize(fuse_all(model).ir))
    for before, after in zip(recognise(model), recognise(load(path)), strict=True):
        assert after.fused_as == "com.microsoft.MultiHeadAttention"
        fields = ("num_heads", "kv_num_heads", "head_size", "v_head_size", "scale", "dtype")
        assert [getattr(after, field) for field in fields] == [getattr(before, field) for field in fields]
        assert after.mask.kind == before.mask.kind == "none"
        assert choose(model, after, "auto").target == ""


def test_a_flaw_of_the_source_itself_does_not_forbid_fusing(save) -> None:
    """An output of unknown type is not valid ONNX, with or without the fusion."""
    proto = render(Meaning())
    proto.graph.node.append(helper.make_node("Foo", ["v"], ["foo"], name="foo", domain="my.ops"))
    proto.graph.output.append(helper.make_tensor_value_info("foo", 1, None))
    proto.opset_import.add(domain="my.ops", version=1)
    assert fuse_all(load(save(proto))).op_counts()["MultiHeadAttention"] == 1


def test_a_target_that_writes_an_invalid_graph_is_caught(save, monkeypatch) -> None:
    def build(site):
        return site.emit.node("Reshape", [site.value("q")], TensorType(None, None))

    monkeypatch.setattr(TARGETS["mha"], "build", build)
    with pytest.raises(ModelError, match="valid ONNX"):
        fuse_all(load(save(render(Meaning()))))
