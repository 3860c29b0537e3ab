"""`onnx-explorer profile` and `tune`: what they measure, write, load and refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import sample_profiles as sample
from attention_graphs import Meaning, Spelling, render
from cli_models import document, no_attention
from sample_tunings import tuning

from explorer.model import load
from explorer.profile import Profile
from explorer.verify import input_shapes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tunings are kept here, not with the user's."""
    monkeypatch.setenv("ONNX_EXPLORER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path):
    """A profile in a file."""
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(sample.profile().to_json()))
    return path


def fused(run, path, out):
    run("fuse", path, "-o", out, "--no-verify")
    return out


class TestProfile:
    def test_one_model(self, run, write):
        outcome = run("profile", write(), "--runs", "2", "--provider", "cpu", "--json")
        assert (outcome.status, outcome.err) == (0, "")
        found = Profile.from_json(document(outcome, schema=2))
        assert (found.provider, found.runs) == ("cpu", 2)
        assert [variant.name for variant in found.variants] == ["model"]
        assert found.points[0].of("model").ratio is None

    def test_a_model_and_its_fused_form(self, run, write, tmp_path):
        path = write()
        out = fused(run, path, tmp_path / "fused.onnx")
        found = Profile.from_json(document(run("profile", path, out, "--runs", "2", "--json"), schema=2))
        before, after = found.variants
        assert (before.name, after.name, before.plan) == ("model", "fused", "")
        assert len(after.plan) == 12
        first, second = found.points[0].measurements
        (whole,) = first.trace.regions
        (operator,) = second.trace.regions
        assert whole.block == operator.block, "the same block before and after"
        assert {"softmax", "pv"} <= {part.op_type for part in whole.parts}
        assert "MultiHeadAttention" in {part.op_type for part in operator.parts}
        assert dict(found.labels)[whole.block] == "attn0"
        outcome = run("profile", path, out, "--runs", "2", "--provider", "cpu")
        assert outcome.status == 0
        for words in ("On CPU", "median", "times as fast", "Casts: file → run", "attn0"):
            assert words in outcome.out

    def test_any_number_of_models_also_of_one_name(self, run, write, tmp_path):
        path = write()
        for folder in "bc":
            (tmp_path / folder).mkdir()
        others = [shutil.copy(path, tmp_path / folder / "model.onnx") for folder in "bc"]
        outcome = run("profile", path, *others, "--runs", "1", "--no-trace", "--json")
        found = Profile.from_json(document(outcome, schema=2))
        assert [variant.name for variant in found.variants] == ["model", "model (2)", "model (3)"]
        assert all(item.trace is None for item in found.points[0].measurements)

    def test_a_shape_that_others_follow(self, run, write):
        path = write(render(Meaning(), Spelling()))
        outcome = run("profile", path, "--runs", "1", "--shape", "q=1x7x16", "--no-trace", "--json")
        (point,) = Profile.from_json(document(outcome, schema=2)).points
        assert dict(point.shapes) == {"q": (1, 7, 16), "k": (1, 7, 16), "v": (1, 7, 16)}

    def test_several_shapes_and_ranges(self, run, write):
        path = write(render(Meaning(), Spelling()))
        shapes = ["--shape", "q=1x4..8x16", "--shape", "q=1x20x16"]
        outcome = run("profile", path, "--runs", "1", *shapes, "--no-trace")
        assert outcome.status == 0
        assert "┤" in outcome.out
        rows = [line.split()[0] for line in outcome.out.splitlines() if line.startswith(("4 ", "8 ", "20 "))]
        assert rows == ["4", "8", "20"]

    def test_attention_kernels_by_name(self, run, write):
        options = ["--sdpa-kernel", "flash", "--sdpa-kernel", "math", "--runs", "1", "--no-trace", "--json"]
        found = Profile.from_json(document(run("profile", write(), *options), schema=2))
        assert [variant.name for variant in found.variants] == ["model, flash", "model, math"]

    def test_cuda_graphs_where_there_are_none(self, run, write):
        outcome = run("profile", write(), "--cuda-graph", "--provider", "cpu", "--runs", "1", "--no-trace")
        assert outcome.status == 0
        assert "CUDA graphs were asked for, but there are none on the CPU." in outcome.out
        assert "CUDA graph " not in outcome.out

    @pytest.mark.parametrize("shape", ["q=1x7x17", "q=1x7", "q=0x7x16", "q=-1x7x16", "nope=3", "q=", "q=1x9..3x16"])
    def test_a_shape_that_does_not_fit(self, run, write, shape):
        outcome = run("profile", write(render(Meaning(), Spelling())), "--shape", shape)
        assert outcome.status in (1, 2)
        assert outcome.out == ""
        assert "expected" in outcome.err
        assert "Traceback" not in outcome.err

    @pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="CUDA may work here")
    def test_cuda_where_there_is_none(self, run, write):
        for command in (["profile", write()], ["verify", write(), write()]):
            sentence = run(*command, "--provider", "cuda").sentence
            assert "cuda" in sentence.lower()
            assert "cpu" in sentence.lower()

    def test_models_that_take_different_inputs(self, run, write):
        other = write(no_attention(), "other.onnx")
        outcome = run("profile", write(), other, "--runs", "1", "--no-trace")
        assert outcome.status == 0
        assert "other did not run" in outcome.out

    def test_a_time_limit(self, run, write):
        assert "time limit" in run("profile", write(), "--runs", "1000000", "--time-limit", "0.05").sentence
        for wrong in ("0", "-1", "x", "inf"):
            assert run("profile", write(), "--time-limit", wrong).status == 2


