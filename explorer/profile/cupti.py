"""What the GPU does, as NVIDIA's CUPTI records it, in the worker process. Needs the package cupti-python.

CUPTI slows every launch as long as it is attached to a process, even with all its activities off (an H200 took 4.9 ms
for runs of 4.3 ms), so it is attached for a trace and let go of after it.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from explorer.errors import ExplorerError
from explorer.profile.kernels import demangler
from explorer.profile.recording import GpuWork, Launch
from explorer.profile.trace import CopyKind

BUFFER_BYTES = 8 << 20
_FLUSH_FORCED = 1  # CUPTI_ACTIVITY_FLAG_FLUSH_FORCED: buffers that are not full, too
_CALLS = ("RUNTIME", "DRIVER")
_COPIES: dict[str, CopyKind] = {"HTOD": "host to device", "DTOH": "device to host", "DTOD": "device to device"}


class NoTracer(ExplorerError):
    """Nothing in this process sees the GPU's work; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The GPU's work, the calls that launched it, both in order, and how many records CUPTI had no room for."""

    launches: tuple[Launch, ...]
    work: tuple[GpuWork, ...]
    dropped: int


@contextmanager
def attached() -> Iterator[Collector]:
    """CUPTI, attached to this process. NoTracer if it is not installed or does not start."""
    try:
        cupti = importlib.import_module("cupti.cupti")
    except ImportError as error:
        raise NoTracer(f"CUPTI cannot be used: {_words(error)}; run `pip install cupti-python`.") from error
    with _refusing("does not start"):
        collector = Collector(cupti)
    try:
        yield collector
    finally:
        with _refusing("does not stop"):
            cupti.finalize()


class Collector:
    """Collects what the GPU does while a function runs."""

    def __init__(self, cupti: Any) -> None:
        self._cupti = cupti
        kinds = cupti.ActivityKind
        self._calls = {int(kinds[name]) for name in _CALLS}
        self._kernel, self._memcpy, self._memset = (
            int(kinds[name]) for name in ("CONCURRENT_KERNEL", "MEMCPY", "MEMSET")
        )
        self._copies = {int(cupti.ActivityMemcpyKind[name]): kind for name, kind in _COPIES.items()}
        self._demangle = demangler()
        self._clear()
        cupti.activity_register_callbacks(self._give_buffer, self._take_records)

    def collect(self, work: Callable[[], None]) -> Collected:
        """What the GPU did during `work`, which must wait for it to finish. NoTracer if CUPTI fails at that."""
        cupti, kinds = self._cupti, (*self._calls, self._kernel, self._memcpy, self._memset)
        self._clear()
        with _refusing("does not start"):
            for kind in kinds:
                cupti.activity_enable(kind)
        try:
            work()
        finally:
            with _refusing("does not give its records"):
                cupti.activity_flush_all(_FLUSH_FORCED)
                dropped = ctypes.c_size_t()
                cupti.activity_get_num_dropped_records(0, 0, ctypes.addressof(dropped))
                for kind in kinds:
                    cupti.activity_disable(kind)
        if self._failure is not None:
            raise NoTracer(f"CUPTI's records cannot be read: {_words(self._failure)}.") from self._failure
        needed = {done.correlation for done in self._work}
        launches = sorted((start, end, correlation) for correlation, start, end in self._seen if correlation in needed)
        return Collected(
            tuple(Launch(correlation, start, end) for start, end, correlation in launches),
            tuple(sorted(self._work, key=lambda done: (done.start_ns, done.end_ns))),
            dropped.value,
        )

    def _clear(self) -> None:
        self._seen: list[
            tuple[int, int, int]
        ] = []  # correlation id, start, end of each call, most of which launch nothing
        self._work: list[GpuWork] = []
        self._failure: Exception | None = None

    def _give_buffer(self) -> tuple[int, int]:
        return BUFFER_BYTES, 0  # 0: as many records as fit

    def _take_records(self, records: list[Any]) -> None:
        """Runs on a thread of CUPTI's. Reading a field takes microseconds, so it reads what is needed and no more."""
        try:
            for record in records:
                kind = record.kind
                if kind in self._calls:
                    self._seen.append((record.correlation_id, record.start, record.end))
                else:
                    self._work.append(self._read(kind, record))
        except Exception as error:  # noqa: BLE001 - nothing catches what is raised on a thread of CUPTI's
            self._failure = error

    def _read(self, kind: int, record: Any) -> GpuWork:
        correlation, stream, start, end = record.correlation_id, record.stream_id, record.start, record.end
        if kind == self._kernel:
            return GpuWork("kernel", self._demangle(record.name), correlation, stream, start, end, 0)
        what: CopyKind = "memset" if kind == self._memset else self._copies.get(record.copy_kind, "other copy")
        return GpuWork(what, "", correlation, stream, start, end, record.bytes)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # cupti-python's own error, or whatever loading NVIDIA's library can raise
        if isinstance(error, ExplorerError):
            raise
        raise NoTracer(f"CUPTI {what}: {_words(error)}.") from error


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
