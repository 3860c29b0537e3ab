"""What results were measured on, in strings."""

from __future__ import annotations

import pytest

from explorer.runtime import environment
from explorer.runtime.gpu import Gpu


def test_the_environment_names_what_is_there(worker):
    facts = worker.call("explorer.runtime.environment:environment")
    assert {"onnxruntime", "python", "platform", "cpu", "memory", "providers"} <= facts.keys()
    assert facts["providers"].endswith("CPUExecutionProvider")
    assert all(isinstance(value, str) and value for value in facts.values())


@pytest.fixture
def h200(monkeypatch):
    monkeypatch.setattr(environment, "cuda_obstacle", lambda context: None)
    monkeypatch.setattr(environment.gpu, "query", lambda: Gpu("NVIDIA H200", "580.95.05", "9.0", 150_754_820_096, 2))


def test_a_gpu_is_named_with_all_that_decides_which_kernels_it_has(context, monkeypatch, h200):
    monkeypatch.setattr(environment.metadata, "version", {"cupti-python": "13.0.1"}.__getitem__)
    facts = environment.environment(context)
    assert {name: facts[name] for name in ("gpu", "gpus", "driver", "compute_capability", "gpu_memory", "cupti")} == {
        "gpu": "NVIDIA H200",
        "gpus": "2",
        "driver": "580.95.05",
        "compute_capability": "9.0",
        "gpu_memory": "151 GB",
        "cupti": "13.0.1",
    }
    assert facts["providers"] == "CUDAExecutionProvider, CPUExecutionProvider"


def test_what_is_not_there_is_left_out(context, monkeypatch, h200):
    def missing(distribution):
        raise environment.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(environment.metadata, "version", missing)
    monkeypatch.setattr(environment.gpu, "query", lambda: Gpu("NVIDIA H200", "580.95.05", "", None, 1))
    assert not {"cupti", "compute_capability", "gpu_memory"} & environment.environment(context).keys()
