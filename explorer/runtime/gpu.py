"""What nvidia-smi says about the machine's first GPU."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """The name of a GPU ("NVIDIA H200") and the version of its driver."""

    name: str
    driver: str


def query() -> Gpu | None:
    """The first NVIDIA GPU of this machine; None without one, or when nvidia-smi is not there to ask."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        # Its own stdin: the worker's carries the calls.
        answer = subprocess.check_output(command, stdin=subprocess.DEVNULL, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, driver = answer.strip().partition("\n")[0].rpartition(", ")
    return Gpu(name, driver) if name else None
