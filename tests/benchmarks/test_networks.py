"""The benchmark of whole networks: what it compares, what it proves first, what it keeps of the results."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
from benchmarks.networks import optimizer  # noqa: E402
from benchmarks.networks.catalogue import NETWORKS  # noqa: E402
from benchmarks.networks.contestants import (  # noqa: E402
    attempts,
    best,
    distance,
    distances,
    is_right,
    ours,
    output_of,
    with_cuda_graphs,
)
from benchmarks.networks.results import COMPILED, EAGER, line, ort_rows, summarise  # noqa: E402
from explorer.model import load  # noqa: E402
from explorer.profile import Subject, profile  # noqa: E402
from explorer.runtime.client import Worker  # noqa: E402

LENGTH = 12
F5 = replace(NETWORKS["f5"], small={"layers": 2, "heads": 2, "head_size": 64}, model_types=("mmdit",))


@pytest.fixture(scope="module")
def worker():
    with Worker() as process:
        yield process


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = {"x": (2, LENGTH, 100), "time": (2, 8)}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def subjects(samples):
    path = samples / "f5_dit_fp16.onnx"
    found, facts = ours(path, ["mha", "attention", "gqa", "auto"], "cuda")
    return [Subject("original", load(path)), *found], facts


def test_targets_of_one_plan_are_one_contestant(subjects):
    found, facts = subjects
    assert [item.name for item in found] == ["original", "mha = auto", "attention"]
    assert [(fact["target"], fact["fused"]) for fact in facts] == [
        ("mha", 2),
        ("attention", 2),
        ("gqa", 0),
        ("auto", 2),
    ]
    ((obstacle, times),) = facts[2]["why_not"].items()
    assert "fewer heads" in obstacle
    assert times == 2


def test_the_original_and_one_target_are_replayed_as_cuda_graphs(subjects):
    graphs = with_cuda_graphs(subjects[0], "auto")
    assert [(item.name, item.cuda_graph) for item in graphs] == [
        ("original + CUDA graph", True),
        ("mha = auto + CUDA graph", True),
    ]


def test_contestants_are_held_against_the_truth(worker, subjects, inputs):
    models = {item.name: item.model for item in subjects[0]}
    zeros = np.zeros((2, LENGTH, 100))
    zeros[0, 0, 0] = 1.0
    wrong = distances(worker, models, inputs, zeros, "cpu")
    assert not any(map(is_right, wrong.values()))
    assert max(wrong.values()) - min(wrong.values()) < 0.1  # they are all wrong by the same
    refused = distances(worker, models, {"x": inputs["x"]}, zeros, "cpu")
    assert all("time" in words for words in refused.values())
    assert not any(map(is_right, refused.values()))


@pytest.mark.parametrize(
    ("value", "expected"), [(2.0, 0.0), (2.02, 0.01), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_distance_is_relative_to_the_largest_value(value, expected):
    found = distance(np.array([1.0, value]), np.array([1.0, 2.0]))
    assert found == (expected if isinstance(expected, str) else pytest.approx(expected))
    assert is_right(found) == (value in (2.0, 2.02))


def test_every_recipe_of_orts_optimizer_is_tried_and_the_best_that_is_right_is_taken(
    worker, samples, inputs, tmp_path, subjects
):
    sample = tmp_path / "sample.onnx"
    sample.write_bytes((samples / "f5_dit_fp16.onnx").read_bytes())
    truth = output_of(worker, subjects[0][0].model, inputs, "cpu").astype(np.float64)
    sources = {"float16": sample, "float32": tmp_path / "missing.onnx"}
    rows = attempts(worker, F5, sources, inputs, truth, "cpu")
    assert [row["recipe"] for row in rows] == [str(recipe) for recipe in optimizer.recipes(("mmdit",))]
    assert rows[1]["fused"]["MultiHeadAttention"] == 2  # level 0: before it, ORT's own level 1 adds Casts on a CPU
    assert is_right(rows[1]["distance"])
    assert all("missing.onnx" in row["error"] and str(tmp_path) not in row["error"] for row in rows[2:])
    assert str(best(F5, rows)) == "mmdit, opt_level 0"
    rows[1]["distance"] = 0.6
    assert str(best(F5, rows)) == "mmdit, opt_level 1"
    assert best(F5, [{"error": "none"}] * 4) is None


def test_attention_operators_outweigh_all_others_and_what_was_there_counts_nothing():
    plain, norms = {"LayerNormalization": 40}, {"SkipLayerNormalization": 20}
    ranked = sorted(({"MultiHeadAttention": 1}, norms, plain), key=optimizer.merit)
    assert ranked == [plain, norms, {"MultiHeadAttention": 1}]


def test_rows_relate_to_the_original_and_to_torch_compile(worker, subjects, inputs):
    found = profile(worker, subjects[0], [inputs], provider="cpu", runs=3)
    original_ms = found.points[0].of("original").latency.median_ms
    rows = ort_rows(found)
    rows += [
        {"contestant": COMPILED, "by": "torch", "refusal": "", "runs_ms": [original_ms / 4] * 4},
        {"contestant": EAGER, "by": "torch", "refusal": "out of memory", "runs_ms": []},
    ]
    summarise(rows)
    by_name = {row["contestant"]: row for row in rows}
    assert by_name[COMPILED]["to_original"]["value"] == pytest.approx(4.0, rel=1e-2)
    assert by_name["original"]["to_compile"]["value"] == pytest.approx(0.25, rel=1e-2)
    assert by_name["original"]["to_original"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert by_name["original"]["casts"][0] == 4
    assert by_name["mha = auto"]["casts"][0] == 0
    assert by_name["attention"]["unattributed_share"] == 0.0
    assert by_name[EAGER]["to_original"] is None
    assert "out of memory" in line(by_name[EAGER])
    assert "4.0" in line(by_name[COMPILED])
    assert json.loads(json.dumps(rows)) == rows


def test_the_networks_compute_what_their_exports_do(worker, tmp_path):
    pytest.importorskip("torch")
    export = importlib.import_module("benchmarks.networks.export")
    for name, network in NETWORKS.items():
        module = export.build(network.kind, network.small, "cpu")
        path = tmp_path / f"{name}.onnx"
        export.export(module, module.inputs(16, np.random.default_rng(0)), path)
        found, facts = ours(path, ["auto"], "cuda")
        assert facts[0]["fused"] == facts[0]["blocks"] == 2, name
        given = module.inputs(24, np.random.default_rng(1))
        truth = export.truth(module, given)
        models = {"original": load(path), "fused": found[0].model}
        errors = distances(worker, models, given, truth, "cpu")
        errors["torch"] = distance(export.computed(module, given), truth)
        assert all(map(is_right, errors.values())), (name, errors)


def test_the_command(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "out.json"
    words = ["--quick", "--network", "bert", "--lengths", "16", "24", "--compile", "--runs", "2", "--provider", "cpu"]
    command = [sys.executable, "-m", "benchmarks.networks", *words, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    (network,) = document["networks"]
    assert document["command"] == f"python -m benchmarks.networks {' '.join(words)}"
    assert network["optimizer"]["best"].startswith("bert")
    assert [row["length"] for row in network["lengths"]] == [16, 24]
    names = [row["contestant"] for row in network["lengths"][0]["contestants"]]
    assert names == ["original", "ORT's optimizer", "mha = auto", "attention", "torch eager"]
    assert str(tmp_path) not in out.read_text()
