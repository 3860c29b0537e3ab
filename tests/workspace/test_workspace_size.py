"""A model with 10 GB of weights is opened, scanned, fused and exported in the memory that its graph needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import f5_dit
import gpt
from sparse_models import sparse_model

from explorer.model import load

# The peak is that of /proc: what getrusage says includes the process that started this one.
SCRIPT = """
import json, sys
from pathlib import Path
from explorer.model import save
from explorer.workspace import open_workspace

source, beside, elsewhere = sys.argv[1:]
workspace = open_workspace(source)
report = workspace.fuse_all()
save(workspace.current.ir, beside)
save(workspace.current.ir, elsewhere, data="copy")
status = Path("/proc/self/status").read_text().splitlines()
peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps([len(workspace.blocks), len(report.fused), peak_kb]))
"""


def explore(source: Path, layers: int) -> Path:
    """Do all that in a process of its own, and look at its memory; the exported copy."""
    target = source.parents[1] / "elsewhere" / "fused.onnx"
    target.parent.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(source), str(source.with_name("fused.onnx")), str(target)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    found, fused, peak_kb = json.loads(done.stdout)
    assert (found, fused) == (layers, layers)
    assert peak_kb * 1024 < 300e6 + 3 * source.stat().st_size
    return target


def test_memory_does_not_grow_with_the_weights(tmp_path):
    """The size of F5-TTS, with 64 heads of 64: 22 blocks, fp16."""
    source = sparse_model(f5_dit, f5_dit.f5_dit, tmp_path / "source", layers=22, heads=64)
    data = source.parent / "weights" / "all.bin"
    assert data.stat().st_size > 10e9
    target = explore(source, layers=22)
    copy = target.parent / "weights" / "all.bin"
    assert copy.stat().st_size == data.stat().st_size
    assert not copy.samefile(data)
    assert copy.stat().st_blocks * 512 < 1 << 20, "holes stay holes"
    assert load(target).op_counts().get("Softmax") is None


def test_nor_beyond_measure_with_the_graph(tmp_path):
    """17,000 nodes, as a network of 300 layers has: Python objects outweigh the bytes they are read from."""
    source = sparse_model(gpt, gpt.gpt, tmp_path / "source", layers=300, heads=12, head_size=64)
    explore(source, layers=300)