class TestSavedProfiles:
    def test_save_and_load(self, run, write, tmp_path):
        path = tmp_path / "p.json"
        first = run("profile", write(), "--runs", "2", "--save", path)
        assert first.status == 0
        again = run("profile", "--load", path)
        assert (again.status, again.out) == (0, first.out)
        assert document(run("profile", "--load", path, "--json"), schema=2) == json.loads(path.read_text())

    def test_never_over_a_file_unasked(self, run, saved):
        before = saved.read_text()
        assert "exists" in run("profile", "--load", saved, "--save", saved).sentence
        assert "exists" in run("profile", "--load", saved, "--perfetto", saved).sentence
        assert saved.read_text() == before
        assert run("profile", "--load", saved, "--perfetto", saved, "--force").status == 0
        assert saved.read_text() != before

    def test_a_timeline_for_perfetto(self, run, saved, tmp_path):
        assert run("profile", "--load", saved, "--perfetto", tmp_path / "t.json").status == 0
        found = json.loads((tmp_path / "t.json").read_text())
        assert any(event.get("args", {}).get("op_type") == "MatMul" for event in found["traceEvents"])

    def test_what_changed(self, run, saved, tmp_path):
        now = sample.profile(environment=(("onnxruntime", "9.9"),))
        (tmp_path / "now.json").write_text(json.dumps(now.to_json()))
        outcome = run("profile", "--load", tmp_path / "now.json", "--compare", saved)
        assert outcome.status == 0
        assert "1.2.3" in outcome.out
        assert "9.9" in outcome.out
        found = document(run("profile", "--load", tmp_path / "now.json", "--compare", saved, "--json"))
        assert len(found["changes"]) == 2

    def test_every_point_in_detail(self, run, tmp_path):
        path = tmp_path / "p.json"
        path.write_text(json.dumps(sample.sweep().to_json()))
        assert run("profile", "--load", path).out.count("Inputs: ") == 1
        assert run("profile", "--load", path, "--all").out.count("Inputs: ") == 3

    def test_one_or_the_other(self, run, write, saved):
        for arguments in ([], [write(), "--load", saved]):
            outcome = run("profile", *arguments)
            assert outcome.status == 2
            assert "--load P.json" in outcome.err

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2}', "null"])
    def test_what_is_no_profile(self, run, tmp_path, text):
        path = tmp_path / "p.json"
        path.write_text(text)
        for arguments in (["--load", path], ["--load", tmp_path / "absent.json"]):
            assert "profile" in run("profile", *arguments).sentence


class TestTune:
    def test_what_wins_is_shown_kept_and_then_used(self, run, write, tmp_path):
        path = write()
        outcome = run("tune", path, "--runs", "2", "--provider", "cpu", "--save", tmp_path / "t.json")
        assert (outcome.status, outcome.err) == (0, "")
        assert "The whole model" in outcome.out
        assert "attn0, one cut out: " in outcome.out
        assert json.loads((tmp_path / "t.json").read_text())["provider"] == "cpu"
        assert list((tmp_path / "cache").rglob("*.json")), "it is kept"
        fuse = run("fuse", path, "-o", tmp_path / "out.onnx", "--fastest-on", "cpu", "--no-verify")
        assert "measured on" in fuse.out + fuse.err

    def test_the_document_and_the_plan(self, run, write, tmp_path):
        path = write()
        plan = tmp_path / "plan.json"
        found = document(run("tune", path, "--runs", "1", "--provider", "cpu", "--save-plan", plan, "--json"), schema=2)
        assert json.loads(plan.read_text())["source_digest"] == found["source"] == load(path).digest

    def test_nothing_to_tune(self, run, write):
        assert "can be fused" in run("tune", write(no_attention()), "--runs", "1").sentence

    def test_a_tuning_is_for_the_file_however_its_inputs_are_shaped(self, run, write, tmp_path):
        path = write()
        block = document(run("scan", path, "--json"))["blocks"][0]["id"]
        file = tmp_path / "t.json"
        file.write_text(json.dumps(tuning(load(path).digest, block).to_json()))
        shapes = input_shapes(load(path), None, 16, 2)
        given = [f"--shape={name}={'x'.join(map(str, shape))}" for name, shape in shapes.items()]
        out = tmp_path / "out.onnx"
        found = document(run("fuse", path, "-o", out, "--tuning", file, *given, "--no-verify", "--json"))
        assert found["fused"] == [{"id": block, "target": "mha/bsd"}]
        assert any("measured on NVIDIA H200" in note for note in found["notes"])

    def test_a_tuning_that_is_given(self, run, write, tmp_path):
        path = write()
        block = document(run("scan", path, "--json"))["blocks"][0]["id"]
        made = tuning(load(path).digest, block)
        file = tmp_path / "t.json"
        file.write_text(json.dumps(made.to_json()))
        outcome = run("fuse", path, "-o", tmp_path / "out.onnx", "--tuning", file, "--no-verify", "--json")
        found = document(outcome)
        assert found["fused"] == [{"id": block, "target": "mha/bsd"}]
        assert any("measured on NVIDIA H200" in note for note in found["notes"])

        def refused(*options):
            return run("fuse", path, "-o", tmp_path / "other.onnx", "--tuning", file, *options).sentence

        assert "--fastest-on cpu" in refused("--fastest-on", "cpu")
        assert "target auto" in refused("--target", "mha")
        plan = replace(made.plan, source_digest="other")
        file.write_text(json.dumps(replace(made, source="other", file="other", plan=plan).to_json()))
        assert "another" in refused()
        file.write_text("{}")
        assert "tuning" in refused()
