"""What a result was measured on, asked in the worker process."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib import metadata
from pathlib import Path

import onnxruntime as ort
import psutil

from explorer.runtime import gpu
from explorer.runtime.context import Context
from explorer.runtime.memory import in_words
from explorer.runtime.providers import PROVIDERS, cuda_obstacle


def environment(context: Context) -> dict[str, str]:
    """Versions and devices by name. What this machine does not have or does not tell is left out.

    onnxruntime, onnxruntime_build, python, platform, cpu, memory, providers; gpu, gpus (how many), driver,
    compute_capability, gpu_memory; cuda, cudnn, cupti where sessions run on CUDA.
    """
    facts = {
        "onnxruntime": ort.__version__,
        "onnxruntime_build": ort.get_build_info() if hasattr(ort, "get_build_info") else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "memory": in_words(psutil.virtual_memory().total),
    }
    obstacle = cuda_obstacle(context)
    usable = [name for key, name in PROVIDERS.items() if key == "cpu" or obstacle is None]
    facts["providers"] = ", ".join(usable)
    device = gpu.query()
    if device is not None:
        facts |= {
            "gpu": device.name,
            "gpus": str(device.count),
            "driver": device.driver,
            "compute_capability": device.compute_capability,
            "gpu_memory": device.memory_bytes and in_words(device.memory_bytes),
        }
    if obstacle is None:
        facts |= {
            "cuda": getattr(ort, "cuda_version", None),
            "cudnn": _cudnn_version(),
            "cupti": _version("cupti-python"),
        }
    return {name: value for name, value in facts.items() if value}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cudnn_version() -> str | None:
    """The version of the cuDNN 9 that this process has loaded or would load."""
    try:
        cudnn = ctypes.CDLL("cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9")
    except OSError:
        return None
    cudnn.cudnnGetVersion.restype = ctypes.c_size_t
    number = cudnn.cudnnGetVersion()  # 91002 is 9.10.2
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
