"""Graphs that real exporters made are read rightly, and fused they compute what they computed before."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_graphs import run_on_cpu

from explorer.attention import recognise
from explorer.fusion import Plan, apply, choose
from explorer.model import load
from explorer.model.save import serialize

FOLDER = Path(__file__).parents[2] / "sample_models" / "exported"
ENTRIES = json.loads((FOLDER / "manifest.json").read_text())
MAX_BYTES = 150_000


def feeds_for(entry: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Random inputs of the shapes that the sample was exported with."""
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = entry["inputs"][value.name]
        if "bool" in value.type:
            feeds[value.name] = np.zeros(shape, bool)  # torch: True hides
        elif "int64" in value.type:
            ones = "mask" in value.name
            feeds[value.name] = np.ones(shape, np.int64) if ones else rng.integers(0, 16, shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float16 if "16" in value.type else np.float32)
    return feeds


def test_each_file_has_its_truth_and_is_small() -> None:
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.onnx")}
    assert files.keys() == {entry["name"] for entry in ENTRIES}
    assert max(files.values()) <= MAX_BYTES
    assert len({entry["architecture"] for entry in ENTRIES}) >= 10


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_every_block_is_found_and_what_it_is(entry: dict[str, Any]) -> None:
    model = load(FOLDER / f"{entry['name']}.onnx")
    blocks = recognise(model)
    assert len(blocks) == entry["expected_attention"]
    for field in ("num_heads", "kv_num_heads", "head_size", "v_head_size", "softcap"):
        wanted = entry[field]
        for block, expected in zip(blocks, wanted if isinstance(wanted, list) else [wanted] * len(blocks), strict=True):
            assert getattr(block, field) == expected, field
    if entry["scale"] == "1/sqrt(head_size)":
        for block in blocks:
            assert block.scale == pytest.approx(1 / math.sqrt(block.head_size or 0), rel=1e-3)
    usable = [block for block in blocks if block.fused_as or choose(model, block, "auto").target]
    assert len(usable) == entry["fusable"]


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry["fusable"]], ids=lambda entry: entry["name"])
def test_fused_they_compute_the_same(entry: dict[str, Any]) -> None:
    path = FOLDER / f"{entry['name']}.onnx"
    model = load(path)
    blocks, plan = recognise(model), Plan(model.digest)
    for block in blocks:
        if not block.fused_as:
            plan = plan.with_fusion(block, choose(model, block, "auto").target)
    fused = apply(model, blocks, plan)
    assert fused.op_counts().get("Softmax", 0) == 0
    feeds = feeds_for(entry, path)
    before, after = run_on_cpu(str(path), feeds), run_on_cpu(serialize(fused.ir), feeds)
    for one, other in zip(before, after, strict=True):
        tolerance = (2e-2 if one.dtype == np.float16 else 2e-4) * max(1.0, float(np.abs(one.astype(np.float64)).max()))
        np.testing.assert_allclose(other.astype(np.float64), one.astype(np.float64), atol=tolerance)
