"""Models as ONNX text, written to files and opened."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx.parser
import pytest

from explorer.model import Model, load

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'

Write = Callable[..., Path]
Open = Callable[..., Model]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph given as ONNX text, a ModelProto or bytes to a file; its path."""

    def write(graph: str | onnx.ModelProto | bytes, name: str = "model.onnx", header: str = HEADER) -> Path:
        if isinstance(graph, str):
            graph = onnx.parser.parse_model(header + graph)
        path = tmp_path / name
        path.write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
        return path

    return write


@pytest.fixture
def opened(write: Write) -> Open:
    """Write a graph and load it."""
    return lambda *args, **kwargs: load(write(*args, **kwargs))


@pytest.fixture
def in_time() -> Iterator[None]:
    """The test fails after ten seconds: who waits for a pipe waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
