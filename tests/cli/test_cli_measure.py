"""The commands that run models, and the program as others start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from cli_models import ROOT, document, no_attention


class TestVerify:
    def test_a_fused_model(self, run, write, tmp_path):
        path, out = write(), tmp_path / "fused.onnx"
        run("fuse", path, "-o", out, "--no-verify")
        outcome = run("verify", path, out, "--json")
        assert (outcome.status, outcome.err) == (0, "")
        found = document(outcome, schema=2)
        assert found["passed"] is True
        assert len(found["blocks"]) == 1
        text = run("verify", path, out)
        assert text.status == 0
        assert "PASSED" in text.out
        assert "float64" in text.out

    def test_the_same_model(self, run, write):
        path = write()
        assert document(run("verify", path, path, "--json"), schema=2)["passed"] is True

    def test_a_wrong_one(self, run, write, tmp_path):
        path, out = write(), tmp_path / "fused.onnx"
        run("fuse", path, "-o", out, "--no-verify")
        proto = onnx.load(out)
        node = next(node for node in proto.graph.node if node.op_type == "MultiHeadAttention")
        next(a for a in node.attribute if a.name == "scale").f *= 1.1
        onnx.save(proto, out)
        outcome = run("verify", path, out)
        assert outcome.status == 3
        assert "FAILED" in outcome.out
        assert "FAIL" in outcome.out.splitlines()[2]
        found = run("verify", path, out, "--json")
        assert found.status == 3
        assert document(found, schema=2)["blocks"][0]["passed"] is False

    def test_nothing_but_nan_is_still_json(self, run, write, tmp_path):
        path, out = write(), tmp_path / "fused.onnx"
        run("fuse", path, "-o", out, "--no-verify")
        proto = onnx.load(out)
        node = next(node for node in proto.graph.node if node.op_type == "MultiHeadAttention")
        next(a for a in node.attribute if a.name == "scale").f = float("nan")
        onnx.save(proto, out)
        assert run("verify", path, out).status == 3
        outcome = run("verify", path, out, "--json")
        assert outcome.status == 3
        found = json.loads(outcome.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert found["passed"] is False

    def test_unrelated_models(self, run, write):
        sentence = run("verify", write(), write(no_attention(), "other.onnx")).sentence
        assert "same inputs" in sentence

    def test_own_inputs(self, run, write, tmp_path):
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "x.npz", **{n: rng.standard_normal((2, 5, 16)).astype(np.float32) for n in "qkv"})
        path = write()
        found = document(run("verify", path, path, "--inputs", tmp_path / "x.npz", "--json"), schema=2)
        assert found["seed"] is None
        assert found["shapes"]["q"] == [2, 5, 16]
        assert "absent.npz" in run("verify", path, path, "--inputs", tmp_path / "absent.npz").sentence
        np.savez(tmp_path / "x.npz", q=np.zeros(3))
        assert "'q'" in run("verify", path, path, "--inputs", tmp_path / "x.npz").sentence

    def test_shapes(self, run, write):
        path = write(render(Meaning(), Spelling()))
        found = document(run("verify", path, path, "--shape", "q=1x7x16", "--json"), schema=2)
        assert found["shapes"]["k"] == [1, 7, 16]
        sentence = run("verify", path, path, "--shape", "q=1x7x17").sentence
        assert "1×7×17" in sentence
        assert "'nope'" in run("verify", path, path, "--shape", "nope=1").sentence


class TestSamples:
    def test_all_are_copied(self, run, samples, tmp_path):
        outcome = run("samples", tmp_path / "s")
        assert (outcome.status, outcome.err) == (0, "")
        names = sorted(path.name for path in samples.glob("*.onnx"))
        assert [Path(line).name for line in outcome.out.splitlines()] == names
        for name in names:
            assert (tmp_path / "s" / name).read_bytes() == (samples / name).read_bytes()

    def test_into_a_folder_of_that_name_unless_told(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run("samples").status == 0
        assert (tmp_path / "sample_models" / "f5_dit_fp16.onnx").exists()

    def test_what_is_there_is_kept(self, run, tmp_path):
        (tmp_path / "bert_fp32.onnx").write_bytes(b"mine")
        assert run("samples", tmp_path).status == 0
        assert (tmp_path / "bert_fp32.onnx").read_bytes() == b"mine"

    def test_where_there_can_be_no_folder(self, run, tmp_path):
        (tmp_path / "file").write_text("x")
        assert "can be written" in run("samples", tmp_path / "file").sentence


class TestAsAProgram:
    """The real thing, in processes of their own."""

    def run(self, *arguments: object, **options: object) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        command = [sys.executable, "-W", "error", "-m", "explorer", *map(os.fspath, arguments)]
        return subprocess.run(command, env=env, capture_output=True, check=False, timeout=120, **options)

    def test_scan(self, write):
        done = self.run("scan", write(), "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        assert json.loads(done.stdout)["schema"] == 1

    def test_fuse(self, write, tmp_path):
        done = self.run("fuse", write(), "-o", tmp_path / "out.onnx")
        assert (done.returncode, done.stderr) == (0, b"")
        assert "PASSED" in done.stdout.decode()

    def test_error_and_usage(self, tmp_path):
        done = self.run("scan", tmp_path / "absent.onnx")
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr.count(b"\n") == 1
        assert self.run("scan").returncode == 2

    @pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
    def test_a_termination_ends_it_like_an_interrupt(self, tmp_path):
        source = (
            "import os, signal, sys\n"
            "from explorer import cli\n"
            "from explorer.runtime import Worker\n"
            "def terminated(*_):\n"
            "    with Worker() as worker:\n"
            "        worker.call('explorer.runtime.environment:environment')\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "cli.scan.open_workspace = terminated\n"
            "sys.exit(cli.main(['scan', 'm.onnx']))\n"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, check=False, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"onnx-explorer: stopped\n")
        assert list(tmp_path.glob("onnx-explorer-*")) == []

    def test_a_terminal_that_cannot_show_an_arrow(self, write, tmp_path):
        """Redirected output on Windows is cp1252, which has no →."""
        done = self.run("fuse", write(), "-o", tmp_path / "out.onnx", "--no-verify", env={"PYTHONIOENCODING": "cp1252"})
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0
        assert b"Fused 1 of 1" in done.stdout

    def test_a_path_that_is_not_utf_8(self, write, tmp_path):
        path = os.path.join(os.fsencode(tmp_path), b"m\xff.onnx")  # noqa: PTH118
        shutil.copy(write(), path)
        for options in ([], ["--json"]):
            done = self.run("scan", os.fsdecode(path), *options, env={"PYTHONIOENCODING": "utf-8:strict"})
            assert b"Traceback" not in done.stderr
            assert done.returncode == 0

    def test_libraries_underneath_add_nothing(self, write):
        """onnx_ir logs a warning about this model, and logging prints it where nobody has set it up."""
        proto = no_attention()
        proto.graph.node[0].input[0] = "lost"
        done = self.run("scan", write(proto))
        assert done.returncode == 1
        assert done.stderr.decode().count("\n") == 1
        assert b"'lost'" in done.stderr

    def test_a_reader_that_leaves_early(self, write):
        """`onnx-explorer scan … | head -1`."""
        command = [sys.executable, "-m", "explorer", "scan", write(), "--json"]
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=pipe, stderr=subprocess.PIPE, check=False
            )
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
