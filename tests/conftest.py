"""What many tests need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "sample_models")]

SAMPLES = ROOT / "sample_models"


@pytest.fixture(autouse=True)
def _own_tunings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was tuned on this machine is none of a test's business, nor the other way round."""
    monkeypatch.setenv("ONNX_EXPLORER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the sample models."""
    return SAMPLES


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a model into the test's folder and return its path."""

    def write(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
