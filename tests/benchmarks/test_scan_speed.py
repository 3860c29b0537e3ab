"""The speed benchmark: its graphs are models that run, of the size asked for, with one block a layer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scan_speed.py"
sys.path.append(str(SCRIPT.parent))
import scan_speed  # noqa: E402


@pytest.mark.parametrize("size", [130, 1000])
def test_a_graph_of_the_size_asked_for(size: int) -> None:
    proto = scan_speed.transformer(size)
    onnx.checker.check_model(proto, full_check=True)
    assert abs(len(proto.graph.node) - size) < 100
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 5, scan_speed.WIDTH)).astype(np.float32)
    (y,) = session.run(None, {"x": x, "mask": np.zeros((2, 1, 1, 5), np.float32)})
    assert y.shape == x.shape
    assert np.isfinite(y).all()


def test_the_curve(tmp_path: Path) -> None:
    out = tmp_path / "curve.json"
    command = [sys.executable, str(SCRIPT), "--sizes", "130", "400", "--repeat", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    curve = json.loads(out.read_text())["curve"]
    assert [row["blocks"] for row in curve] == [1, 3]
    assert curve[0]["ratio"] == 1.0
    assert all(row["total_s"] >= row["load_s"] > 0 for row in curve)
    assert len(done.stdout.splitlines()) == 3
