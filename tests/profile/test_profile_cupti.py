from __future__ import annotations

import ctypes
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import pytest

from explorer.errors import SessionError
from explorer.profile import cupti
from explorer.profile.cupti import Collected, NoTracer
from explorer.profile.recording import GpuWork, Launch


class ActivityKind(IntEnum):
    MEMCPY = 1
    MEMSET = 2
    DRIVER = 4
    RUNTIME = 5
    CONCURRENT_KERNEL = 10


class ActivityMemcpyKind(IntEnum):
    HTOD = 1
    DTOH = 2
    DTOD = 8
    PTOP = 10


class FakeCupti(ModuleType):
    """cupti-python as far as it is used: it gives `records`, and fails where `broken` says."""

    ActivityKind = ActivityKind
    ActivityMemcpyKind = ActivityMemcpyKind

    def __init__(self, records=(), dropped=0, broken=""):
        super().__init__("cupti.cupti")
        self.records, self.dropped, self.broken = records, dropped, broken
        self.calls, self.enabled = [], set()

    def _call(self, name):
        self.calls.append(name)
        if name == self.broken:
            raise RuntimeError("CUPTI_ERROR_UNKNOWN:\n it broke")

    def activity_register_callbacks(self, requested, completed):
        self._call("register")
        assert requested() == (cupti.BUFFER_BYTES, 0)
        self.completed = completed

    def activity_enable(self, kind):
        self._call("enable")
        self.enabled.add(kind)

    def activity_disable(self, kind):
        self._call("disable")
        self.enabled.remove(kind)

    def activity_flush_all(self, flag):
        self._call("flush")
        assert flag == 1
        for record in self.records:
            if record.kind in self.enabled:
                self.completed([record])

    def activity_get_num_dropped_records(self, context, stream, address):
        ctypes.c_size_t.from_address(address).value = self.dropped

    def finalize(self):
        self._call("finalize")


@pytest.fixture
def install(monkeypatch):
    def install(*args, **kwargs):
        fake = FakeCupti(*args, **kwargs)
        monkeypatch.setitem(sys.modules, "cupti", ModuleType("cupti"))
        monkeypatch.setitem(sys.modules, "cupti.cupti", fake)
        return fake

    return install


def call(kind, correlation, start, end):
    return SimpleNamespace(kind=kind, correlation_id=correlation, start=start, end=end)


def done(kind, correlation, start, end, **more):
    return SimpleNamespace(kind=kind, correlation_id=correlation, stream_id=7, start=start, end=end, **more)


RECORDS = [
    done(ActivityKind.MEMCPY, 4, 40, 41, bytes=64, copy_kind=8),
    done(ActivityKind.MEMCPY, 6, 60, 61, bytes=16, copy_kind=10),
    done(ActivityKind.MEMSET, 3, 31, 33, bytes=4),
    call(ActivityKind.DRIVER, 4, 14, 15),
    call(ActivityKind.RUNTIME, 1, 11, 12),
    call(ActivityKind.RUNTIME, 2, 12, 13),  # cudaEventRecord, or another that launches nothing
    call(ActivityKind.RUNTIME, 3, 13, 14),
    done(ActivityKind.CONCURRENT_KERNEL, 1, 20, 30, name="nvjet_sm90"),
]


def test_work_and_the_calls_that_launched_it_are_collected_in_order(install):
    fake = install(RECORDS, dropped=5)
    with cupti.attached() as collector:
        found = collector.collect(lambda: fake.calls.append("work"))
    assert found == Collected(
        launches=(Launch(1, 11, 12), Launch(3, 13, 14), Launch(4, 14, 15)),
        work=(
            GpuWork("kernel", "nvjet_sm90", 1, 7, 20, 30, 0),
            GpuWork("memset", "", 3, 7, 31, 33, 4),
            GpuWork("device to device", "", 4, 7, 40, 41, 64),
            GpuWork("other copy", "", 6, 7, 60, 61, 16),
        ),
        dropped=5,
    )
    assert fake.calls == ["register", *["enable"] * 5, "work", "flush", *["disable"] * 5, "finalize"]


def test_each_collection_is_its_own(install):
    install(RECORDS)
    with cupti.attached() as collector:
        assert collector.collect(lambda: None) == collector.collect(lambda: None)


def test_it_is_detached_after_a_failure_of_what_is_traced(install):
    fake = install(RECORDS)

    def work():
        raise SessionError("out of memory.")

    with pytest.raises(SessionError, match="out of memory"), cupti.attached() as collector:
        collector.collect(work)
    assert fake.enabled == set()
    assert fake.calls[-1] == "finalize"


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("register", r"^CUPTI does not start: CUPTI_ERROR_UNKNOWN: it broke\.$"),
        ("enable", r"^CUPTI does not start: "),
        ("flush", r"^CUPTI does not give its records: "),
        ("finalize", r"^CUPTI does not stop: "),
    ],
)
def test_its_failures_are_sentences(install, broken, sentence):
    install(broken=broken)
    with pytest.raises(NoTracer, match=sentence), cupti.attached() as collector:
        collector.collect(lambda: None)


def test_records_that_cannot_be_read_are_a_failure(install):
    install([SimpleNamespace(kind=ActivityKind.MEMSET)])
    with pytest.raises(NoTracer, match="cannot be read"), cupti.attached() as collector:
        collector.collect(lambda: None)


def test_without_cupti_python_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupti", None)
    with pytest.raises(NoTracer, match="pip install cupti-python"), cupti.attached():
        pass
