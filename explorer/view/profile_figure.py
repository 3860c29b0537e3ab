"""Profile → plotly traces of one point: latency with its spread, and time by operator before and after. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from explorer.profile import Latency, Point, Profile, words
from explorer.profile.tables import MOST_OPERATORS, Traced, rank_operators, traced
from explorer.view.figure import FONT, Trace
from explorer.view.text import as_plot
from explorer.view.theme import HOVER, LABEL

COLORS = ("#7b8494", "#1a7f37", "#2b6cb8", "#c8480b", "#8250df", "#0b7a75")
"""Of the variants, in their order; told apart by the order of the bars too."""
OTHERS, UNATTRIBUTED = "others", "not attributed"
HEIGHT = 340
WIDTH = 540
"""Fixed: a plot that is made while its card is not yet on the page cannot ask how wide the card is."""


def point_traces(profile: Profile, point: Point) -> tuple[Trace, ...]:
    """Latency of each variant that ran, then, where they were traced, the times of the operators."""
    color = colors(profile)
    latency = [_latency(item.variant, item.latency, color[item.variant]) for item in point.measurements if item.latency]
    shown = traced(profile, point)
    ranked = rank_operators([item.trace for item in shown])
    return (*latency, *(_times(item, ranked, color[item.name]) for item in shown))


def point_layout(profile: Profile, point: Point) -> dict[str, Any]:
    """Layout: latency on the left, operators on the right where there are any, else latency alone."""
    shown = traced(profile, point)
    kind = words.kind_of_time(item.trace for item in shown)
    return base_layout() | {
        "barmode": "group",
        "boxmode": "group",
        "xaxis": {**axis(), "domain": [0, 0.24 if shown else 1], "showticklabels": len(point.measurements) < 3},
        "yaxis": {**axis(), "rangemode": "tozero", "title": {"text": "latency, ms"}},
        "xaxis2": {
            **axis(),
            "domain": [0.56, 1],
            "anchor": "y2",
            "visible": bool(shown),
            "title": {"text": f"{kind} in one run, ms"},
        },
        "yaxis2": {**axis(), "anchor": "x2", "autorange": "reversed", "visible": bool(shown), "type": "category"},
    }


def colors(profile: Profile) -> dict[str, str]:
    """The colour of each variant."""
    return {variant.name: color for variant, color in zip(profile.variants, cycle(COLORS), strict=False)}


def axis() -> dict[str, Any]:
    """What all axes have in common."""
    return {"gridcolor": "rgba(127,127,127,0.25)", "zeroline": False, "automargin": True, "fixedrange": True}


def base_layout() -> dict[str, Any]:
    """What all plots of a profile have in common."""
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "margin": {"l": 8, "r": 12, "t": 28, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "hoverlabel": {"bgcolor": HOVER, "font": {"color": LABEL}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }


def _latency(variant: str, latency: Latency, color: str) -> Trace:
    runs = list(latency.runs_ms)
    name = as_plot(variant)
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


def _times(item: Traced, ranked: Sequence[str], color: str) -> Trace:
    """A bar for each of the operators that take longest anywhere, one for the others, one for what is nobody's."""
    known = {time.op_type: (time.time_us, f"{time.count:.0f} nodes") for time in item.trace.ops}
    shown = [(operator, *known.get(operator, (0.0, "none"))) for operator in ranked[:MOST_OPERATORS]]
    if rest := ranked[MOST_OPERATORS:]:
        there = [known[operator][0] for operator in rest if operator in known]
        shown.append((OTHERS, sum(there), f"{len(there)} operators"))
    if item.trace.unattributed_us:
        shown.append((UNATTRIBUTED, item.trace.unattributed_us, words.share(item.trace.unattributed_share, 1)))
    name = as_plot(item.name)
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        "xaxis": "x2",
        "yaxis": "y2",
        "y": [as_plot(operator) for operator, _, _ in shown],
        "x": [time_us / 1000 for _, time_us, _ in shown],
        "hovertext": [f"{as_plot(operator)}, {name}: {words.us(time_us)}, {of}" for operator, time_us, of in shown],
        "hoverinfo": "text",
        "marker": {"color": color},
    }
