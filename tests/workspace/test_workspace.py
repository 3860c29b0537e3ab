"""The headless API: steps, history, results kept by plan, and errors after which everything still works."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from onnx import TensorProto, helper
from workspace_graphs import SHAPES, blocked, blocked_static, chain, linked, refusal

import explorer as ex
from explorer.errors import (
    BlockError,
    ModelError,
    PlanError,
)
from explorer.fusion import Fusion, Plan
from explorer.model.save import serialize
from explorer.workspace import open_workspace


class TestTheReadmesSnippet:
    SNIPPET = """
import explorer as ex
ws = ex.open("sample_models/f5_dit_fp16.onnx")   # Workspace
ws.blocks                                        # tuple of Block
ws.fuse_all(); ws.undo(); ws.redo(); ws.fuse(ws.blocks[0].id)
ws.verify()                                      # Verdict
ws.profile(shapes={"x": (2, 938, 100)})          # Profile of original and fused
ws.export("fused.onnx")
"""

    def test_runs_without_widgets_and_without_sessions_in_this_process(self, samples, tmp_path):
        (tmp_path / "sample_models").mkdir()
        (tmp_path / "sample_models" / "f5_dit_fp16.onnx").symlink_to(samples / "f5_dit_fp16.onnx")
        check = """
import json, sys
names = ("plotly", "ipywidgets", "anywidget", "IPython", "traitlets", "networkx", "jupyterlab", "onnxruntime")
print(json.dumps({
    "imported": [name for name in names if name in sys.modules],
    "blocks": len(ws.blocks), "fused": len(ws.plan.fusions), "passed": ws.verdict.passed,
    "variants": [variant.name for variant in ws.last_profile.variants],
    "x": dict(ws.last_profile.points[0].shapes)["x"], "history": ws.history,
}))
ws.close()
"""
        script = self.SNIPPET.replace(
            '.profile(shapes={"x": (2, 938, 100)})', '.profile(shapes={"x": (2, 938, 100)}, runs=2)'
        )
        assert "938" in script
        env = {**os.environ, "PYTHONPATH": str(samples.parent)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script + check],
            cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        report = json.loads(done.stdout)
        assert report["imported"] == []
        assert (report["blocks"], report["fused"], report["passed"]) == (2, 2, True)
        assert report["variants"] == ["original", "fused"]
        assert report["x"] == [2, 938, 100]
        fused = onnx.load(tmp_path / "fused.onnx")
        assert [node.op_type for node in fused.graph.node].count("MultiHeadAttention") == 2

    def test_the_names_of_the_package(self):
        assert ex.open is open_workspace
        assert ex.Workspace.__name__ == "Workspace"
        assert issubclass(ex.ExplorerError, Exception)
        with pytest.raises(AttributeError, match="nonsense"):
            ex.nonsense  # noqa: B018


class TestOpening:
    @pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "missing"])
    def test_what_is_no_model(self, tmp_path, content):
        path = tmp_path / "bad.onnx"
        if content is not None:
            path.write_bytes(content)
        assert "expected" in refusal(ModelError, ex.open, path)

    def test_no_attention_is_no_error(self, workspace):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
        ws = workspace(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        assert ws.blocks == ()
        assert ws.fuse_all().fused == ()
        assert ws.history == ("Opened",)
        assert "none at all" in refusal(BlockError, ws.block, "attn0")
        assert ws.verify().passed

    def test_closing_twice_and_using_it_afterwards(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(render(Meaning()).SerializeToString())
        with ex.open(path) as ws:
            ws.fuse_all()
        ws.close()
        assert ws.ops_after["MultiHeadAttention"] == 1

    def test_a_forgotten_workspace_takes_its_worker_along(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(render(Meaning()).SerializeToString())
        ws = ex.open(path)
        ws.verify(shapes=SHAPES)
        pid = ws._worker.pid
        assert pid is not None
        del ws
        gc.collect()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class TestWhatThereIs:
    def test_status_choices_and_obstacles(self, workspace):
        ws = workspace()
        (block,) = ws.blocks
        assert ws.status(block.id) == ws.status("attn0") == "fusable"
        assert ws.obstacles("attn0") == ()
        choices = ws.choices("attn0")
        assert (choices["mha"].target, choices["mha"].obstacles) == ("mha", ())
        assert "MultiHeadAttention" in choices["mha"].words
        assert choices["gqa"].obstacles[0].code == "heads"
        assert ws.choice("attn0").target == "mha"
        assert "Rather than" in ws.choice("attn0").words
        ws.fuse("attn0")
        assert ws.status("attn0") == "fused"
        assert ws.obstacles("attn0") == ()

    def test_blocked(self, workspace):
        ws = workspace(blocked())
        assert ws.status("attn0") == "blocked"
        (obstacle, *_) = ws.obstacles("attn0")
        assert obstacle.code == "interior-output"
        for choice in ws.choices("attn0").values():
            assert choice.obstacles
            assert choice.words == ""

    def test_fused_in_the_file_already(self, workspace, folder):
        first = workspace()
        first.fuse_all()
        second = ex.open(first.export(folder / "fused.onnx"))
        assert second.status("attn0") == "fused"
        assert second.obstacles("attn0") == ()
        assert second.choices("attn0") == {}
        assert second.blocks[0].fused_as == "com.microsoft.MultiHeadAttention"
        assert second.fuse_all().fused == ()
        assert second.history == ("Opened",)
        assert "MultiHeadAttention" in refusal(BlockError, second.fuse, "attn0")

    def test_counts(self, workspace):
        ws = workspace(chain())
        assert ws.ops_before["Softmax"] == ws.ops_after["Softmax"] == 3
        ws.fuse("attn1")
        assert ws.ops_before["Softmax"] == 3
        assert (ws.ops_after["Softmax"], ws.ops_after["MultiHeadAttention"]) == (2, 1)

    def test_nodes_of_a_block_before_and_after(self, workspace):
        ws = workspace(chain())
        block = ws.blocks[1]
        assert ws.nodes_of("attn1") == block.nodes
        ws.fuse("attn1")
        after = ws.nodes_of("attn1")
        assert any(ws.current.node(key).op_type == "MultiHeadAttention" for key in after)
        assert not set(after) & set(block.nodes)
        assert ws.nodes_of("attn0") == ws.blocks[0].nodes
        ws.undo()
        assert ws.nodes_of("attn1") == block.nodes

    def test_the_source(self, workspace, folder):
        ws = workspace()
        assert ws.source == folder / "model.onnx"
        assert ws.notes == ()


class TestSteps:
    def test_fuse_one(self, workspace):
        ws = workspace(chain())
        report = ws.fuse("attn1")
        assert report.fused == (ws.blocks[1].id,)
        assert report.skipped == ()
        assert ws.plan.blocks == (ws.blocks[1].id,)
        assert [ws.status(block.id) for block in ws.blocks] == ["fusable", "fused", "fusable"]

    def test_fuse_several_is_one_step(self, workspace):
        ws = workspace(chain())
        ws.fuse("attn0", ws.blocks[2].id)
        assert ws.history == ("Opened", "Fused attn0, attn2")
        ws.undo()
        assert ws.plan.fusions == ()

    def test_fuse_all_names_what_it_leaves(self, workspace):
        ws = workspace(onnx.compose.merge_models(
            onnx.compose.add_prefix(render(Meaning(), Spelling(dynamic=False)), "a_"),
            onnx.compose.add_prefix(blocked_static(), "b_"),
            io_map=[("a_y", "b_q")],
        ))  # fmt: skip
        report = ws.fuse_all()
        assert report.fused == (ws.blocks[0].id,)
        ((left, obstacle),) = report.skipped
        assert left == ws.blocks[1].id
        assert obstacle.code == "interior-output"
        assert ws.ops_after["Softmax"] == 1

    def test_the_order_of_fusing_does_not_matter(self, workspace):
        results = []
        for order in (("attn0", "attn1", "attn2"), ("attn2", "attn0", "attn1"), ("attn1", "attn2", "attn0")):
            ws = workspace(chain())
            for name in order:
                ws.fuse(name)
            results.append((ws.plan, serialize(ws.current.ir)))
        ws = workspace(chain())
        ws.fuse_all()
        results.append((ws.plan, serialize(ws.current.ir)))
        assert all(result == results[0] for result in results)

    def test_unfuse_is_as_if_it_had_never_been(self, workspace):
        ws = workspace(chain())
        ws.fuse("attn0")
        alone = serialize(ws.current.ir)
        ws.fuse("attn1")
        assert serialize(ws.current.ir) != alone
        ws.unfuse("attn1")
        assert serialize(ws.current.ir) == alone
        assert ws.history[-1] == "Unfused attn1"
        ws.unfuse("attn1")
        assert len(ws.history) == 4, "nothing was left to unfuse"

    def test_undo_restores_the_source_bit_by_bit(self, workspace, samples):
        ws = open_workspace(samples / "f5_dit_fp16.onnx")
        before = serialize(ws.current.ir)
        ws.fuse_all()
        assert serialize(ws.current.ir) != before
        ws.undo()
        assert serialize(ws.current.ir) == before
        assert serialize(ws.model.ir) == before
        assert ws.current.digest == ws.model.digest

    def test_undo_redo_and_history(self, workspace):
        ws = workspace(chain())
        assert (ws.can_undo, ws.can_redo) == (False, False)
        ws.fuse("attn0")
        ws.fuse("attn1")
        assert ws.history == ("Opened", "Fused attn0", "Fused attn1")
        assert (ws.cursor, ws.can_undo, ws.can_redo) == (2, True, False)
        both = serialize(ws.current.ir)
        ws.undo()
        assert (ws.cursor, ws.can_undo, ws.can_redo) == (1, True, True)
        assert ws.plan.blocks == (ws.blocks[0].id,)
        ws.undo()
        ws.undo()
        assert (ws.cursor, ws.can_undo) == (0, False)
        for _ in range(5):
            ws.redo()
        assert ws.cursor == 2
        assert serialize(ws.current.ir) == both

    def test_a_step_after_undo_drops_what_was_undone(self, workspace):
        ws = workspace(chain())
        ws.fuse("attn0")
        ws.fuse("attn1")
        ws.undo()
        ws.fuse("attn2")
        assert ws.history == ("Opened", "Fused attn0", "Fused attn2")
        assert not ws.can_redo
        assert set(ws.plan.blocks) == {ws.blocks[0].id, ws.blocks[2].id}

    def test_nothing_new_is_no_step(self, workspace):
        ws = workspace(chain())
        ws.fuse("attn0")
        ws.undo()
        ws.unfuse("attn0")
        ws.fuse()
        assert ws.history == ("Opened", "Fused attn0")
        assert ws.can_redo, "what was undone is still there"
        ws.redo()
        ws.fuse("attn0")
        ws.fuse_all()
        ws.fuse_all()
        assert len(ws.history) == 3

    def test_a_long_list_is_cut_in_words(self, workspace):
        ws = workspace(chain(5))
        ws.fuse_all()
        assert ws.history[-1] == "Fused 5 blocks (attn0…attn4)"


class TestBlocksThatTouch:
    """The output of one block is an input of the next with nothing in between: neither may reach into the other."""

    @pytest.mark.parametrize("link", ["q", "k", "v"])
    def test_no_node_belongs_to_both(self, workspace, link):
        ws = workspace(linked(onnx.compose.add_prefix(render(Meaning(), Spelling(dynamic=False)), "b0_"), link))
        first, second = ws.blocks
        assert not set(first.nodes) & set(second.nodes)

    @pytest.mark.parametrize("link", ["q", "k", "v"])
    @pytest.mark.parametrize("order", [("attn0", "attn1"), ("attn1", "attn0")], ids=" ".join)
    def test_both_are_fused_in_any_order(self, workspace, folder, link, order):
        ws = workspace(linked(onnx.compose.add_prefix(render(Meaning(), Spelling(dynamic=False)), "b0_"), link))
        for name in order:
            ws.fuse(name)
        counts = ws.ops_after
        assert counts["MultiHeadAttention"] == 2
        assert "Softmax" not in counts
        verdict = ws.verify()
        assert verdict.passed
        assert len(verdict.blocks) == 2

    @pytest.mark.parametrize("link", ["q", "k", "v"])
    @pytest.mark.parametrize("name", ["attn0", "attn1"])
    def test_one_is_fused_and_the_other_left_whole(self, workspace, link, name):
        ws = workspace(linked(onnx.compose.add_prefix(render(Meaning(), Spelling(dynamic=False)), "b0_"), link))
        ws.fuse(name)
        (other,) = (block for block in ws.blocks if block.label != name)
        assert all(ws.current.has_node(key) for key in other.nodes)
        assert ws.verify().passed


class TestRefusals:
    def test_a_blocked_block(self, workspace):
        ws = workspace(blocked())
        text = refusal(BlockError, ws.fuse, "attn0")
        obstacle = ws.obstacles("attn0")[0]
        assert "attn0" in text
        assert obstacle.expected in text
        assert obstacle.found in text
        assert ws.history == ("Opened",)

    def test_one_blocked_among_good_ones_does_nothing(self, workspace):
        ws = workspace(onnx.compose.merge_models(
            onnx.compose.add_prefix(render(Meaning(), Spelling(dynamic=False)), "a_"),
            onnx.compose.add_prefix(blocked_static(), "b_"),
            io_map=[("a_y", "b_q")],
        ))  # fmt: skip
        refusal(BlockError, ws.fuse, "attn0", "attn1")
        assert ws.plan.fusions == ()
        assert ws.history == ("Opened",)

    def test_unknown_block(self, workspace):
        ws = workspace()
        for call in (ws.fuse, ws.unfuse, ws.status, ws.obstacles, ws.choices, ws.nodes_of, ws.block):
            text = refusal(BlockError, call, "attn7")
            assert "'attn7'" in text
            assert f"attn0 ({ws.blocks[0].id})" in text

    def test_unknown_target(self, workspace):
        ws = workspace()
        for call in (lambda: ws.fuse("attn0", target="flash"), lambda: ws.fuse_all(target="flash")):
            text = refusal(BlockError, call)
            assert "'flash'" in text
            assert "mha" in text
            assert "choose" in text
        assert ws.history == ("Opened",)

    def test_a_plan_for_another_model(self, workspace):
        ws = workspace()
        theirs = workspace(chain(2), "theirs.onnx")
        theirs.fuse("attn1")
        text = refusal(PlanError, ws.apply_plan, theirs.plan)
        assert "attn1" in text
        assert "plan again" in text
        assert ws.history == ("Opened",)

    def test_a_plan_for_two_layers_on_a_model_of_four(self, workspace):
        small, large = workspace(chain(2)), workspace(chain(4), "large.onnx")
        small.fuse_all()
        assert len(large.apply_plan(small.plan, by_family=True).fused) == 4
        assert large.plan.source_digest == large.model.digest
        assert large.history == ("Opened", "Applied a plan of 4 fusions")

    def test_a_plan_with_an_unknown_block_or_target(self, workspace):
        ws = workspace()
        unknown = replace(ws.plan, fusions=(Fusion("attn-none", "mha"),))
        assert "'attn-none'" in refusal(PlanError, ws.apply_plan, unknown)
        assert "'flash'" in refusal(BlockError, ws.apply_plan, ws.plan.with_fusion(ws.blocks[0], "flash"))
        assert ws.history == ("Opened",)

    def test_a_plan_replayed_gives_the_same_bytes(self, workspace, folder):
        first = workspace(chain())
        first.fuse("attn2", "attn0")
        path = first.export_plan(folder / "plan.json")
        second = workspace(chain())
        second.apply_plan(Plan.load(path))
        assert serialize(second.current.ir) == serialize(first.current.ir)
        assert second.history == ("Opened", "Applied a plan of 2 fusions")
        second.undo()
        assert second.plan.fusions == ()
