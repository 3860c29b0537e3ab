"""The corpus benchmark: what it counts, what it calls a mistake, and that a failing contestant is only a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import explorer

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "scan_corpus.py"
sys.path.append(str(SCRIPT.parent))
import scan_corpus  # noqa: E402

BLOCK = {"status": "fusable", "num_heads": 4, "kv_num_heads": 2, "head_size": 16, "v_head_size": 16, "mask": "causal"}


def scanned(*changes: dict[str, Any]) -> dict[str, Any]:
    """The result of a scan with one block for each of `changes`."""
    blocks = [BLOCK | change for change in changes]
    fusable = sum(block["status"] != "blocked" for block in blocks)
    return {"found": len(blocks), "fusable": fusable, "seconds": 0.1, "blocks": blocks}


def test_attention_is_counted_in_subgraphs_and_at_each_call_of_a_function() -> None:
    attention = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["a"], domain="com.microsoft", num_heads=1)
    standard = helper.make_node("Attention", ["q", "k", "v"], ["a"])
    other = helper.make_node("Attention", ["q"], ["a"], domain="somewhere.else")
    branch = helper.make_graph(
        [standard, other], "branch", [], [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)]
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Layer", ["q", "k", "v"], ["a"], [attention, standard], opsets)
    calls = [helper.make_node("Layer", ["q", "k", "v"], [name], domain="own") for name in "xy"]
    choice = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([*calls, choice], "graph", [], [])
    model = helper.make_model(graph, functions=[function], opset_imports=opsets)
    assert scan_corpus.count_nodes(model) == (2 * 2 + 1 + 2 * 2, 2 * 2 + 2)


def test_fused_blocks_of_a_sample_are_counted(samples: Path, tmp_path: Path) -> None:
    original, fused = samples / "bert_fp32.onnx", tmp_path / "fused.onnx"
    with explorer.open(original) as workspace:
        workspace.fuse_all()
        workspace.export(fused)
    assert scan_corpus.count_nodes(onnx.load(original)) == (len(workspace.model.nodes), 0)
    assert scan_corpus.count_nodes(onnx.load(fused))[1] == 2


@pytest.mark.parametrize(
    ("truth", "changes", "expected"),
    [
        ({"num_heads": 4, "kv_num_heads": 2, "mask": "causal"}, [{}, {}], []),
        ({}, [{}], ["found 1, expected 2", "fusable 1, expected 2"]),
        ({}, [{}, {"status": "blocked"}], ["fusable 1, expected 2"]),
        ({}, [{}, {"status": "fused"}], []),
        ({"head_size": 32}, [{}, {}], ["head_size [16, 16], expected 32"]),
        ({"num_heads": [8, 4]}, [{}, {"num_heads": 8}], []),
        ({"num_heads": [8, None]}, [{}, {"num_heads": 8}], []),
        ({"num_heads": [8, 8]}, [{}, {"num_heads": 8}], ["num_heads [4, 8], expected [8, 8]"]),
        ({"num_heads": [16, 4, 8]}, [{}, {"num_heads": 8}], ["num_heads [4, 8], expected [16, 4, 8]"]),
        ({"v_head_size": 16}, [{}, {"v_head_size": None}], ["v_head_size [16, None], expected 16"]),
        ({"mask": "padding"}, [{}, {}], ["mask ['causal', 'causal'], expected padding"]),
        ({"mask": "causal in the decoder"}, [{}, {}], []),
    ],
)
def test_mistakes_are_differences_from_the_manifest(
    truth: dict[str, Any], changes: list[dict[str, Any]], expected: list[str]
) -> None:
    entry = {"name": "graph", "expected_attention": 2, "fusable": 2, **truth}
    assert scan_corpus.mistakes_of(entry, scanned(*changes)) == expected


def test_what_a_blocked_block_leaves_open_is_no_contradiction() -> None:
    entry = {"name": "graph", "expected_attention": 2, "fusable": 1, "num_heads": 4}
    blocked = {"status": "blocked", "num_heads": None}
    assert scan_corpus.mistakes_of(entry, scanned({}, blocked)) == []


def test_a_scan_that_failed_is_a_mistake() -> None:
    entry = {"name": "graph", "expected_attention": 2, "fusable": 2}
    assert scan_corpus.mistakes_of(entry, {"error": "timeout"}) == ["the scan failed: timeout"]


def test_a_failing_contestant_is_a_result_without_paths(tmp_path: Path) -> None:
    assert scan_corpus.run(time.sleep, 60, timeout=0.5)["error"].startswith("timeout")
    assert scan_corpus.run(os._exit, 7, timeout=60)["error"] == "crash: the process ended with status 7"
    missing = scan_corpus.run(onnx.load, str(tmp_path / "none.onnx"), timeout=60)
    assert missing == {"error": "FileNotFoundError: [Errno 2] No such file or directory: 'none.onnx'"}


def test_paths_are_cut_and_node_names_kept(tmp_path: Path) -> None:
    text = f"Load of {tmp_path}/model.onnx failed at '/layers.0/attn/MatMul_output_0'"
    assert scan_corpus.without_paths(text) == "Load of model.onnx failed at '/layers.0/attn/MatMul_output_0'"


def test_the_best_model_type_fuses_most_and_then_is_fastest() -> None:
    tries = [
        {"model_type": "bert", "operators": 2, "seconds": 3.0},
        {"model_type": "vit", "operators": 2, "seconds": 1.0},
        {"model_type": "gpt2", "operators": 0, "seconds": 0.1},
        {"model_type": "phi", "error": "TypeError"},
    ]
    assert scan_corpus.best(tries) == {
        "model_type": "vit", "operators": 2, "seconds": 1.0,
        "by_type": {"bert": 2, "vit": 2, "gpt2": 0, "phi": "TypeError"},
    }  # fmt: skip
    assert scan_corpus.best(tries[3:]) == {"error": "TypeError", "by_type": {"phi": "TypeError"}}


@pytest.mark.parametrize(("heads", "status"), [(2, 0), (3, 1)])
def test_the_command_is_an_acceptance_check(samples: Path, tmp_path: Path, heads: int, status: int) -> None:
    folder, out = tmp_path / "corpus", tmp_path / "out.json"
    folder.mkdir()
    (folder / "bert.onnx").symlink_to(samples / "bert_fp32.onnx")
    entry = {"name": "bert", "expected_attention": 2, "fusable": 2, "num_heads": heads}
    (folder / "manifest.json").write_text(json.dumps([entry]))
    command = [sys.executable, str(SCRIPT), str(folder), "--out", str(out), "--scan-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["total"]["explorer"]["found"] == 2
    assert document["total"]["mistakes"] == status
    assert document["command"] == "python benchmarks/scan_corpus.py corpus --out out.json --scan-only"
    assert str(tmp_path) not in out.read_text()
