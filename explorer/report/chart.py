"""Curves on logarithmic axes, drawn with characters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, log10

MARKS = "●○▲△■□◆◇"
"""Of the curves, in their order; a ninth starts again."""
WIDTH, HEIGHT = 64, 15

Curve = tuple[str, Sequence[tuple[float, float]]]
"""A name and its points (x, y), both above 0."""


def log_chart(curves: Sequence[Curve], x_name: str, y_unit: str) -> list[str]:
    """The curves as lines of text, both axes logarithmic, with a legend; none if there are not two places on x.

    Dots lead from point to point. Where two curves have a point in the same place the earlier one's is shown.
    """
    xs = sorted({x for _, points in curves for x, _ in points})
    ys = [y for _, points in curves for _, y in points]
    if len(xs) < 2:
        return []
    across, up = _Scale(xs[0], xs[-1], WIDTH - 1), _Scale(min(ys), max(ys), HEIGHT - 1)
    canvas = [[" "] * WIDTH for _ in range(HEIGHT)]
    for _, points in curves:
        for (x0, y0), (x1, y1) in pairwise(sorted(points)):
            _line(canvas, (across(x0), up(y0)), (across(x1), up(y1)))
    for index, (_, points) in reversed(list(enumerate(curves))):
        for x, y in points:
            canvas[HEIGHT - 1 - up(y)][across(x)] = MARKS[index % len(MARKS)]
    ticks = {HEIGHT - 1 - up(value): f"{value:g} {y_unit}" for value in _round_values(min(ys), max(ys))}
    margin = max(map(len, ticks.values()), default=0)
    lines = [
        f"{ticks.get(row, ''):>{margin}} {'┤' if row in ticks else '│'}{''.join(cells)}".rstrip()
        for row, cells in enumerate(canvas)
    ]
    marked = {across(x) for x in xs}
    floor_line = "".join("┴" if column in marked else "─" for column in range(WIDTH))
    legend = "   ".join(f"{MARKS[index % len(MARKS)]} {name}" for index, (name, _) in enumerate(curves))
    indent = " " * margin
    return [*lines, f"{indent} └{floor_line}", f"{indent}  {_labels(xs, across)}  {x_name}", f"{indent}  {legend}"]


class _Scale:
    """Places values between `low` and `high` on 0 … `last`, by their logarithms."""

    def __init__(self, low: float, high: float, last: int) -> None:
        self._low = log10(low)
        self._span = log10(high) - self._low
        self._last = last

    def __call__(self, value: float) -> int:
        return round((log10(value) - self._low) / self._span * self._last) if self._span else self._last // 2


def _line(canvas: list[list[str]], start: tuple[int, int], end: tuple[int, int]) -> None:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    for step in range(steps + 1):
        column, row = (round(a + (b - a) * step / max(steps, 1)) for a, b in zip(start, end, strict=True))
        canvas[HEIGHT - 1 - row][column] = "·"


def _round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from `low` to `high`, or these two themselves if there are none."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    inside = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return inside or [float(f"{low:.3g}"), float(f"{high:.3g}")]


def _labels(xs: Sequence[float], across: _Scale) -> str:
    """Sizes under their marks, those left out that would run into the one before."""
    line = ""
    for x in xs:
        if not line or len(line) < across(x):
            line = line.ljust(across(x)) + f"{x:g}"
    return line
