"""One worker process for all tests of tuning, a cache of each test's own, and models in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from explorer.model import Model, load
from explorer.runtime import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[onnx.ModelProto], Model]:
    def opened(proto: onnx.ModelProto) -> Model:
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return load(path)

    return opened


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv("ONNX_EXPLORER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tunings"
