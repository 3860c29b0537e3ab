"""Workspaces that share one worker process, on models in which attention is the whole graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render

from explorer.model import load
from explorer.runtime import Worker
from explorer.workspace import Workspace


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def workspace(tmp_path: Path, worker: Worker) -> Callable[..., Workspace]:
    """Open a model (an attention graph unless another is given) with the shared worker, which nobody closes."""

    def workspace(proto: onnx.ModelProto | None = None, name: str = "model.onnx") -> Workspace:
        path = tmp_path / name
        path.write_bytes((proto or render(Meaning(), Spelling())).SerializeToString())
        return Workspace(load(path), worker=worker)

    return workspace
