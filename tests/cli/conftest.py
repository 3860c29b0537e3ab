"""The command line run in this process, with one worker process for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render

from explorer import cli
from explorer.runtime import Worker
from explorer.verify import verdict as judgement


class Shared:
    """Stands in for `Worker`: every command believes it has one of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self._worker.call(*args, **kwargs)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence on stderr, of a command that refused."""
        assert self.status == 1, self
        assert self.err.startswith("onnx-explorer: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("onnx-explorer: ").strip()


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def run(worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command; usage errors come back as an outcome too."""
    for module in ("explorer.cli.profile", "explorer.cli.verify", "explorer.workspace.workspace"):
        monkeypatch.setattr(f"{module}.Worker", lambda: Shared(worker))

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 1
        return Outcome(status, *capfd.readouterr())

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a model (plain attention unless another is given) to a file."""

    def write(proto: onnx.ModelProto | bytes | None = None, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        proto = render(Meaning(), Spelling(dynamic=False)) if proto is None else proto
        path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
        return path

    return write


@pytest.fixture
def failing(monkeypatch):
    """No error is small enough."""
    monkeypatch.setattr(judgement, "ALLOWED_FACTOR", 0.0)
    monkeypatch.setattr(judgement, "ALLOWED_FLOOR", dict.fromkeys(judgement.ALLOWED_FLOOR, -1.0))
