"""Profiles of a workspace: of several shapes, by block, saved, loaded and compared; and tunings."""

from __future__ import annotations

import json
import shutil

import pytest
import sample_tunings
from attention_graphs import Meaning, Spelling, render
from sample_profiles import sweep
from workspace_graphs import SHAPES, blocked, chain, refusal

from explorer.attention import recognise
from explorer.errors import BlockError, ExportError, InputError, WorkerTimeout
from explorer.fusion import Plan, Settings
from explorer.model import load
from explorer.profile import Profile
from explorer.tune import Tuning, store
from explorer.workspace import Workspace, plan_digest, points, regions

no_gpu = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="CUDA may work here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tunings are kept here, not with the user's."""
    monkeypatch.setenv("ONNX_EXPLORER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class TestProfile:
    def test_several_shapes_are_as_many_points(self, workspace):
        ws = workspace()
        profile = ws.profile(shapes=[{"q": (2, size, 16)} for size in (4, 8)], runs=1, trace=False)
        assert [dict(point.shapes)["q"] for point in profile.points] == [(2, 4, 16), (2, 8, 16)]
        assert ws.last_profile is profile

    def test_blocks_are_told_before_and_after(self, workspace):
        ws = workspace(chain(2))
        ws.fuse("attn0")
        profile = ws.profile(runs=1)
        first, second = (
            {
                region.block: {part.op_type for part in region.parts}
                for region in profile.points[0].of(name).trace.regions
            }
            for name in ("original", "fused")
        )
        one, other = (block.id for block in ws.blocks)
        assert first.keys() == second.keys() == {one, other}
        assert "MultiHeadAttention" in second[one]
        assert "softmax" in second[other], "left alone, so by its parts"
        assert dict(profile.labels) == {ws.blocks[0].id: "attn0", ws.blocks[1].id: "attn1"}
        assert (profile.variant("fused").plan, profile.source) == (ws.plan.digest, ws.model.digest)

    @no_gpu
    def test_cuda_graphs_where_there_is_no_cuda(self, workspace):
        profile = workspace().profile(shapes=SHAPES, runs=1, cuda_graph=True, trace=False)
        assert [variant.name for variant in profile.variants] == ["original"]
        assert "CUDA graphs were asked for, but there are none on the CPU." in profile.notes

    def test_a_time_limit(self, workspace):
        ws = workspace()
        refusal(WorkerTimeout, ws.profile, shapes=SHAPES, runs=1_000_000, timeout_s=0.2)
        assert ws.last_profile is None


class TestPoints:
    def test_open_sizes_are_chosen_and_given_ones_kept(self, workspace, worker):
        model = workspace().model
        chosen, given = points(worker, model, [{}, {"q": (1, 7, 16)}])
        assert chosen["q"].shape == (2, 256, 16)
        assert {array.shape for array in given.values()} == {(1, 7, 16)}

    def test_a_model_that_does_not_run_at_a_given_size_is_not_tried(self, workspace, worker):
        """What it says there is for the profile to tell."""
        model = workspace(render(Meaning(), Spelling(dynamic=False))).model
        (only,) = points(worker, model, [{}])
        assert only["q"].shape == (2, 5, 16)
        with pytest.raises(InputError, match="'q'"):
            points(worker, model, [{"q": (2, 6, 16)}])


class TestRegions:
    def test_of_a_file_that_was_fused_elsewhere(self, workspace, folder):
        """Its nodes say which block of the source they stand for, so that it can be told beside that."""
        ws = workspace(chain(2))
        ws.fuse("attn1")
        fused = load(ws.export(folder / "fused.onnx"))
        assert plan_digest(fused) == ws.plan.digest
        assert plan_digest(ws.model) == ""
        found = {region.block: region for region in regions(fused, recognise(fused))}
        assert ws.blocks[1].id in found
        assert len(found) == 2, "no block twice"
        assert {role for _, role in found[ws.blocks[1].id].nodes} == {""}

    def test_every_node_of_a_block_is_in_its_region(self, workspace):
        ws = workspace()
        (region,) = regions(ws.model, ws.blocks)
        assert tuple(name for name, _ in region.nodes) == ws.blocks[0].nodes
        assert {"qk", "softmax", "pv"} <= {role for _, role in region.nodes}
        assert region.outputs


class TestSavedProfiles:
    def test_saved_loaded_and_compared(self, workspace, folder):
        ws = workspace()
        assert "profile it first" in refusal(ExportError, ws.export_profile, folder / "p.json")
        assert "profile it first" in refusal(ExportError, ws.compare, sweep())
        ws.fuse_all()
        profile = ws.profile(shapes=SHAPES, runs=2)
        path = ws.export_profile(folder / "p.json")
        assert Profile.load(path).to_json() == profile.to_json()
        assert "exists" in refusal(ExportError, ws.export_profile, path)
        assert "kept" in refusal(ExportError, ws.export_profile, ws.source, overwrite=True)
        again = workspace()
        assert "current plan" in refusal(InputError, again.load_profile, path)
        again.fuse_all()
        assert again.last_profile is None
        assert again.load_profile(path) is again.last_profile
        assert [change.ratio.value for change in again.compare(path).changes] == [1.0, 1.0]
        assert again.compare(Profile.load(path)).conditions == ()

    def test_of_another_model_or_plan(self, workspace, folder):
        ws = workspace(chain(2))
        ws.fuse("attn0")
        ws.profile(runs=1, trace=False)
        path = ws.export_profile(folder / "p.json")
        ws.fuse("attn1")
        assert "current plan" in refusal(InputError, ws.load_profile, path)
        assert ws.last_profile is None
        other = workspace(name="other.onnx")
        assert "another" in refusal(InputError, other.load_profile, path)
        assert "profile" in refusal(InputError, other.load_profile, folder / "absent.json")


def tuned(ws, target="attention/bnsh", **changes) -> Tuning:
    """A tuning of this workspace's model in which its first block is the fastest as `target`."""
    block = ws.blocks[0]
    plan = Plan(ws.model.digest)
    plan = plan.with_fusion(block, target) if target else plan
    return sample_tunings.tuning(ws.model.digest, block.id, plan=plan, **changes)


class TestTuning:
    def test_measured_kept_and_used_by_auto(self, workspace, worker, cache):
        path = workspace().source
        ws = Workspace(load(path), Settings("cpu"), worker)
        assert ws.tuning is None
        rules = ws.choice("attn0").words
        tuning = ws.tune(shapes=SHAPES, runs=1, provider="cpu")
        assert ws.tuning is tuning
        assert "measured on" in (ws.choice("attn0").words or str(ws.choice("attn0").obstacles[0]))
        assert ws.choice("attn0").words != rules
        again = Workspace(load(path), Settings("cpu"), worker)
        assert again.tuning.to_json() == tuning.to_json(), "found in the cache"
        assert Workspace(load(path), worker=worker).tuning is None, "for CUDA nothing was measured"

    def test_auto_takes_what_won_and_says_so(self, workspace):
        ws = workspace()
        assert ws.choice("attn0").target == "mha"
        ws.use_tuning(tuned(ws))
        assert ws.choice("attn0").target == "attention/bnsh"
        report = ws.fuse_all()
        assert ws.plan.target(ws.blocks[0].id) == "attention/bnsh"
        assert report.notes[0].startswith("attn0: measured on NVIDIA H200 at x 2×938×100: ")
        assert ws.choice("attn0", "mha").target == "mha"

    def test_a_block_that_is_faster_as_it_is_is_left_and_stays_fusable(self, workspace):
        ws = workspace()
        ws.use_tuning(tuned(ws, target=""))
        assert (ws.status("attn0"), ws.obstacles("attn0")) == ("fusable", ())
        report = ws.fuse_all()
        assert report.fused == ()
        assert "faster" in str(report.skipped[0][1])
        assert "faster" in refusal(BlockError, ws.fuse, "attn0")
        ws.fuse("attn0", target="mha")
        assert ws.status("attn0") == "fused"

    def test_one_from_a_file(self, workspace, folder):
        ws = workspace()
        path = folder / "t.json"
        path.write_text(json.dumps(tuned(ws).to_json()))
        assert ws.use_tuning(path) is ws.tuning
        assert ws.tuning.plan == tuned(ws).plan
        assert "another" in refusal(InputError, workspace(chain(2), "other.onnx").use_tuning, path)

    def test_one_for_the_cpu_says_nothing_of_cuda(self, workspace):
        ws = workspace()
        ws.use_tuning(tuned(ws, provider="cpu", environment=(("cpu", "Some CPU"),)))
        assert ws.tuning is None
        assert ws.choice("attn0").target == "mha"

    def test_a_damaged_one_is_told_and_left(self, workspace, worker, cache):
        ws = Workspace(load(workspace().source), Settings("cpu"), worker)
        ws.tune(shapes=SHAPES, runs=1, provider="cpu")
        (kept,) = store.folder().glob("*.json")
        kept.write_text("{")
        again = Workspace(load(ws.source), Settings("cpu"), worker)
        assert again.tuning is None
        assert any("ignored" in note for note in again.fuse_all().notes)

    def test_nothing_to_tune(self, workspace):
        assert "can be fused" in refusal(BlockError, workspace(blocked()).tune, runs=1)
