"""Profile → plotly traces over several points: latency against the size that varies, on logarithmic axes. Pure."""

from __future__ import annotations

from typing import Any

from explorer.profile import Profile, Variant, sweep_axis, words
from explorer.view.figure import Trace
from explorer.view.profile_figure import axis, base_layout, colors
from explorer.view.text import as_plot


def sweep_traces(profile: Profile) -> tuple[Trace, ...]:
    """A curve for each variant with the middle half of its runs, and a dotted line where one really crosses the first.

    Nothing where no single dimension tells the points apart.
    """
    varied = sweep_axis(profile)
    if varied is None:
        return ()
    color = colors(profile)
    curves = [_curve(profile, variant, varied[1], color[variant.name]) for variant in profile.variants]
    heights = [height for curve in curves for height in curve["y"]]
    first = profile.variants[0].name
    crossed = [
        _crossing(size, (min(heights), max(heights)), f"{as_plot(first)} = {as_plot(variant.name)}", varied[0])
        for variant in profile.variants[1:]
        for size in words.measured_crossovers(profile, variant.name)
    ]
    return (*curves, *crossed)


def sweep_layout(profile: Profile) -> dict[str, Any]:
    """Layout: both axes logarithmic, a tick at each size that was measured."""
    name, sizes = sweep_axis(profile) or ("", ())
    ticks = sorted(set(sizes))
    return base_layout() | {
        "xaxis": {
            **axis(),
            "type": "log",
            "title": {"text": as_plot(name)},
            "tickvals": ticks,
            "ticktext": [str(size) for size in ticks],
        },
        "yaxis": {**axis(), "type": "log", "title": {"text": "median latency, ms"}, "dtick": "D1"},
    }


def _curve(profile: Profile, variant: Variant, sizes: tuple[int, ...], color: str) -> Trace:
    places = zip(sizes, profile.points, strict=True)
    found = [(size, latency) for size, point in places if (latency := point.of(variant.name).latency)]
    found.sort(key=lambda pair: pair[0])
    name = as_plot(variant.name)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [size for size, _ in found],
        "y": [latency.median_ms for _, latency in found],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [latency.q3_ms - latency.median_ms for _, latency in found],
            "arrayminus": [latency.median_ms - latency.q1_ms for _, latency in found],
            "thickness": 1,
            "width": 3,
        },
        "hovertext": [f"{size}, {name}: {words.ms(latency.median_ms)}" for size, latency in found],
        "hoverinfo": "text",
        "line": {"color": color, "width": 2, "dash": "dash" if variant.cuda_graph else "solid"},
        "marker": {"color": color, "size": 7},
    }


def _crossing(size: float, heights: tuple[float, float], who: str, along: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{who} at ≈ {size:.0f}",
        "x": [size, size],
        "y": list(heights),
        "hovertext": [f"{who} at {as_plot(along)} ≈ {size:.0f}"] * 2,
        "hoverinfo": "text",
        "line": {"color": "#c06a00", "width": 1.5, "dash": "dot"},
    }
