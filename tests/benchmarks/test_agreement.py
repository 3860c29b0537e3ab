"""The check of profiles against a plain loop: both measure the same model, and their difference is what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from explorer.model import load

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agreement.py"
sys.path.append(str(SCRIPT.parent))
import agreement  # noqa: E402

GRAPH = "g (float[2,S,64] x, float16[S] h) => (float[2,S,64] y, float16[S] k) { y = Softmax (x) k = Relu (h) }"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + GRAPH).SerializeToString())
    return path


def test_the_rounds_are_compared_one_by_one() -> None:
    drifting = agreement.Agreement("m", 8, plain_ms=(1.0, 2.0, 4.0), profile_ms=(1.1, 2.04, 4.04))
    assert drifting.apart == pytest.approx(0.02)
    assert drifting.spread == pytest.approx(3.0)
    assert "+2.0%  (plain rounds within 300.0%)" in str(drifting)


def test_the_inputs_are_those_of_the_plain_loop(model: Path) -> None:
    feeds = agreement.plain_feeds(load(model), 5)
    assert {name: (array.shape, array.dtype.name) for name, array in feeds.items()} == {
        "x": ((2, 5, 64), "float32"),
        "h": ((5,), "float16"),
    }
    np.testing.assert_array_equal(
        feeds["x"], np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32), strict=True
    )


@pytest.mark.parametrize(("limit", "status"), [(1e9, 0), (-1.0, 1)])
def test_a_run(model: Path, tmp_path: Path, limit: float, status: int) -> None:
    out = tmp_path / "out.json"
    options = ["--sizes", "8", "--rounds", "1", "--runs", "2", "--limit", str(limit), "--json", str(out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(model), *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    (row,) = json.loads(out.read_text())
    assert (row["model"], row["size"]) == (str(model), 8)
    assert row["apart"] == pytest.approx(row["profile_ms"][0] / row["plain_ms"][0] - 1)
    assert f"the limit is {limit:g} %" in done.stdout.splitlines()[-1]
