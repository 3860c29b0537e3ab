"""Every command: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from cli_models import BLOCK_FIELDS, blocked, document, no_attention, two_blocks

import explorer


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["nonsense"],
            ["scan"],
            ["scan", "a.onnx", "--nonsense"],
            ["fuse", "a.onnx"],
            ["fuse", "a.onnx", "-o", "b.onnx", "--target", "flash"],
            ["verify", "a.onnx"],
            ["profile"],
            ["profile", "a.onnx", "--runs", "0"],
            ["profile", "a.onnx", "--runs", "-3"],
            ["profile", "a.onnx", "--runs", "many"],
            ["profile", "a.onnx", "--runs", "²"],
            ["profile", "a.onnx", "--provider", "tpu"],
            ["profile", "a.onnx", "--shape", "x"],
            ["profile", "a.onnx", "--shape", "=2x3"],
            ["profile", "a.onnx", "--shape", "x=2y3"],
            ["profile", "a.onnx", "--shape", "x=2xx3"],
            ["profile", "a.onnx", "--shape", "x=1.5"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_status_2(self, run, arguments):
        outcome = run(*arguments)
        assert outcome.status == 2
        assert outcome.out == ""
        assert "usage: onnx-explorer" in outcome.err
        assert "Traceback" not in outcome.err

    def test_a_wrong_shape_says_what_one_looks_like(self, run):
        outcome = run("profile", "a.onnx", "--shape", "x=2y3")
        assert "NAME=2x938x100" in outcome.err
        assert "'x=2y3'" in outcome.err

    def test_help_names_every_command(self, run):
        outcome = run("--help")
        assert outcome.status == 0
        for command in ("lab", "scan", "fuse", "verify", "profile", "samples"):
            assert command in outcome.out

    def test_version(self, run):
        assert run("--version").out.strip() == explorer.__version__

    def test_a_plan_and_a_block_contradict_each_other(self, run, write, tmp_path):
        outcome = run("fuse", write(), "-o", tmp_path / "o.onnx", "--plan", "p.json", "--block", "attn0")
        assert outcome.status in (1, 2)
        assert "--plan" in outcome.err
        assert "--block" in outcome.err

    def test_an_interrupt_ends_it_quietly(self, run, write, monkeypatch):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("explorer.cli.scan.open_workspace", interrupt)
        assert run("scan", write()).sentence == "stopped"


class TestBadModels:
    COMMANDS = (
        ("scan", "BAD"),
        ("scan", "BAD", "--json"),
        ("fuse", "BAD", "-o", "out.onnx"),
        ("fuse", "BAD", "-o", "out.onnx", "--json"),
        ("verify", "BAD", "GOOD"),
        ("verify", "GOOD", "BAD"),
        ("profile", "BAD"),
        ("profile", "GOOD", "BAD"),
        ("lab", "BAD", "--folder", "lab"),
    )

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    @pytest.mark.parametrize("kind", ["missing", "text", "truncated", "empty graph", "lost data"])
    def test_one_sentence_and_status_1(self, run, write, tmp_path, monkeypatch, samples, command, kind):
        monkeypatch.chdir(tmp_path)
        good = write()
        if kind == "lost data":
            proto = render(Meaning(), Spelling(dynamic=False))
            tensor = proto.graph.initializer[-1]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights.bin")
            write(proto, "bad.onnx")
        elif kind != "missing":
            content = {
                "text": b"hello, world",
                "truncated": (samples / "bert_fp32.onnx").read_bytes()[:5000],
                "empty graph": onnx.ModelProto(ir_version=8).SerializeToString(),
            }[kind]
            write(content, "bad.onnx")
        words = {"BAD": "bad.onnx", "GOOD": good.name}
        outcome = run(*(words.get(word, word) for word in command))
        assert "bad.onnx" in outcome.sentence
        assert "expected" in outcome.sentence
        assert outcome.out == ""
        assert not (tmp_path / "out.onnx").exists()

    def test_an_operator_that_onnx_runtime_does_not_know(self, run, write, tmp_path):
        path = write(no_attention("Magic", "other.org"))
        scan = run("scan", path)
        assert scan.status == 0
        assert "other.org" in scan.out
        assert "Magic" in run("profile", path).sentence
        assert "Magic" in run("verify", path, path).sentence

    def test_an_opset_that_onnx_runtime_does_not_know(self, run, write):
        proto = no_attention()
        proto.opset_import[0].version = 99
        path = write(proto)
        assert "opset 99" in document(run("scan", path, "--json"))["notes"][0]
        assert "99" in run("profile", path).sentence


class TestScan:
    @pytest.mark.parametrize("sample", ["f5_dit_fp16", "f5_dit_fp16_two_casts", "bert_fp32", "gpt_fp32"])
    def test_the_document_has_its_documented_fields(self, run, samples, sample):
        outcome = run("scan", samples / f"{sample}.onnx", "--json")
        assert (outcome.status, outcome.err) == (0, "")
        found = document(outcome)
        assert len(found["blocks"]) == 2
        for block in found["blocks"]:
            assert block.keys() >= BLOCK_FIELDS
            assert block["status"] == "fusable"
            assert block["num_heads"] == block["kv_num_heads"]
            assert block["targets"] == ["mha", "attention"]
            assert block["obstacles"] == []
            assert block["anchor"]
            assert block["ort_reason"]
            assert all(set(node) >= {"name", "op_type", "role"} for node in block["nodes"])

    def test_what_it_says_of_the_f5_sample(self, run, samples):
        found = document(run("scan", samples / "f5_dit_fp16.onnx", "--json"))
        block = found["blocks"][0]
        assert (block["num_heads"], block["head_size"], block["v_head_size"]) == (2, 64, 64)
        assert block["scale"] == pytest.approx(100)
        assert block["mask"]["kind"] == "none"
        assert block["softcap"] is None
        assert len(block["casts"]) == 2
        assert {node["op_type"] for node in block["nodes"]} >= {"MatMul", "Cast", "Softmax"}
        two = document(run("scan", samples / "f5_dit_fp16_two_casts.onnx", "--json"))
        assert len(two["blocks"][0]["casts"]) == 3

    def test_a_blocked_block(self, run, write):
        (block,) = document(run("scan", write(blocked()), "--json"))["blocks"]
        assert block["status"] == "blocked"
        assert block["targets"] == []
        assert block["obstacles"]
        assert all(set(item) == {"code", "at", "expected", "found", "hint"} for item in block["obstacles"])
        assert block["obstacles"][0]["code"] == "interior-output"

    def test_a_fused_block(self, run, write, tmp_path):
        assert run("fuse", write(), "-o", tmp_path / "f.onnx").status == 0
        (block,) = document(run("scan", tmp_path / "f.onnx", "--json"))["blocks"]
        assert block["status"] == "fused"
        assert block["num_heads"] == 2
        text = run("scan", tmp_path / "f.onnx")
        assert text.status == 0
        assert "fused" in text.out

    def test_for_people(self, run, samples):
        outcome = run("scan", samples / "f5_dit_fp16.onnx")
        assert outcome.status == 0
        assert outcome.err == ""
        for word in ("2 attention blocks", "attn0", "attn1", "fusable", "100", "64", "Why ONNX Runtime leaves"):
            assert word in outcome.out
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(outcome.out)

    def test_no_attention_is_an_answer(self, run, write):
        path = write(no_attention())
        assert document(run("scan", path, "--json"))["blocks"] == []
        outcome = run("scan", path)
        assert (outcome.status, outcome.err) == (0, "")
        assert "0 attention blocks" in outcome.out

    def test_a_scale_that_is_no_number_is_still_json(self, run, write):
        proto = render(Meaning(), Spelling(dynamic=False))
        scale = next(t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        scale.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), scale.name))
        outcome = run("scan", write(proto), "--json")
        assert outcome.status == 0
        (block,) = json.loads(outcome.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["blocks"]
        assert block["status"] == "blocked"
        assert run("scan", write(proto)).status == 0


class TestFuse:
    def test_the_document(self, run, write, tmp_path):
        out = tmp_path / "out.onnx"
        outcome = run("fuse", write(two_blocks()), "-o", out, "--json")
        assert (outcome.status, outcome.err) == (0, "")
        found = document(outcome)
        assert [item["target"] for item in found["fused"]] == ["mha", "mha"]
        assert found["skipped"] == []
        assert (found["ops_before"]["Softmax"], found["ops_after"].get("Softmax", 0)) == (2, 0)
        assert found["ops_after"]["MultiHeadAttention"] == 2
        assert found["verdict"]["passed"] is True
        assert found["verdict"]["schema"] == 2
        assert len(found["verdict"]["blocks"]) == 2
        assert found["output"] == str(out)
        ops = [node.op_type for node in onnx.load(out).graph.node]
        assert ops.count("MultiHeadAttention") == 2
        assert "Softmax" not in ops

    def test_for_people(self, run, write, tmp_path):
        outcome = run("fuse", write(), "-o", tmp_path / "out.onnx")
        assert outcome.status == 0
        for words in ("Fused 1 of 1", "Softmax 1 → 0", "MultiHeadAttention 0 → 1", "PASSED", "Wrote"):
            assert words in outcome.out

    def test_the_source_is_not_changed(self, run, write, tmp_path):
        path = write()
        before = path.read_bytes()
        run("fuse", path, "-o", tmp_path / "out.onnx")
        assert path.read_bytes() == before

    def test_an_existing_file_is_kept(self, run, write, tmp_path):
        out = tmp_path / "out.onnx"
        out.write_bytes(b"mine")
        sentence = run("fuse", write(), "-o", out).sentence
        assert "exists" in sentence
        assert "--force" in sentence
        assert out.read_bytes() == b"mine"
        assert run("fuse", write(), "-o", out, "--force").status == 0
        assert out.read_bytes() != b"mine"

    def test_never_over_the_source(self, run, write):
        path = write()
        before = path.read_bytes()
        for options in ([], ["--force"], ["--force", "--no-verify"]):
            assert str(path) in run("fuse", path, "-o", path, *options).sentence
        assert path.read_bytes() == before

    @pytest.mark.parametrize("by", ["id", "label"])
    def test_one_block(self, run, write, tmp_path, by):
        path = write(two_blocks())
        blocks = document(run("scan", path, "--json"))["blocks"]
        name = blocks[1]["id"] if by == "id" else "attn1"
        found = document(run("fuse", path, "-o", tmp_path / "out.onnx", "--block", name, "--json"))
        assert [item["id"] for item in found["fused"]] == [blocks[1]["id"]]
        assert found["ops_after"]["Softmax"] == 1

    def test_two_blocks_by_name(self, run, write, tmp_path):
        options = ("--block", "attn1", "--block", "attn0", "--json", "--no-verify")
        found = document(run("fuse", write(two_blocks()), "-o", tmp_path / "out.onnx", *options))
        assert len(found["fused"]) == 2
        assert found["verdict"] is None

    def test_an_unknown_block(self, run, write, tmp_path):
        sentence = run("fuse", write(), "-o", tmp_path / "out.onnx", "--block", "attn9").sentence
        assert "'attn9'" in sentence
        assert "attn0" in sentence
        assert not (tmp_path / "out.onnx").exists()

    def test_a_blocked_block(self, run, write, tmp_path):
        out = tmp_path / "out.onnx"
        sentence = run("fuse", write(blocked()), "-o", out, "--block", "attn0").sentence
        assert "attn0" in sentence
        assert "expected" in sentence
        everything = run("fuse", write(blocked()), "-o", out, "--json")
        assert "none" in everything.sentence
        assert document(everything)["skipped"][0]["obstacle"]["code"] == "interior-output"
        assert document(everything)["output"] is None
        assert not out.exists()

    @pytest.mark.parametrize(("target", "op_type"), [("mha", "MultiHeadAttention"), ("attention", "Attention")])
    def test_the_target_by_name(self, run, write, tmp_path, target, op_type):
        outcome = run("fuse", write(), "-o", tmp_path / "out.onnx", "--target", target, "--json")
        assert outcome.status == 0
        assert op_type in json.loads(outcome.out)["ops_after"]

    def test_a_target_that_cannot_express_it(self, run, write, tmp_path):
        outcome = run("fuse", write(), "-o", tmp_path / "out.onnx", "--target", "gqa")
        assert "no model was written" in outcome.sentence
        assert "expected fewer heads of keys and values than of queries" in outcome.out
        assert not (tmp_path / "out.onnx").exists()

    def test_no_attention(self, run, write, tmp_path):
        outcome = run("fuse", write(no_attention()), "-o", tmp_path / "out.onnx")
        assert "no model was written" in outcome.sentence
        assert not (tmp_path / "out.onnx").exists()

    def test_a_plan_replayed_gives_the_same_bytes(self, run, write, tmp_path):
        path = write(two_blocks())
        first = document(run("fuse", path, "-o", tmp_path / "one.onnx", "--block", "attn1", "--json"))
        (tmp_path / "plan.json").write_text(json.dumps(first["plan"]))
        again = run("fuse", path, "-o", tmp_path / "two.onnx", "--plan", tmp_path / "plan.json", "--json")
        assert again.status == 0
        assert document(again)["fused"] == first["fused"]
        assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()

    def test_a_plan_for_another_model(self, run, write, tmp_path):
        first = document(run("fuse", write(two_blocks()), "-o", tmp_path / "one.onnx", "--no-verify", "--json"))
        (tmp_path / "plan.json").write_text(json.dumps(first["plan"]))
        other = write(None, "other.onnx")
        sentence = run("fuse", other, "-o", tmp_path / "two.onnx", "--plan", tmp_path / "plan.json").sentence
        assert "another" in sentence
        assert not (tmp_path / "two.onnx").exists()

    @pytest.mark.parametrize("content", [None, "", "{", "[]", '{"schema": 9}', '{"schema": 1}', "\udcff"])
    def test_a_plan_that_is_none(self, run, write, tmp_path, content):
        plan = tmp_path / "plan.json"
        if content is not None:
            plan.write_bytes(content.encode(errors="surrogateescape"))
        assert "plan" in run("fuse", write(), "-o", tmp_path / "out.onnx", "--plan", plan).sentence

    def test_a_failed_verification_is_status_3_and_no_file(self, run, write, tmp_path, failing):
        out = tmp_path / "out.onnx"
        outcome = run("fuse", write(), "-o", out)
        assert outcome.status == 3
        assert "FAILED" in outcome.out
        assert "No model was written" in outcome.out
        assert not out.exists()
        found = run("fuse", write(), "-o", out, "--json")
        assert found.status == 3
        assert document(found)["verdict"]["passed"] is False
        assert document(found)["output"] is None
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

    def test_unless_forced(self, run, write, tmp_path, failing):
        out = tmp_path / "out.onnx"
        outcome = run("fuse", write(), "-o", out, "--force")
        assert outcome.status == 3
        assert "FAILED" in outcome.out
        assert f"Wrote {out}" in outcome.out
        assert onnx.load(out).graph.node

    def test_without_verification(self, run, write, tmp_path, failing, monkeypatch):
        monkeypatch.setattr("explorer.workspace.workspace.verify", lambda *_, **__: pytest.fail("verified"))
        outcome = run("fuse", write(), "-o", tmp_path / "out.onnx", "--no-verify")
        assert outcome.status == 0
        assert (tmp_path / "out.onnx").exists()
        assert "PASSED" not in outcome.out

    def test_where_nothing_can_be_written(self, run, write, tmp_path):
        (tmp_path / "file").write_text("x")
        for out in (tmp_path / "absent" / "o.onnx", tmp_path / "file" / "o.onnx", tmp_path / ("a" * 300)):
            assert "expected" in run("fuse", write(), "-o", out, "--no-verify").sentence
        assert "folder" in run("fuse", write(), "-o", tmp_path, "--no-verify", "--force").sentence
