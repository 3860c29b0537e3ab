from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from explorer import errors
from explorer.runtime import arrays
from explorer.runtime.client import Worker

HEADER = '<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>'


@pytest.fixture(scope="session")
def worker():
    """One process for all the tests that leave it alive."""
    with Worker() as worker:
        yield worker


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
def run(worker, tmp_path):
    """Run a model in the worker on arrays; its outputs as arrays, or the error that says why it did not run."""

    def run(model: str, feeds: dict[str, np.ndarray], **options) -> dict[str, np.ndarray]:
        feeds_npz, out_npz = Path(tmp_path, "feeds.npz"), Path(tmp_path, "out.npz")
        arrays.save(feeds_npz, feeds)
        args = {"model": model, "feeds_npz": [str(feeds_npz)], "out_npz": [str(out_npz)], "provider": "cpu", **options}
        (refused,) = worker.call("explorer.runtime.sessions:run", args)["refusals"]
        if refused is not None:
            raise getattr(errors, refused[0])(refused[1])
        return arrays.load(out_npz)

    return run
