"""What is made of measurements, and what is worth trying in the whole model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tuning_values import FakeProfiler, family, latency, trial

from explorer.model import Model
from explorer.profile.values import Ratio
from explorer.tune.trials import Way, combinations, merged, promising, trial_of

MODEL = cast(Model, SimpleNamespace())


def profiled(profiler: FakeProfiler, *ways: Way) -> list[Any]:
    found = profiler(
        None, [way.subject for way in ways], [{"x": np.zeros(1)}], provider="cuda", runs=6, seed=0, trace=True
    )
    return [trial_of(way, found) for way in ways]


def test_a_measurement_becomes_a_trial() -> None:
    unfused, way = Way("unfused", ("",), 0, MODEL), Way("mha/bsd", ("mha/bsd",), 3, MODEL, "digest")
    profiler = FakeProfiler(
        {"unfused": 2.0, "mha/bsd": 1.0, "mha/bsd, sdpa_kernel 8": 0.5}, {"mha/bsd": "MATH"}, ["mha/bsd, sdpa_kernel 8"]
    )
    first, second, third = profiled(profiler, unfused, way, way.under(8))
    assert (first.name, first.latency, first.ratio, first.kernel) == ("unfused", latency(2), None, "")
    assert second.targets == ("mha/bsd",)
    assert (second.latency, second.ratio, second.kernel) == (latency(1), Ratio(2, 2, 2), "MATH")
    assert (second.layout_nodes, second.sdpa_kernel, second.refusal) == (3, 0, "")
    assert (third.latency, third.sdpa_kernel, third.refusal) == (None, 8, "out of memory")
    assert [subject.plan for subject in profiler.asked[0]] == ["", "digest", "digest"]
    assert [subject.sdpa_kernel for subject in profiler.asked[0]] == [0, 0, 8]


class TestMerged:
    def test_a_kernel_that_gave_way_is_no_trial_of_its_own(self) -> None:
        flash, cudnn, math = "FLASH_ATTENTION", "CUDNN_FLASH_ATTENTION", "MATH"
        found = merged(
            [
                trial(),
                trial("mha/bsd", kernel=cudnn),
                trial("mha/bsd", kernel=flash, sdpa=1),
                trial("mha/bsd", kernel=math, sdpa=2),
                trial("mha/bsd", kernel=cudnn, sdpa=8),
                trial("mha/bsd", kernel=math, sdpa=16),
                trial("attention/bsd", kernel=flash),
                trial("attention/bsd", kernel=flash, sdpa=1),
                trial("attention/bsd", kernel=math, sdpa=8),
            ]
        )
        assert [(item.targets[0], item.kernel, item.sdpa_kernel, item.merged) for item in found] == [
            ("", "", 0, ()),
            ("mha/bsd", cudnn, 0, (8,)),
            ("mha/bsd", flash, 1, ()),
            ("mha/bsd", math, 2, (16,)),
            ("attention/bsd", flash, 0, (1,)),
            ("attention/bsd", math, 8, ()),
        ]

    def test_what_is_not_told_or_did_not_run_is_not_merged(self) -> None:
        trials = [trial("gqa"), trial("gqa", sdpa=1), trial("mha/bsd", kernel="MATH", refusal="no memory")]
        trials.append(trial("mha/bsd", kernel="MATH", sdpa=16))
        assert merged(trials) == trials


class TestCombinations:
    def test_of_one_family(self) -> None:
        trials = trial(ms=2), trial("mha/bsd", 1), trial("attention/bnsh", 1.4), trial("gqa", 1.6)
        assert combinations([family(*trials)], ("gqa",)) == {
            ("",): "unfused",
            ("mha/bsd",): "mha/bsd",  # the best
            ("gqa",): "gqa",  # what auto takes
            ("attention/bnsh",): "attention/bnsh",  # near the best
        }

    def test_of_several(self) -> None:
        one = family(trial(ms=3), trial("mha/bsd", 1), trial("mha/bnsh", 1.2), trial("attention/bsd", 1.3))
        other = family(trial(ms=3), trial("mha/bnsh", 1.1), trial("mha/bsd", 1.2))
        stays = family(trial(ms=1), trial("mha/bsd", 1.1))
        assert combinations([one, other, stays], ("mha/bsd", "mha/bnsh", "mha/bsd")) == {
            ("", "", ""): "unfused",
            ("mha/bsd", "mha/bnsh", ""): "the best of each family",
            ("mha/bsd", "mha/bnsh", "mha/bsd"): "auto",
            ("mha/bsd", "mha/bsd", "mha/bsd"): "mha/bsd",
            ("mha/bnsh", "mha/bnsh", ""): "mha/bnsh where it can be",
            ("attention/bsd", "mha/bnsh", ""): "attention/bsd where it can be",
        }

    @pytest.mark.parametrize("other", [trial("mha/bsd", 0.5, refusal="wrong"), trial("mha/bsd", 0.5, sdpa=8)])
    def test_what_must_not_win_is_not_tried(self, other: Any) -> None:
        assert list(combinations([family(trial(ms=1), other)], ("mha/bsd",))) == [("",)]

    def test_nothing_ran(self) -> None:
        refused = trial(ms=None, refusal="no memory"), trial("mha/bsd", None, refusal="no memory")
        assert list(combinations([family(*refused)], ("mha/bsd",))) == [("",)]


class TestPromising:
    def test_only_what_is_faster_beyond_the_noise(self) -> None:
        found = family(
            trial(ms=9),
            trial("mha/bsd", 1),
            trial("mha/bsd", 0.9, sdpa=8, noise=0.2),
            trial("mha/bsd", 0.8, sdpa=1),
            trial("mha/bsd", 2, sdpa=16),
            trial("attention/bsd", 0.5, sdpa=2),
        )
        assert promising([found], ("mha/bsd",)) == (1,)
        assert promising([found], ("",)) == ()

    def test_not_what_is_wrong_in_another_family(self) -> None:
        """An option of the session is that of all blocks."""
        one = family(trial(ms=9), trial("mha/bsd", 1), trial("mha/bsd", 0.5, sdpa=1), trial("mha/bsd", 0.5, sdpa=2))
        other = family(trial(ms=9), trial("gqa", 1), trial("gqa", 3, sdpa=1, merged=(2,), refusal="wrong"))
        assert promising([one], ("mha/bsd",)) == (1, 2)
        assert promising([one, other], ("mha/bsd", "gqa")) == ()
