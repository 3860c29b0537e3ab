"""The benchmark of fusing: it fuses every block, and its parts are parts of the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuse_speed.py"


def test_the_curve(tmp_path: Path) -> None:
    out = tmp_path / "curve.json"
    command = [sys.executable, str(SCRIPT), "--sizes", "130", "400", "--repeat", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    curve = json.loads(out.read_text())["curve"]
    assert [row["blocks"] for row in curve] == [1, 3]
    assert curve[0]["ratio"] == 1.0
    assert all(min(row["choose_s"], row["copy_s"], row["check_s"], row["raise_s"]) >= 0 for row in curve)
    assert all(row["apply_s"] > 0 and row["fuse_all_s"] > 0 for row in curve)
    assert len(done.stdout.splitlines()) == 3
