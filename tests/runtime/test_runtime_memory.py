from __future__ import annotations

import os
import subprocess
import sys

import pytest

from explorer.runtime.memory import in_words, memory


def test_a_process_is_measured_from_inside_and_from_outside():
    source = (
        "import os, sys; from explorer.runtime.memory import memory\n"
        "held = bytearray(b'x') * 300_000_000; del held\n"
        "print(memory(os.getpid()).peak_rss_bytes, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        inside = int(process.stdout.readline())
        outside = memory(process.pid)
        process.stdin.close()
    assert 300_000_000 < inside < 400_000_000
    assert outside.rss_bytes < 200_000_000 < inside <= outside.peak_rss_bytes
    assert memory(process.pid) is None


def test_the_peak_is_no_parents():
    held = bytearray(b"x") * 300_000_000
    source = "import os; from explorer.runtime.memory import memory; print(memory(os.getpid()).peak_rss_bytes)"
    peak = int(subprocess.check_output([sys.executable, "-c", source]))
    del held
    assert peak < 200_000_000 < memory(os.getpid()).peak_rss_bytes


@pytest.mark.parametrize(
    ("count", "words"),
    [(2**32, "4.29 GB"), (2**48, "281475 GB"), (17_290_000, "17.3 MB"), (340_000, "340 kB"), (0, "0 B")],
)
def test_sizes_are_for_people(count, words):
    assert in_words(count) == words
