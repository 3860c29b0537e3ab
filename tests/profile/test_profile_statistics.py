from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.profile.statistics import is_steady, quantile, ratio_interval
from explorer.profile.values import Latency, Ratio

times = st.floats(0.01, 1e4)


def test_a_latency_is_summed_up_exactly():
    latency = Latency((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (latency.median_ms, latency.q1_ms, latency.q3_ms, latency.iqr_ms) == (3.0, 2.0, 4.0, 2.0)
    assert latency.p99_ms == pytest.approx(4.96)


@settings(deadline=None)
@given(st.lists(times, min_size=1))
def test_the_middle_quantile_is_the_median_and_quantiles_do_not_cross(values):
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))
    assert min(values) <= quantile(values, 0.25) <= quantile(values, 0.5) <= quantile(values, 0.75) <= max(values)


@settings(deadline=None)
@given(st.lists(times, min_size=1, max_size=30), st.integers(0, 2**32))
def test_a_constant_factor_has_no_uncertainty_where_runs_are_paired(values, seed):
    doubled = [2 * value for value in values]
    assert ratio_interval(doubled, values, seed, paired=True) == pytest.approx((2.0, 2.0))


def test_what_disturbs_both_at_once_widens_only_the_interval_of_runs_that_are_not_paired():
    both = np.linspace(1.0, 2.0, 21)
    assert ratio_interval(2 * both, both, 0, paired=True) == pytest.approx((2.0, 2.0))
    low, high = ratio_interval(2 * both, both, 0, paired=False)
    assert 1.4 < low < 1.8
    assert 2.2 < high < 2.8


def test_runs_that_are_not_paired_may_differ_in_number():
    assert ratio_interval([3.0] * 7, [2.0] * 4, 0, paired=False) == (1.5, 1.5)
    with pytest.raises(ValueError, match="7 and 4 times are no pairs"):
        ratio_interval([3.0] * 7, [2.0] * 4, 0, paired=True)


def test_many_runs_are_drawn_in_portions():
    many = np.tile([1.0, 2.0, 3.0], 1000)
    low, high = ratio_interval(many, many[:900], 0, paired=False)
    assert low <= 1 <= high
    assert ratio_interval(many, many, 0, paired=True) == (1.0, 1.0)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_is_that_of_its_seed_and_contains_the_ratio(paired):
    rng = np.random.default_rng(0)
    slow, fast = (Latency(tuple(median + rng.standard_normal(101) / 10)) for median in (5.0, 2.0))
    ratio = Ratio.of(slow, fast, seed=1, paired=paired)
    assert ratio == Ratio.of(slow, fast, seed=1, paired=paired)
    assert ratio != Ratio.of(slow, fast, seed=2, paired=paired)
    assert ratio.value == slow.median_ms / fast.median_ms
    assert 2.3 < ratio.low < ratio.value < ratio.high < 2.7


@pytest.mark.parametrize(
    ("history", "steady"),
    [
        ([1.0] * 5, False),  # too short to tell
        ([1.0] * 6, True),
        ([9.0, 1.0, 1.0, 1.0, 1.0, 1.0], True),  # one slow run is no trend
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], False),
        ([9.0, 8.0, 7.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], True),  # only the latest runs count
        ([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], True),  # slower is not warming up
        ([1.0, 1.0, 1.0, 0.951, 0.951, 0.951], True),
        ([1.0, 1.0, 1.0, 0.949, 0.949, 0.949], False),
        ([1.0 - 0.002 * run for run in range(100)], False),  # 20 % in all, though 0.6 % in any three runs
    ],
)
def test_a_warm_up_is_over_when_runs_stop_getting_faster(history, steady):
    assert is_steady(history) is steady


@pytest.mark.parametrize(("runs", "known"), [(4, False), (5, True)])
def test_few_runs_have_no_interval(runs, known):
    """Of two equal models every third would be called faster or slower after three runs."""
    ratio = Ratio.of(Latency((2.0,) * runs), Latency((1.0,) * runs), 0)
    assert (ratio.value, ratio.low, ratio.high) == ((2.0, 2.0, 2.0) if known else (2.0, None, None))
    assert ratio.sign == int(known)
