"""Families of blocks, shapes taken for granted, and blocks in the bodies of other nodes."""

from __future__ import annotations

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from onnx import TensorProto, helper
from workspace_graphs import blocked_static, chain, refusal

import explorer as ex
from explorer.errors import BlockError, ModelError
from explorer.model.save import serialize


def four() -> onnx.ModelProto:
    """Three blocks that are alike, and one that is not."""
    other = onnx.compose.add_prefix(render(Meaning(scale=0.5), Spelling(dynamic=False)), "z_")
    return onnx.compose.merge_models(chain(3), other, io_map=[("b2_y", "z_q")])


def in_a_branch() -> onnx.ModelProto:
    """Attention in the body of an If."""
    inner = render(Meaning(), Spelling(dynamic=False))
    then = helper.make_graph(
        list(inner.graph.node), "then", [], list(inner.graph.output), list(inner.graph.initializer)
    )
    shape = [dim.dim_value for dim in inner.graph.output[0].type.tensor_type.shape.dim]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [len(shape)], shape)
    other = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["sizes"], ["z"], value=zero)],
        "else",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)],
        [sizes],
    )
    node = helper.make_node("If", ["yes"], ["out"], name="Branch", then_branch=then, else_branch=other)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("yes", TensorProto.BOOL, []), *inner.graph.input],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=inner.opset_import, ir_version=inner.ir_version)


class TestFamilies:
    def test_every_block_is_in_one(self, workspace):
        ws = workspace(four())
        assert [str(family) for family in ws.families] == ["attn0…attn2: 3 identical blocks", "attn3"]
        assert ws.family("attn1") == ws.family(ws.blocks[2].id) == ws.families[0]
        assert ws.family("attn3") == ws.families[1]
        assert "'attn9'" in refusal(BlockError, ws.family, "attn9")

    def test_a_family_is_fused_in_one_step(self, workspace):
        ws = workspace(four())
        report = ws.fuse_family("attn1")
        assert report.fused == ws.families[0].blocks
        assert report.skipped == ()
        assert [ws.status(block.id) for block in ws.blocks] == ["fused"] * 3 + ["fusable"]
        assert ws.history == ("Opened", "Fused attn0, attn1, attn2")
        ws.undo()
        assert ws.plan.fusions == ()

    def test_the_bytes_are_those_of_fusing_one_by_one(self, workspace):
        one, other = workspace(four()), workspace(four())
        one.fuse_family("attn0")
        for name in ("attn2", "attn0", "attn1"):
            other.fuse(name)
        assert serialize(one.current.ir) == serialize(other.current.ir)

    def test_what_is_fused_already_stays(self, workspace):
        ws = workspace(four())
        ws.fuse("attn1")
        assert ws.fuse_family("attn1").fused == (ws.blocks[0].id, ws.blocks[2].id)
        assert ws.fuse_family("attn1").fused == ()
        assert len(ws.history) == 3

    def test_one_that_cannot_be_is_named(self, workspace):
        ws = workspace(onnx.compose.add_prefix(blocked_static(), "a_"))
        report = ws.fuse_family("attn0")
        assert report.fused == ()
        ((left, obstacle),) = report.skipped
        assert (left, obstacle.code) == (ws.blocks[0].id, "interior-output")
        assert ws.history == ("Opened",)

    def test_an_unknown_block(self, workspace):
        assert "'attn9'" in refusal(BlockError, workspace().fuse_family, "attn9")


class TestShapes:
    def write(self, folder):
        path = folder / "model.onnx"
        path.write_bytes(render(Meaning(), Spelling()).SerializeToString())
        return path

    def test_shapes_given_hold_for_what_is_found_and_written(self, folder):
        path = self.write(folder)
        before = path.read_bytes()
        with ex.open(path, shapes={"q": (2, 5, 16)}) as ws:
            assert dict(ws.blocks[0].sizes)["S"] == 5
            assert any("[2, 5, 16]" in note for note in ws.notes)
            ws.fuse_all()
            written = onnx.load(ws.export(folder / "fused.onnx"))
        assert [dim.dim_value for dim in written.graph.input[0].type.tensor_type.shape.dim] == [2, 5, 16]
        assert path.read_bytes() == before

    def test_without_them_sizes_stay_open(self, folder):
        with ex.open(self.write(folder)) as ws:
            assert dict(ws.blocks[0].sizes)["S"] == "rows"

    @pytest.mark.parametrize("shapes", [{"nobody": (1,)}, {"q": (2, 5)}, {"q": (2, 5, 17)}])
    def test_shapes_that_do_not_fit(self, folder, shapes):
        assert "expected" in refusal(ModelError, ex.open, self.write(folder), shapes)


class TestScope:
    def test_the_node_that_owns_the_body(self, workspace):
        ws = workspace(in_a_branch())
        (block,) = ws.blocks
        assert ws.scope(block.id) == "Branch"

    def test_nothing_in_the_main_graph(self, workspace):
        assert workspace().scope("attn0") is None
