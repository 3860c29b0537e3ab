"""Documents and texts, from values made by hand and from a workspace."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cli_models import blocked, no_attention, two_blocks

from explorer import report
from explorer.verify import CaseVerdict, Comparison, Errors, Verdict
from explorer.workspace import FuseReport, open_workspace


def comparison(name: str, block: str, fused: float | Errors) -> Comparison:
    values = {
        "name": name,
        "block": block,
        "dtype": "float32",
        "shape": (2, 3),
        "original": Errors(1e-7, 1e-7, 0),
        "fused": fused if isinstance(fused, Errors) else Errors(fused, fused, 0),
        "allowed": 4e-6,
    }
    return Comparison(**values)


class TestVerdict:
    def verdict(self, *comparisons: Comparison, more: tuple[CaseVerdict, ...] = ()) -> Verdict:
        blocks = tuple(item for item in comparisons if item.block)
        outputs = tuple(item for item in comparisons if not item.block)
        case = CaseVerdict("seed 0", (("x", (2, 3)),), 0, "by hand", blocks, outputs)
        return Verdict((case, *more), "cpu", ("mind the gap",))

    def test_passed(self):
        text = report.verdict_text(self.verdict(comparison("v", "attn-1", 2e-7), comparison("y", "", 3e-7)), {})
        assert text.startswith("PASSED")
        assert "FAIL" not in text
        for words in ("attn-1", "1.0e-07", "2.0e-07", "3.0e-07", "4.0e-06", "by hand", "on CPU", "note: mind the gap"):
            assert words in text

    def test_failed_shows_where(self):
        text = report.verdict_text(
            self.verdict(comparison("v", "attn-1", 2e-7), comparison("w", "attn-2", 0.5), comparison("y", "", 3e-7)),
            {"attn-1": "attn0", "attn-2": "attn1"},
        )
        assert text.startswith("FAILED")
        rows = {line.split()[0]: line.split()[4] for line in text.splitlines() if line.startswith(("attn", "y"))}
        assert rows == {"attn0": "pass", "attn1": "FAIL", "y": "pass"}
        assert "5.0e-01" in text

    def test_inputs_that_a_model_does_not_take(self):
        short = CaseVerdict("length 1", (("x", (2, 1)),), 0, refusal="no room", refused_by="original")
        text = report.verdict_text(self.verdict(comparison("y", "", 3e-7), more=(short,)), {})
        assert text.startswith("PASSED")
        assert "length 1: not tried, since the original does not run: no room" in text
        broken = replace(short, refused_by="fused")
        text = report.verdict_text(self.verdict(comparison("y", "", 3e-7), more=(broken,)), {})
        assert text.startswith("FAILED")
        assert "length 1: FAILED, the fused model does not run: no room" in text

    def test_not_numbers_are_shown_as_such(self):
        nan = float("nan")
        text = report.verdict_text(self.verdict(comparison("y", "", Errors(nan, nan, 6))), {})
        assert text.startswith("FAILED")
        assert "nan" in text

    def test_new_infinities_explain_a_failure(self):
        """The relative error alone would read like a pass."""
        text = report.verdict_text(self.verdict(comparison("y", "", Errors(1e-7, 1e-7, 16))), {})
        assert text.startswith("FAILED")
        assert "16" in text


class TestCounts:
    def test_before_and_after(self):
        text = report.counts_text({"Cast": 4, "Softmax": 2, "Neg": 9}, {"MultiHeadAttention": 2, "Neg": 9})
        assert text == "Cast 4 → 0, Softmax 2 → 0, MultiHeadAttention 0 → 2"

    def test_of_a_model_without_attention(self):
        assert report.counts_text({"Neg": 1}, {"Neg": 1}) == ""


class TestScanAndFuse:
    def test_a_scan(self, write):
        with open_workspace(write(two_blocks())) as workspace:
            document = report.scan_document(workspace)
            text = report.scan_text(workspace)
        json.dumps(document, allow_nan=False)
        assert document["source_digest"] == workspace.model.digest
        assert document["ops"] == workspace.ops_before
        assert document["nodes"] == sum(document["ops"].values())
        assert [block["label"] for block in document["blocks"]] == ["attn0", "attn1"]
        header, row = [line.split() for line in text.splitlines() if line.startswith(("blocks", "attn"))]
        assert dict(zip(header, row, strict=False)) | {"status": "fusable"} == dict(zip(header, row, strict=False))
        assert row[:3] == ["attn0…attn1", "2", "fusable"]
        assert "0.25" in row

    def test_evidence_names_nodes_of_the_model(self, write):
        with open_workspace(write(two_blocks())) as workspace:
            blocks = report.scan_document(workspace)["blocks"]
        for block in blocks:
            assert block["evidence"]
            for step in block["evidence"]:
                assert step["text"]
                assert all(workspace.model.has_node(name) for name in step["nodes"])
            assert all(workspace.model.has_node(node["name"]) for node in block["nodes"])

    def test_a_blocked_block_says_why(self, write):
        with open_workspace(write(blocked())) as workspace:
            text = report.scan_text(workspace)
        (line,) = [line for line in text.splitlines() if "cannot be fused" in line]
        assert line.startswith("attn0")
        assert "expected" in line
        assert "found" in line

    def test_an_empty_scan(self, write):
        with open_workspace(write(no_attention())) as workspace:
            assert report.scan_text(workspace) == "model.onnx: 1 node, 0 attention blocks"

    def test_a_fuse(self, write):
        with open_workspace(write(two_blocks())) as workspace:
            workspace.fuse("attn0")
            done = FuseReport(workspace.plan.blocks, ())
            document = report.fuse_document(workspace, done, None, "out.onnx")
            text = report.fuse_text(workspace, done, None, "out.onnx")
            nothing = report.fuse_text(workspace, done, None, None)
        assert {"fused", "skipped", "ops_before", "ops_after", "verdict"} <= document.keys()
        assert document["fused"] == [{"id": workspace.blocks[0].id, "target": "mha"}]
        (fusion,) = document["plan"]["fusions"]
        assert (fusion["block"], fusion["target"]) == (workspace.blocks[0].id, "mha")
        assert document["verdict"] is None
        assert "Fused 1 of 2 attention blocks." in text
        assert text.endswith("Wrote out.onnx.")
        assert nothing.endswith("No model was written.")

    @pytest.mark.parametrize("sample", ["f5_dit_fp16", "bert_fp32", "gpt_fp32"])
    def test_lines_have_no_loose_ends(self, samples, sample):
        with open_workspace(samples / f"{sample}.onnx") as workspace:
            text = report.scan_text(workspace)
        assert all(line == line.rstrip() for line in text.splitlines())
        assert "None" not in text
