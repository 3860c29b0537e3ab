"""One time limit for all that a profile does: finding inputs, asking for the environment, measuring."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from attention_graphs import Meaning, Spelling, render

from explorer import cli
from explorer.model import load
from explorer.workspace import Workspace


class Clocked:
    """A worker that notes how long each call may take. By the clock of deadlines a call takes a second."""

    def __init__(self, worker):
        self.limits_s = []
        self.now_s = 0.0
        self._worker = worker

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, function, args=None, *, timeout_s=None, **options):
        self.limits_s.append((function.rpartition(":")[2], timeout_s))
        self.now_s += 1
        return self._worker.call(function, args, **options)


@pytest.fixture
def clocked(worker, monkeypatch):
    clocked = Clocked(worker)
    monkeypatch.setattr("explorer.runtime.deadline.time", SimpleNamespace(monotonic=lambda: clocked.now_s))
    return clocked


@pytest.fixture
def path(folder):
    path = folder / "model.onnx"
    path.write_bytes(render(Meaning(), Spelling()).SerializeToString())
    return path


LIMITS_S = [("run", 100.0), ("run", 99.0), ("environment", 98.0), ("measure", 97.0)]


def test_of_a_workspace(clocked, path):
    ws = Workspace(load(path), worker=clocked)
    ws.profile(shapes=[{}, {}], runs=1, cuda_graph=True, trace=False, timeout_s=100.0)
    assert clocked.limits_s == LIMITS_S


def test_of_the_command(clocked, path, monkeypatch, capsys):
    monkeypatch.setattr("explorer.cli.profile.Worker", lambda: clocked)
    monkeypatch.setattr("explorer.cli.profile.parse_shapes", lambda texts: [{}, {}])
    options = ["--runs", "1", "--no-trace", "--cuda-graph", "--time-limit", "100"]
    assert cli.main(["profile", str(path), *options]) == 0
    assert clocked.limits_s == LIMITS_S


def test_without_one(clocked, path):
    Workspace(load(path), worker=clocked).profile(runs=1, trace=False)
    assert clocked.limits_s == [("run", None), ("measure", None)]
