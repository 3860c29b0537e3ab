"""Which execution provider is chosen, and in which words."""

from __future__ import annotations

import pytest

from explorer.errors import InputError, SessionError
from explorer.runtime import providers
from explorer.runtime.gpu import Gpu

H200 = Gpu("NVIDIA H200", "580.95.05", "9.0", 150_754_820_096, 1)


def test_auto_falls_back_in_words_and_cuda_says_what_to_do(context, monkeypatch):
    monkeypatch.setattr(providers, "cuda_obstacle", lambda context: "no NVIDIA GPU was found")
    assert providers.choose_provider(context, "auto") == ("cpu", "On the CPU, because no NVIDIA GPU was found.")
    with pytest.raises(SessionError) as caught:
        providers.choose_provider(context, "cuda")
    assert str(caught.value) == (
        "Provider cuda was asked for, but no NVIDIA GPU was found; run `pip install 'onnx-attention-explorer[cuda]'` "
        "on a machine with an NVIDIA GPU, or use provider cpu."
    )
    monkeypatch.setattr(providers, "cuda_obstacle", lambda context: None)
    assert providers.choose_provider(context, "auto")[0] == "cuda"
    assert providers.choose_provider(context, "cuda") == ("cuda", "On CUDA, as asked.")


class FakeSession:
    """A session that prints what onnxruntime-gpu prints where its libraries are missing, and is a CPU session."""

    log = None
    said = ""
    providers = ("CPUExecutionProvider",)

    def __init__(self, *args, **options):
        self.log.write_text(self.said)

    def get_providers(self):
        return list(self.providers)


@pytest.mark.parametrize(
    ("said", "has_gpu", "obstacle"),
    [
        (
            "error: libcublasLt.so.13: cannot open shared object file: No such",
            True,
            "CUDA's library libcublasLt.so.13 is",
        ),
        ("error: libcublasLt.so.13: cannot open shared object file: No such", False, "no NVIDIA GPU with a driver"),
        ("something else", True, "could not load its CUDA libraries"),
    ],
)
def test_the_obstacle_to_cuda_is_what_stands_first_in_the_way(context, monkeypatch, said, has_gpu, obstacle):
    monkeypatch.setattr(FakeSession, "log", context.log_path)
    monkeypatch.setattr(FakeSession, "said", said)
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
    monkeypatch.setattr(providers.ort, "InferenceSession", FakeSession)
    monkeypatch.setattr(providers, "_preload_cuda", lambda: None)
    monkeypatch.setattr(providers.gpu, "query", lambda: H200 if has_gpu else None)
    assert obstacle in providers.cuda_obstacle(context)
    monkeypatch.setattr(FakeSession, "providers", ("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert providers.cuda_obstacle(context) is None


def test_a_build_without_cuda_is_an_obstacle(context, monkeypatch):
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "built without CUDA" in providers.cuda_obstacle(context)


def test_another_provider_is_an_input_error(context):
    with pytest.raises(InputError, match="auto, cuda or cpu, found 'tpu'"):
        providers.choose_provider(context, "tpu")


def test_cuda_that_does_not_start_says_why(context, monkeypatch):
    def session(*args, **options):
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=secret ; expr=cudaMalloc();")

    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
    monkeypatch.setattr(providers.ort, "InferenceSession", session)
    assert providers.cuda_obstacle(context) == "CUDA does not start: it ran out of GPU memory"


def test_the_memory_of_others_is_noted_before_cuda_is_first_used(context, monkeypatch):
    happened = []
    monkeypatch.setattr(FakeSession, "log", context.log_path)
    monkeypatch.setattr(FakeSession, "__init__", lambda *args, **options: happened.append("session"))
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
    monkeypatch.setattr(providers.ort, "InferenceSession", FakeSession)
    monkeypatch.setattr(providers.gpu, "before_use", lambda: happened.append("noted"))
    providers.cuda_obstacle(context)
    assert happened == ["noted", "session"]
