"""The arithmetic of timing: pure functions of lists of times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95

STEADY_WINDOW = 3  # rounds whose median is compared with that of as many rounds before
STEADY_GAIN = 0.05  # a warm-up goes on while it still gains this share of the time


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed, interpolated linearly between two of them."""
    return float(np.quantile(values, share))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int) -> tuple[float, float]:
    """The bootstrap interval (95 %, percentiles of 2000 resamples) of median(numerators) / median(denominators).

    The two are paired: element i of each was measured right after the other, so a resample takes both or neither, and
    what disturbed both at once does not widen the interval.
    """
    pairs = np.array([numerators, denominators])
    picks = np.random.default_rng(seed).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, picks], axis=2)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians[0] / medians[1], [tail, 1 - tail])
    return float(low), float(high)


def is_steady(times: Sequence[float]) -> bool:
    """Whether runs have stopped getting faster: the last three are not, in the median, 5 % below the three before."""
    if len(times) < 2 * STEADY_WINDOW:
        return False
    before, last = times[-2 * STEADY_WINDOW : -STEADY_WINDOW], times[-STEADY_WINDOW:]
    return quantile(last, 0.5) >= (1 - STEADY_GAIN) * quantile(before, 0.5)
