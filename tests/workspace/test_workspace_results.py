"""What a workspace gives out: files, verdicts, profiles; and what is left when the work is stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from workspace_graphs import SHAPES, chain, refusal

from explorer.errors import (
    BlockError,
    Cancelled,
    ExplorerError,
    ExportError,
    InputError,
    WorkerDied,
)
from explorer.model.save import serialize
from explorer.workspace import PROFILE_LENGTH


class TestExport:
    def test_what_is_written_is_the_current_model(self, workspace, folder):
        ws = workspace()
        ws.fuse_all()
        path = ws.export(folder / "fused.onnx")
        assert path == folder / "fused.onnx"
        assert path.read_bytes() == serialize(ws.current.ir)
        ws.undo()
        assert ws.export(str(folder / "source.onnx")).read_bytes() == serialize(ws.model.ir)

    def test_never_over_a_file_unasked(self, workspace, folder):
        ws = workspace()
        (folder / "mine").write_text("mine")
        for call in (ws.export, ws.export_plan):
            assert "exists" in refusal(ExportError, call, folder / "mine")
            assert (folder / "mine").read_text() == "mine"
            call(folder / "mine", overwrite=True)
            assert (folder / "mine").read_text(errors="replace") != "mine"
            (folder / "mine").write_text("mine")

    @pytest.mark.parametrize("call", ["export", "export_plan"])
    @pytest.mark.parametrize("how", ["itself", "relative", "a link to it"])
    def test_never_over_the_source(self, workspace, folder, monkeypatch, call, how):
        ws = workspace()
        before = ws.source.read_bytes()
        monkeypatch.chdir(folder)
        (folder / "link.onnx").symlink_to(ws.source)
        target = {"itself": ws.source, "relative": "./model.onnx", "a link to it": "link.onnx"}[how]
        text = refusal(ExportError, getattr(ws, call), target, overwrite=True)
        assert "source" in text
        assert "never" in text
        assert ws.source.read_bytes() == before

    @pytest.mark.parametrize("call", ["export", "export_plan"])
    def test_nowhere(self, workspace, folder, call):
        ws = workspace()
        assert "absent" in refusal(ExportError, getattr(ws, call), folder / "absent" / "m.onnx")
        assert "add a name" in refusal(ExportError, getattr(ws, call), folder)
        assert ws.verify(shapes=SHAPES).passed, "and everything still works"

    def test_the_plan_is_json(self, workspace, folder):
        ws = workspace()
        ws.fuse_all()
        document = json.loads(ws.export_plan(folder / "plan.json").read_text())
        assert (document["schema"], document["source_digest"]) == (2, ws.model.digest)
        assert document["settings"] == {"provider": "cuda"}
        (fusion,) = document["fusions"]
        assert (fusion["block"], fusion["target"], fusion["label"]) == (ws.blocks[0].id, "mha", "attn0")

    def test_the_verdict_whole_and_of_one_block(self, workspace, folder):
        ws = workspace(chain(2))
        refusal(ExportError, ws.export_verdict, folder / "early.json")
        ws.fuse("attn0")
        ws.verify()
        assert json.loads(ws.export_verdict(folder / "all.json").read_text())["passed"] is True
        document = json.loads(ws.export_verdict(folder / "one.json", block="attn0").read_text())
        assert document["block"] == ws.blocks[0].id
        assert document["cases"]
        assert "attn1" in refusal(BlockError, ws.export_verdict, folder / "other.json", block="attn1")


class TestVerdictsAndProfiles:
    def test_are_kept_by_plan_and_never_shown_for_another(self, workspace):
        ws = workspace(chain())
        assert ws.verdict is None
        assert ws.last_profile is None
        ws.fuse("attn0")
        one, one_profile = ws.verify(), ws.profile(runs=1)
        assert ws.verdict is one
        assert ws.last_profile is one_profile
        assert [block.block for block in one.blocks] == [ws.blocks[0].id]
        ws.fuse("attn1")
        assert ws.verdict is None
        assert ws.last_profile is None
        two = ws.verify()
        assert len(two.blocks) == 2
        ws.undo()
        assert ws.verdict is one
        assert ws.last_profile is one_profile
        ws.undo()
        assert ws.verdict is None
        ws.redo()
        ws.redo()
        assert ws.verdict is two
        assert ws.last_profile is None
        ws.unfuse("attn1")  # the plan of before, reached in another way
        assert ws.verdict is one

    def test_the_unfused_model_is_compared_with_itself(self, workspace):
        ws = workspace()
        verdict = ws.verify(shapes=SHAPES)
        assert verdict.passed
        assert verdict.blocks == ()
        profile = ws.profile(shapes=SHAPES, runs=1)
        assert [variant.name for variant in profile.variants] == ["original"]
        assert profile.points[0].of("original").ratio is None

    def test_profile_of_both(self, workspace):
        ws = workspace()
        ws.fuse_all()
        seen = []
        profile = ws.profile(runs=2, on_progress=lambda fraction, text: seen.append(fraction))
        assert [variant.name for variant in profile.variants] == ["original", "fused"]
        assert profile.runs == 2
        (point,) = profile.points
        assert dict(point.shapes)["q"] == (2, PROFILE_LENGTH, 16)
        assert point.of("fused").ratio is not None
        assert dict(profile.variants[1].ops)["MultiHeadAttention"] == 1
        assert seen == sorted(seen)
        assert seen

    def test_own_inputs(self, workspace, folder):
        ws = workspace()
        ws.fuse_all()
        rng = np.random.default_rng(0)
        np.savez(folder / "x.npz", **{n: rng.standard_normal((1, 3, 16)).astype(np.float32) for n in "qkv"})
        verdict = ws.verify(inputs=folder / "x.npz")
        assert verdict.passed
        assert verdict.seed is None
        assert dict(verdict.shapes)["q"] == (1, 3, 16)

    def test_shapes_that_do_not_fit(self, workspace):
        ws = workspace()
        for call in (ws.verify, ws.profile):
            assert "'q'" in refusal(InputError, call, shapes={"q": (2, 8, 17)})
            assert "'nope'" in refusal(InputError, call, shapes={"nope": (2,)})
        assert ws.verdict is None

    def test_a_provider_that_does_not_exist(self, workspace):
        ws = workspace()
        assert "tpu" in refusal(InputError, ws.verify, shapes=SHAPES, provider="tpu")
        assert "tpu" in refusal(InputError, ws.profile, shapes=SHAPES, provider="tpu")

    def test_an_operator_that_onnx_runtime_does_not_know(self, workspace):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Magic", ["x"], ["y"], domain="o")], "g", values[:1], values[1:])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("o", 1)]
        ws = workspace(helper.make_model(graph, opset_imports=opsets, ir_version=8))
        for call in (ws.verify, lambda: ws.profile(runs=1)):
            assert "Magic" in refusal(ExplorerError, call)
        assert ws.notes


class TestWhenTheWorkIsStopped:
    def test_cancelled_before_it_starts(self, workspace):
        ws = workspace()
        ws.fuse_all()
        cancel = threading.Event()
        cancel.set()
        for call in (ws.verify, ws.profile):
            assert "cancelled" in refusal(Cancelled, call, shapes=SHAPES, cancel=cancel)
        assert ws.verdict is None
        assert ws.last_profile is None
        assert ws.verify(shapes=SHAPES).passed

    def test_cancelled_in_the_middle(self, workspace):
        ws = workspace()
        ws.fuse_all()
        cancel = threading.Event()

        def second_thoughts(fraction: float, text: str) -> None:
            if "float64" in text:
                cancel.set()

        refusal(Cancelled, ws.verify, shapes=SHAPES, cancel=cancel, on_progress=second_thoughts)
        assert ws.verdict is None
        assert ws.history == ("Opened", "Fused attn0")
        assert ws.verify(shapes=SHAPES).passed

    def test_the_worker_is_killed_in_the_middle(self, workspace):
        ws = workspace()
        ws.fuse_all()
        killed = []

        def kill(fraction: float, text: str) -> None:
            if not killed:
                killed.append(ws._worker.pid)
                os.kill(ws._worker.pid, signal.SIGKILL)

        text = refusal(WorkerDied, ws.profile, shapes=SHAPES, runs=100_000, on_progress=kill)
        assert "SIGKILL" in text
        assert ws.last_profile is None
        profile = ws.profile(shapes=SHAPES, runs=1)
        assert ws.last_profile is profile
        assert ws._worker.pid not in killed

    def test_no_temporary_files_are_left(self, workspace, tmp_path, monkeypatch):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        ws = workspace()
        ws.fuse_all()
        ws.verify(shapes=SHAPES)
        ws.profile(shapes=SHAPES, runs=1)
        cancel = threading.Event()
        cancel.set()
        refusal(Cancelled, ws.verify, shapes=SHAPES, cancel=cancel)
        assert [path.name for path in scratch.iterdir() if ws._worker._process.folder.name != str(path)] == []


def test_the_source_may_change_on_disk_meanwhile(workspace):
    """What was opened is what is fused and verified; a plan made for it does not fit the new file."""
    ws = workspace()
    ws.fuse_all()
    Path(ws.source).write_bytes(b"gone")
    assert ws.verify(shapes=SHAPES).passed
