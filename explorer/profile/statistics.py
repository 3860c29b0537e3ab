"""The arithmetic of timing: pure functions of lists of times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
MIN_RUNS = 5
"""With fewer runs resampling them cannot tell what is chance: of equal models it calls every third different at 3."""
CONFIDENCE = 0.95

STEADY_WINDOW = 3  # rounds, at least, whose median is compared with that of as many rounds before
STEADY_GAIN = 0.05  # a warm-up goes on while it still gains this share of the time

_AT_ONCE = 1 << 20  # numbers drawn at once: 10,000 runs would otherwise take gigabytes


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed, interpolated linearly between two of them."""
    return float(np.quantile(values, share))


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int, *, paired: bool
) -> tuple[float, float]:
    """The bootstrap interval (95 %, percentiles of 2000 resamples) of median(numerators) / median(denominators).

    If the two are `paired`, element i of each was measured right after the other: a resample takes both or neither, and
    what disturbed both at once does not widen the interval. Else each is drawn by itself; they may differ in length.
    """
    above, below = np.asarray(numerators), np.asarray(denominators)
    if paired and above.size != below.size:
        raise ValueError(f"{above.size} and {below.size} times are no pairs")
    random = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(above.size, below.size))
    ratios: list[float] = []
    while len(ratios) < RESAMPLES:
        count = min(step, RESAMPLES - len(ratios))
        picks = random.integers(above.size, size=(count, above.size))
        others = picks if paired else random.integers(below.size, size=(count, below.size))
        ratios.extend(np.median(above[picks], axis=1) / np.median(below[others], axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def is_steady(times: Sequence[float]) -> bool:
    """Whether runs have stopped getting faster: the last third is not, in the median, 5 % below the third before.

    A third is at least three runs. It grows with the runs, so that a slow rise of clocks shows between short ones, too.
    """
    window = max(STEADY_WINDOW, len(times) // 3)
    if len(times) < 2 * window:
        return False
    before, last = times[-2 * window : -window], times[-window:]
    return quantile(last, 0.5) >= (1 - STEADY_GAIN) * quantile(before, 0.5)
