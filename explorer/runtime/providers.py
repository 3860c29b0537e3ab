"""Which execution provider sessions run on here, asked in the worker process."""

from __future__ import annotations

import re
from functools import cache

import onnxruntime as ort
from onnx import TensorProto, helper

from explorer.errors import InputError, SessionError
from explorer.runtime import gpu
from explorer.runtime.context import Context
from explorer.runtime.refusals import reason

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_MISSING_LIBRARY = re.compile(r"(\S+): cannot open shared object file")


def choose_provider(context: Context, provider: str) -> tuple[str, str]:
    """("cuda" or "cpu", why, in a sentence) for the `provider` that a user asked for: "auto", "cuda" or "cpu".

    onnxruntime-gpu names CUDA among its providers on every machine, and where CUDA does not work it quietly makes a CPU
    session. So this makes a session of one node and looks at what it got. SessionError when "cuda" is not there.
    """
    if provider == "cpu":
        return "cpu", "On the CPU, as asked."
    if provider not in ("auto", "cuda"):
        raise InputError(f"Expected the provider to be auto, cuda or cpu, found {provider!r}; choose one of the three.")
    obstacle = cuda_obstacle(context)
    if obstacle is None:
        return "cuda", "On CUDA, as asked." if provider == "cuda" else "On CUDA, because a session really runs there."
    if provider == "auto":
        return "cpu", f"On the CPU, because {obstacle}."
    raise SessionError(
        f"Provider cuda was asked for, but {obstacle}; "
        "run `pip install 'onnx-attention-explorer[cuda]'` on a machine with an NVIDIA GPU, or use provider cpu."
    )


def cuda_obstacle(context: Context) -> str | None:
    """Why no session runs on CUDA here, as a clause ("no NVIDIA GPU was found"); None when one does."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} is built without CUDA"
    mark = context.log_mark()
    gpu.before_use()
    _preload_cuda()
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "probe", [x], [y]), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    try:
        names = list(PROVIDERS.values())
        session = ort.InferenceSession(model.SerializeToString(), providers=names, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - the provider's own start can fail in as many ways as drivers can
        return f"CUDA does not start: {reason(str(error), 'GPU memory')}"
    if PROVIDERS["cuda"] in session.get_providers():
        return None
    if gpu.query() is None:
        return "no NVIDIA GPU with a driver was found (nvidia-smi does not answer)"
    missing = _MISSING_LIBRARY.search(context.log_since(mark))
    if missing:
        return f"CUDA's library {missing[1]} is not installed"
    return f"onnxruntime {ort.__version__} could not load its CUDA libraries"


@cache
def _preload_cuda() -> None:
    """Let ONNX Runtime find the CUDA and cuDNN libraries that pip installed."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
