"""What is known of a GPU, without one: nvidia-smi's text, and stand-ins for it and for the CUDA driver."""

from __future__ import annotations

import os
import stat

import pytest

from explorer.runtime import gpu
from explorer.runtime.gpu import Gpu, GpuState

GIB = 2**30


class Driver:
    """The CUDA driver's library of a machine with these GPUs."""

    def __init__(self, *bus_ids: str, context: int = 0, status: int = 0) -> None:
        self.bus_ids, self.context, self.status = bus_ids, context, status

    def cuInit(self, flags):  # noqa: N802
        return 0 if self.bus_ids else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.bus_ids)
        return 0

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal + 7  # a handle, not the ordinal
        return 0

    def cuDeviceGetPCIBusId(self, text, size, device):  # noqa: N802
        text.value = self.bus_ids[device.value - 7].encode()
        return 0

    def cuCtxGetCurrent(self, context):  # noqa: N802
        context._obj.value = self.context
        return 0

    def cuCtxSynchronize(self):  # noqa: N802
        return self.status


@pytest.fixture
def driver(monkeypatch):
    """Put a driver in the place of the machine's own."""
    monkeypatch.setattr(gpu, "_used_before", None)
    return lambda library: monkeypatch.setattr(gpu, "_driver", lambda: library)


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Put a program in the place of nvidia-smi: the body of a shell script."""
    path = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def write(script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


def test_a_state_has_numbers_in_units_of_the_field():
    line = "1980, 1980, 3201, 43, 125.90, 700.00, 4, 143771, 0x0000000000000000\n"
    assert gpu.parse_state(line, "", 1) == GpuState(
        1980, 1980, 3201, 43, 125.9, 700.0, 4 * 2**20, 143771 * 2**20, (), ()
    )


@pytest.mark.parametrize("missing", ["[N/A]", "[Not Supported]", "N/A", "[Unknown Error]", "[GPU requires reset]"])
def test_what_it_does_not_tell_is_none(missing):
    state = gpu.parse_state(", ".join([missing] * 9), "", 1)
    assert state == GpuState(None, None, None, None, None, None, None, None, (), ())


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        ("0x0000000000000001", ()),  # idle
        ("0x0000000000000004", ("power cap",)),
        ("0x0000000000000080", ("power cap",)),  # external power brake
        ("0x0000000000000020", ("heat",)),
        ("0x0000000000000048", ("heat", "hardware slowdown")),
        ("0x00000000000000EC", ("power cap", "heat", "hardware slowdown")),
    ],
)
def test_what_holds_it_back_is_said_in_words(reasons, words):
    state = gpu.parse_state(f"345, 1980, 3201, 88, 699.1, 700.00, 4, 143771, {reasons}", "", 1)
    assert state.held_back_by == words


def test_other_processes_are_named_without_their_folders():
    processes = (
        "41, /usr/bin/python3, 1144\n42, C:\\Program Files\\a, b.exe, [N/A]\n43, ./me, 9\n44, [Not Found], 8\nNo more\n"
    )
    state = gpu.parse_state(", ".join(["1"] * 9), processes, own_pid=43)
    assert state.others == ("python3 (pid 41), 1.2 GB", "a, b.exe (pid 42)", "[Not Found] (pid 44), 8.39 MB")


@pytest.mark.parametrize(
    "text", ["", "\n", "No devices were found", "Unable to determine the device handle, Unknown Error"]
)
def test_what_is_no_answer_is_none(text):
    assert gpu.parse_state(text, "", 1) is None
    assert gpu.parse_gpu(text, 1) is None


def test_a_gpu_is_told_with_how_many_there_are():
    line = "NVIDIA H200, 580.159.04, 9.0, 143771\nnext\n"
    assert gpu.parse_gpu(line, 8) == Gpu("NVIDIA H200", "580.159.04", "9.0", 143771 * 2**20, 8)
    assert gpu.parse_gpu("Tesla K80, 470.1, [N/A], [N/A]", 1) == Gpu("Tesla K80", "470.1", "", None, 1)


def test_of_several_gpus_the_one_that_cuda_uses_is_asked(driver, nvidia_smi):
    driver(Driver("0000:3B:00.0", "0000:86:00.0"))
    nvidia_smi('echo "GPU at $2, 580.1, 9.0, 1024"')
    assert gpu.query() == Gpu("GPU at 0000:3B:00.0", "580.1", "9.0", GIB, 2)


def test_the_state_is_asked_with_the_fields_that_are_read(driver, nvidia_smi):
    driver(Driver("0000:3B:00.0"))
    nvidia_smi(
        'case "$3 $4" in\n'
        '"--query-gpu=clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit,memory.used,memory.total,'
        'clocks_event_reasons.active --format=csv,noheader,nounits") echo "1, 2, 3, 4, 5.5, 6.5, 7, 8, 0x4" ;;\n'
        '"--query-compute-apps=pid,process_name,used_memory --format=csv,noheader,nounits") echo "1, init, 9" ;;\n'
        "*) exit 2 ;; esac"
    )
    assert gpu.state() == GpuState(
        1, 2, 3, 4, 5.5, 6.5, 7 * 2**20, 8 * 2**20, ("power cap",), ("init (pid 1), 9.44 MB",)
    )


@pytest.mark.parametrize("library", [None, Driver()], ids=["no driver", "no device"])
def test_without_a_gpu_nobody_is_asked(driver, nvidia_smi, library):
    driver(library)
    nvidia_smi("echo NVIDIA H200, 580.1, 9.0, 1024")
    assert gpu.query() is None
    assert gpu.state() is None


def test_without_nvidia_smi_nothing_is_known(driver, monkeypatch, tmp_path):
    driver(Driver("0000:3B:00.0"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.query() is None
    assert gpu.state() is None


def test_an_nvidia_smi_that_fails_says_nothing(driver, nvidia_smi):
    driver(Driver("0000:3B:00.0"))
    nvidia_smi("echo NVIDIA H200, 580.1, 9.0, 1024; exit 9")
    assert gpu.query() is None


def test_what_this_process_holds_is_what_the_use_has_grown_by(driver, nvidia_smi):
    driver(Driver("0000:3B:00.0"))
    nvidia_smi("echo 1024")
    assert gpu.held_bytes() is None  # not used yet
    gpu.before_use()
    nvidia_smi("echo 4096")
    assert gpu.held_bytes() == 3 * GIB
    gpu.before_use()  # once is enough
    assert gpu.held_bytes() == 3 * GIB
    nvidia_smi("echo 512")
    assert gpu.held_bytes() == 0  # another process ended
    nvidia_smi("echo [N/A]")
    assert gpu.held_bytes() is None


@pytest.mark.parametrize(
    ("library", "failed"),
    [
        (None, False),
        (Driver("0000:3B:00.0"), False),
        (Driver("0000:3B:00.0", status=700), False),  # no context: this process does not use it
        (Driver("0000:3B:00.0", context=1), False),
        (Driver("0000:3B:00.0", context=1, status=700), True),  # CUDA_ERROR_ILLEGAL_ADDRESS
    ],
)
def test_cuda_that_failed_for_good_is_found_out(driver, library, failed):
    driver(library)
    assert gpu.has_failed() is failed
