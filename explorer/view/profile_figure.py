"""Profile → plotly traces: latency with its spread, and time by operator before and after. Pure."""

from __future__ import annotations

from typing import Any

from explorer.profile import Profile, Variant
from explorer.view.figure import FONT, Trace
from explorer.view.text import as_plot
from explorer.view.theme import HOVER, LABEL

COLORS = ("#7b8494", "#1a7f37")
"""Before and after; told apart by the order of the bars too."""
MOST_OPERATORS = 10
HEIGHT = 340
WIDTH = 540
"""Fixed: a plot that is made while its card is not yet on the page cannot ask how wide the card is."""


def profile_traces(profile: Profile) -> tuple[Trace, ...]:
    """Latency of each model, then, where they can be had, the times of its operators."""
    operators = top_operators(profile)
    models = list(zip(profile.variants, COLORS, strict=False))
    latency = [_latency(variant, color) for variant, color in models]
    return (*latency, *(_times(variant, color, operators) for variant, color in models if operators))


def profile_layout(profile: Profile) -> dict[str, Any]:
    """Layout: latency on the left, operators on the right where there are any, else latency alone."""
    both = bool(top_operators(profile))
    axis = {"gridcolor": "rgba(127,127,127,0.25)", "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "margin": {"l": 8, "r": 12, "t": 28, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "barmode": "group",
        "boxmode": "group",
        "hoverlabel": {"bgcolor": HOVER, "font": {"color": LABEL}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "domain": [0, 0.24 if both else 1]},
        "yaxis": {**axis, "rangemode": "tozero", "title": {"text": "latency, ms"}},
        "xaxis2": {
            **axis,
            "domain": [0.56, 1],
            "anchor": "y2",
            "visible": both,
            "title": {"text": "time in one run, ms"},
        },
        "yaxis2": {**axis, "anchor": "x2", "autorange": "reversed", "visible": both, "type": "category"},
    }


def top_operators(profile: Profile) -> tuple[str, ...]:
    """Operators by the larger of their times before and after, at most ten; none where such times cannot be had."""
    most: dict[str, float] = {}
    for variant in profile.variants:
        for time in variant.op_times:
            most[time.op_type] = max(most.get(time.op_type, 0.0), time.time_us)
    return tuple(sorted(most, key=lambda name: (-most[name], name))[:MOST_OPERATORS])


def time_note(profile: Profile) -> str:
    """Why there is no time by operator, or how it was measured."""
    return " ".join(dict.fromkeys(variant.op_times_note for variant in profile.variants if variant.op_times_note))


def _latency(variant: Variant, color: str) -> Trace:
    runs = list(variant.latency.runs_ms)
    name = as_plot(variant.name)
    return {
        "type": "box",
        "name": name,
        "legendgroup": name,
        "showlegend": True,
        "y": runs,
        "x": [name] * len(runs),
        "boxpoints": "outliers",
        "marker": {"color": color, "size": 4},
        "line": {"width": 1.5},
        "hoverinfo": "y",
    }


def _times(variant: Variant, color: str, operators: tuple[str, ...]) -> Trace:
    known = {time.op_type: time for time in variant.op_times}
    name = as_plot(variant.name)
    shown = [(operator, known.get(operator)) for operator in operators]
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        "xaxis": "x2",
        "yaxis": "y2",
        "y": [as_plot(operator) for operator, _ in shown],
        "x": [time.time_us / 1000 if time else 0.0 for _, time in shown],
        "hovertext": [
            f"{as_plot(operator)}, {name}: {time.time_us / 1000:.3f} ms, {time.count:.0f} nodes"
            if time
            else f"{as_plot(operator)}, {name}: none"
            for operator, time in shown
        ],
        "hoverinfo": "text",
        "marker": {"color": color},
    }
