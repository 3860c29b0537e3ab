from __future__ import annotations

from dataclasses import replace

import pytest
from profile_values import TRACE, measurement, point, profile, variant

from explorer.profile.remarks import CASTS_ON_CPU, NO_FLASH_ON_CPU, remarks

OTHER = (("x", (2, 9, 100)),)


def test_a_profile_on_cuda_speaks_for_itself():
    assert remarks(profile(point(measurement("a", trace=TRACE)))) == ()


def test_on_the_cpu_there_is_no_flash_and_casts_are_its_own():
    found = profile(point(measurement("a")), provider="cpu")
    assert remarks(found) == (NO_FLASH_ON_CPU, CASTS_ON_CPU)
    found = replace(found, variants=(variant("a", ops=(("Cast", 9),)),))
    assert remarks(found) == (NO_FLASH_ON_CPU,)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("cupti", "work on several streams of the GPU overlaps"),
        ("launch-blocking", "each launch waits for the GPU and adds 5 to 10 µs"),
        ("node-timer", "they were taken in other runs, by a timer that adds some 10 µs to each node"),
    ],
)
def test_nodes_that_add_up_to_more_than_the_run_are_explained_once(method, why):
    trace = replace(TRACE, method=method, busy_us=490)  # the nodes take 500.25 µs
    slow, fast = (
        (measurement("a", (time,), trace=trace), measurement("b", (time,), trace=trace)) for time in (0.6, 0.5)
    )
    (note,) = remarks(profile(point(*fast), point(*fast, shapes=OTHER)))
    assert note == (
        f"The times of the nodes of a and b add up to more than the timed runs took: {why}. "
        "Compare them with each other, not their sum with the latency."
    )
    (note,) = remarks(profile(point(*slow), point(slow[0], fast[1], shapes=OTHER)))
    assert note.startswith(f"The times of the nodes of b add up to more than the timed runs took at x 2×9×100: {why}.")
    assert remarks(profile(point(*slow), point(*slow, shapes=OTHER))) == ()


def test_a_gpu_that_was_slower_while_it_was_traced_needs_no_explanation():
    slower = replace(TRACE, busy_us=500)
    assert remarks(profile(point(measurement("a", (0.5,), trace=slower)))) == ()


def test_the_trace_of_a_cuda_graph_is_of_other_runs():
    overlapping = replace(TRACE, busy_us=300)
    found = profile(point(measurement("a", (0.5,), trace=overlapping)))
    assert len(remarks(found)) == 1
    assert remarks(replace(found, variants=(variant("a", cuda_graph=True),))) == ()
