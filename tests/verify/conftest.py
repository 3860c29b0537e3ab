"""One worker process for all tests of verification, and small models in which attention is the whole graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx.parser
import pytest

from explorer.model import Model, load
from explorer.runtime import Worker

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Model]:
    """Write a graph (ONNX text or a ModelProto) to a file and load it."""

    def opened(graph: str | onnx.ModelProto, name: str = "model.onnx", header: str = HEADER) -> Model:
        proto = onnx.parser.parse_model(header + graph) if isinstance(graph, str) else graph
        path = tmp_path / name
        path.write_bytes(proto.SerializeToString())
        return load(path)

    return opened
