"""The NVIDIA GPU that CUDA uses: what it is and what state it is in.

The CUDA driver says which device that is and nvidia-smi what is to be known of it. Asking the driver initialises CUDA
in this process (no context, no memory), so the functions here are for the worker; the values are for everyone.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from explorer.runtime.memory import in_words

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MIB = 2**20
_PATIENCE_S = 20  # nvidia-smi takes 20 ms, but seconds where it has to wake the driver up first

_GPU = ("name", "driver_version", "compute_cap", "memory.total")
_STATE = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "memory.used",
    "memory.total",
    "clocks_event_reasons.active",
)
_PROCESSES = ("pid", "process_name", "used_memory")

_HELD_BACK = (  # NVML's nvmlClocksEventReason… bits
    ("power cap", 0x04 | 0x80),  # software's cap, external power brake
    ("heat", 0x20 | 0x40),  # software's and hardware's thermal slowdown
    ("hardware slowdown", 0x08),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    name                "NVIDIA H200"
    driver              its driver's version, "580.95.05"
    compute_capability  "9.0"; "" if it does not tell
    memory_bytes        all that it has; None if it does not tell
    count               how many GPUs this process may use, this one included
    """

    name: str
    driver: str
    compute_capability: str
    memory_bytes: int | None
    count: int


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU at one moment. None where it does not tell.

    held_back_by  what keeps its clocks down: "power cap", "heat", "hardware slowdown"
    others        other processes that compute on it, "python3 (pid 123), 1.2 GB"; the names are theirs, so untrusted
    """

    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    held_back_by: tuple[str, ...]
    others: tuple[str, ...]


_used_before: int | None = None  # bytes in use on the device when this process was about to use it


def query() -> Gpu | None:
    """The GPU that CUDA calls device 0 in this process; None without one, or when nvidia-smi is not there to ask."""
    found = _first_device()
    return None if found is None else parse_gpu(_ask(found[0], "gpu", _GPU), found[1])


def state() -> GpuState | None:
    """The state of the GPU that CUDA calls device 0 in this process; None where `query` is None."""
    found = _first_device()
    if found is None:
        return None
    return parse_state(_ask(found[0], "gpu", _STATE), _ask(found[0], "compute-apps", _PROCESSES), os.getpid())


def before_use() -> None:
    """Note how much of the device's memory others use: to be called before this process's first CUDA session."""
    global _used_before
    if _used_before is None:
        _used_before = _used_bytes()


def held_bytes() -> int | None:
    """What the memory in use on the device has grown by since `before_use`; None if this process does not use it.

    That is this process's own unless others came or went meanwhile. nvidia-smi's list of processes would be exact, but
    is empty in containers and virtual machines.
    """
    now = None if _used_before is None else _used_bytes()
    return None if now is None or _used_before is None else max(0, now - _used_before)


def has_failed() -> bool:
    """Whether CUDA has failed for good in this process, by an illegal access, say: then all its later calls fail."""
    driver, cuda_context = _driver(), ctypes.c_void_p()
    return (
        driver is not None
        and driver.cuCtxGetCurrent(ctypes.byref(cuda_context)) == 0
        and bool(cuda_context)
        and driver.cuCtxSynchronize() != 0
    )


def parse_gpu(csv: str, count: int) -> Gpu | None:
    """The GPU in nvidia-smi's line; None if there is no such line."""
    cells = _cells(csv, len(_GPU))
    if cells is None:
        return None
    name, driver, capability, memory = cells
    return Gpu(name, driver, capability if _number(capability) else "", _bytes(memory), count)


def parse_state(gpu_csv: str, processes_csv: str, own_pid: int) -> GpuState | None:
    """The state in nvidia-smi's line and the processes, all but `own_pid`, in its other lines; None without a line."""
    cells = _cells(gpu_csv, len(_STATE))
    if cells is None:
        return None
    sm, max_sm, memory, temperature, power, limit, used, total, reasons = cells
    mask = int(reasons, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) else 0
    processes = [re.fullmatch(r"(\d+), (.*), ([^,]*)", line.strip()) for line in processes_csv.splitlines()]
    return GpuState(
        sm_clock_mhz=_whole(sm),
        max_sm_clock_mhz=_whole(max_sm),
        memory_clock_mhz=_whole(memory),
        temperature_c=_whole(temperature),
        power_w=_number(power),
        power_limit_w=_number(limit),
        memory_used_bytes=_bytes(used),
        memory_total_bytes=_bytes(total),
        held_back_by=tuple(word for word, bits in _HELD_BACK if mask & bits),
        others=tuple(_process(*found.groups()) for found in processes if found and int(found[1]) != own_pid),
    )


def _process(pid: str, path: str, mib: str) -> str:
    name, size = re.split(r"[\\/]", path)[-1], _bytes(mib)
    return f"{name} (pid {pid})" + ("" if size is None else f", {in_words(size)}")


def _first_device() -> tuple[str, int] | None:
    """(PCI bus id of CUDA's device 0, number of devices); None without one.

    The driver heeds CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, so that its device 0 may be another than nvidia-smi's.
    """
    driver, count, device = _driver(), ctypes.c_int(), ctypes.c_int()
    bus_id = ctypes.create_string_buffer(32)
    if (
        driver is None
        or driver.cuInit(0) != 0
        or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
        or driver.cuDeviceGet(ctypes.byref(device), 0) != 0
        or driver.cuDeviceGetPCIBusId(bus_id, len(bus_id), device) != 0
    ):
        return None
    return bus_id.value.decode(), count.value


def _used_bytes() -> int | None:
    found = _first_device()
    return None if found is None else _bytes(_ask(found[0], "gpu", ("memory.used",)))


def _driver() -> Any:
    """The CUDA driver's library; None without one."""
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError:
        return None


def _ask(bus_id: str, subject: str, fields: Sequence[str]) -> str:
    """What nvidia-smi prints about one GPU, as CSV without units; "" if it does not answer."""
    command = ["nvidia-smi", "-i", bus_id, f"--query-{subject}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        # Its own stdin: the worker's carries the calls.
        return subprocess.check_output(command, stdin=subprocess.DEVNULL, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.SubprocessError):
        return ""


def _cells(csv: str, count: int) -> list[str] | None:
    """The cells of the first line; None if they are not as many."""
    cells = csv.strip().partition("\n")[0].split(", ")
    return cells if len(cells) == count else None


def _number(cell: str) -> float | None:
    """A cell as a number; None for "[N/A]", "[Not Supported]" and the like."""
    try:
        return float(cell)
    except ValueError:
        return None


def _whole(cell: str) -> int | None:
    number = _number(cell)
    return None if number is None else round(number)


def _bytes(mib: str) -> int | None:
    number = _number(mib)
    return None if number is None else round(number * _MIB)
