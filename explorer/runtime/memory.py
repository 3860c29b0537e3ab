"""How much of the machine's memory a process uses, asked by itself or by another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

_HIGH_WATER = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory: now, and the most since the process started (now, where the system keeps no record of it)."""

    rss_bytes: int
    peak_rss_bytes: int


def memory(pid: int) -> Memory | None:
    """The memory of a running process; None if there is none."""
    try:
        info = psutil.Process(pid).memory_info()
        # Not getrusage: its peak is that of the process's parent, if that had more when it started this one.
        record = _HIGH_WATER.search(Path(f"/proc/{pid}/status").read_text()) if psutil.LINUX else None
    except (psutil.Error, OSError):
        return None
    peak = int(record[1]) * 1024 if record else getattr(info, "peak_wset", 0)
    return Memory(info.rss, max(info.rss, peak))


def in_words(count: float) -> str:
    """A number of bytes for people: "4.29 GB", "340 kB", "0 B"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"
