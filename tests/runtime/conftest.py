from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import psutil
import pytest

from explorer import errors
from explorer.runtime import arrays, client
from explorer.runtime.client import Worker
from explorer.runtime.context import Context

RUN = "explorer.runtime.sessions:run"
HEADER = '<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>'


@pytest.fixture(scope="session")
def worker():
    """One process for all the tests that leave it alive."""
    with Worker() as worker:
        yield worker


@pytest.fixture
def context(tmp_path):
    log = tmp_path / "log"
    log.touch()
    return Context(lambda fraction, text: None, tmp_path, log)


@pytest.fixture
def save_model(tmp_path):
    """Write a model given as ONNX text; the path."""

    def save(graph: str, header: str = HEADER) -> str:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx.parser.parse_model(header + graph).SerializeToString())
        return str(path)

    return save


@pytest.fixture
def endless(save_model, tmp_path) -> dict[str, str]:
    """Arguments for `sessions:run` with which it would run for years."""
    model = save_model(
        """g (int64 n, float[1] x) => (float[1] y) {
             on = Constant <value = bool {1}> ()
             y = Loop <body = b (int64 i, bool on_in, float[1] a) => (bool on_out, float[1] a_out)
                       { on_out = Identity (on_in) a_out = Add (a, a) }> (n, on, x)
           }"""
    )
    feeds = tmp_path / "feeds.npz"
    arrays.save(feeds, {"n": np.array(2**50), "x": np.zeros(1, np.float32)})
    return {"model": model, "feeds_npz": [str(feeds)], "out_npz": [str(tmp_path / "out.npz")], "provider": "cpu"}


@pytest.fixture
def program(monkeypatch):
    """Make the workers started from now on run a Python program of the test's own, or their own again.

    It has the first `call`, `say` to write bytes, `send` to send messages, and a USAGE to send with an answer.
    """
    own = client._COMMAND
    preamble = (
        "import os, sys, time\n"
        "from explorer.runtime.protocol import *\n"
        "USAGE = Usage(0.5, 1, 2, None)\n"
        "def say(data): sys.stdout.buffer.write(data); sys.stdout.flush()\n"
        "def send(*messages): say(b''.join(map(encode, messages)))\n"
        "call = decode(sys.stdin.buffer.readline())\n"
    )

    def replace(source: str | None) -> None:
        monkeypatch.setattr(client, "_COMMAND", own if source is None else (sys.executable, "-c", preamble + source))

    return replace


@pytest.fixture
def while_computing(endless):
    """Call a worker with endless native work, and from another thread do something as soon as that is under way."""

    def call(worker: Worker, act: Callable[[], object], **options) -> None:
        def watch() -> None:
            process = psutil.Process(worker.pid)
            before_s = process.cpu_times().user
            while process.cpu_times().user < before_s + 0.1:
                time.sleep(0.005)
            act()

        thread = threading.Thread(target=watch)
        try:
            worker.call(RUN, endless, on_progress=lambda fraction, text: thread.start(), **options)
        finally:
            if thread.ident is not None:  # it was started
                thread.join()

    return call


@pytest.fixture
def run(worker, tmp_path):
    """Run a model in the worker on arrays; its outputs as arrays, or the error that says why it did not run."""

    def run(model: str, feeds: dict[str, np.ndarray], **options) -> dict[str, np.ndarray]:
        feeds_npz, out_npz = Path(tmp_path, "feeds.npz"), Path(tmp_path, "out.npz")
        arrays.save(feeds_npz, feeds)
        args = {"model": model, "feeds_npz": [str(feeds_npz)], "out_npz": [str(out_npz)], "provider": "cpu", **options}
        (refused,) = worker.call(RUN, args)["refusals"]
        if refused is not None:
            raise getattr(errors, refused[0])(refused[1])
        return arrays.load(out_npz)

    return run
