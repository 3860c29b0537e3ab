"""The benchmark of fusing a folder: what it counts as verified, as failed, and as no fault of ours."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import explorer as ex

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import attention_kernels  # noqa: E402
import fuse_corpus  # noqa: E402

SAMPLE = ROOT / "sample_models" / "exported" / "bert_eager_ts17.onnx"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return Path(shutil.copy(SAMPLE, tmp_path))


def test_a_block_is_fused_to_each_target_that_claims_it(graph):
    rows = {row["target"]: row for row in fuse_corpus.measure(graph, ["mha", "gqa", "attention"], "cpu")}
    assert rows.keys() == {"mha", "attention"}
    for row in rows.values():
        assert (row["fused"], row["passed"], row["provider"]) == (1, True, "cpu")
        assert 0 < row["error"] < 1e-5


def test_inputs_of_numbered_names_that_the_original_does_not_take_are_left_out(graph):
    with ex.open(graph) as workspace:
        names = [value.name for value in workspace.model.ir.graph.inputs]
    fine = {f"in_{at}": np.ones((2, 8), np.int64) for at in range(len(names))}
    np.savez(graph.with_suffix(".npz"), names=np.array(names), **fine)
    far = {name: np.full((2, 8), 10**6, np.int64) for name in fine}  # no table has so many rows
    np.savez(graph.with_suffix(".alt.npz"), names=np.array(names), **far)
    (row,) = fuse_corpus.measure(graph, ["mha"], "cpu")
    assert (row["passed"], row["inputs"]) == (True, 1)
    graph.with_suffix(".npz").unlink()
    (row,) = fuse_corpus.measure(graph, ["mha"], "cpu")
    assert (row["passed"], row["reason"]) == (None, "original fails")


def test_a_failed_proof_is_a_failure(graph, monkeypatch, capsys):
    monkeypatch.setattr("explorer.verify.verdict.ALLOWED_FACTOR", 0.0)
    monkeypatch.setattr("explorer.verify.verdict.ALLOWED_FLOOR", dict.fromkeys(("float16", "float32"), 1e-12))
    monkeypatch.setattr(sys, "argv", ["fuse_corpus.py", str(graph.parent), "--provider", "cpu", "--targets", "mha"])
    assert fuse_corpus.main() == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["f5", "bert padding", "gqa causal softcap"])
def test_the_blocks_of_the_kernel_benchmark_are_what_their_truth_says(name, tmp_path):
    case = next(case for case in attention_kernels.CASES if case.name == name)
    rows = list(attention_kernels.measure(case, "float16", 16, "cpu", tmp_path))
    assert {"original", "attention"} <= {row["target"] for row in rows}
    assert all(row["passed"] for row in rows)
    assert max(row["error"] for row in rows) < 2e-2


def test_a_command_is_told_without_the_place_of_its_results():
    words = ["benchmarks/x.py", "folder", "--json", "/tmp/out.json", "--provider", "cpu"]
    assert fuse_corpus._command(words) == "python benchmarks/x.py folder --provider cpu"
