"""Scene → plotly traces. Pure: the same scene, window and selection always give the same data.

The list of traces is fixed in number, order and name, so that a live figure is updated in place, not rebuilt. Boxes and
lines are a few SVG paths, however many there are: those are cheap. What costs is one SVG element per mark, so names
and hover targets exist only for what is in or near the window; they follow when it is moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from explorer.model.describe import GraphInfo
from explorer.view import theme
from explorer.view.hover import hover
from explorer.view.layout import Point
from explorer.view.scene import BOX_HEIGHT, Halo, Scene
from explorer.view.text import as_plot

Trace = dict[str, Any]

ROWS = 28
"""Rows in the window when it opens."""
HEIGHT = 760
CONFIG = {
    "showSendToCloud": False,
    "displaylogo": False,
    "scrollZoom": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
CHANGING = ("x", "y", "text", "hovertext", "showlegend")
"""Properties of a trace that depend on scene, window or selection (and the text size)."""
EMPTY = Scene(GraphInfo("", (), {}, (), ()), (), (), (), 0)

_TEXT_PER_ROW = 0.42
_FRAME = 0.14
_SMALLEST_TEXT = 5.0
_ROUND_UP_TO = 3000
"""Above this many boxes their corners are no longer rounded: nobody sees it, and the paths stay short."""


@dataclass(frozen=True, slots=True)
class Window:
    """The rows in sight. Columns follow from the shape of the canvas, since both axes have one scale."""

    top: float
    bottom: float

    def near(self, y: float) -> bool:
        """Whether a row is in sight or less than a window away."""
        height = self.bottom - self.top
        return self.top - height <= y <= self.bottom + height

    @property
    def text_size(self) -> float:
        """Size of the names in the boxes, in pixels: it grows and shrinks with them; 0 where it could not be read."""
        size = min(_TEXT_PER_ROW * HEIGHT / max(self.bottom - self.top, 1e-9), 15.0)
        return size if size >= _SMALLEST_TEXT else 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What is selected: a block, or a node, or nothing."""

    block: str = ""
    node: str = ""


NOTHING = Selection()


@dataclass(frozen=True, slots=True)
class Picture:
    """The traces, and for each trace that answers clicks the item ids of its points."""

    traces: tuple[Trace, ...]
    targets: dict[str, tuple[str, ...]]


def window_at(scene: Scene, block_id: str = "") -> tuple[Window, float]:
    """A readable window around a block (or the first block, or the top), and the column to put in its middle."""
    halo = scene.halo(block_id) or (scene.halos[0] if scene.halos else None)
    if halo is None:
        first = min(scene.boxes, key=lambda box: box.y, default=None)
        return Window(-1.5, ROWS - 1.5), first.x if first else 0.0
    middle = (halo.y0 + halo.y1) / 2
    top = max(min(middle - ROWS * 0.6, halo.y0 - 1), -1.5)
    return Window(top, top + ROWS), (halo.x0 + halo.x1) / 2


def layout(window: Window, centre: float) -> dict[str, Any]:
    """Figure layout: no axes, one scale for both, a legend above; transparent, so that the theme shows through."""
    # Narrower than any canvas: plotly widens it until both axes have one scale.
    reach = (window.bottom - window.top) / 4
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    return {
        "height": HEIGHT,
        "margin": {"l": 0, "r": 0, "t": 64, "b": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "hovermode": "closest",
        "hoverdistance": 16,
        "dragmode": "pan",
        "hoverlabel": {
            "bgcolor": theme.HOVER,
            "bordercolor": theme.HOVER,
            "align": "left",
            "font": {"color": theme.LABEL},
        },
        "xaxis": {**hidden, "range": [centre - reach, centre + reach], "scaleanchor": "y"},
        "yaxis": {**hidden, "range": [window.bottom, window.top]},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemsizing": "constant"},
        "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)"},
        "uirevision": "explorer",
    }


def picture(scene: Scene, window: Window, selection: Selection = NOTHING) -> Picture:
    """All traces, back to front: block frames, lines, boxes, what is selected, names."""
    frames, labels = _blocks(scene, selection)
    names, targets = _names(scene, window)
    targets |= {trace["name"]: ids for trace, ids in labels}
    static = _static(scene)
    traces = (
        *frames,
        *static,
        _selected(scene, selection),
        *names,
        *(trace for trace, _ in labels),
        _roles(scene, selection),
    )
    return Picture(traces, targets)


@lru_cache(maxsize=4)
def _static(scene: Scene) -> tuple[Trace, ...]:
    """Lines, arrow heads and boxes: they change only with the scene."""
    lines: list[Point | None] = []
    heads: list[Point | None] = []
    for route in scene.routes:
        points = _curve(route)
        lines += [*points, None]
        x, y = points[-1]
        heads += [(x, y), (x - 0.12, y - 0.2), (x + 0.12, y - 0.2), (x, y), None]
    rounded = len(scene.boxes) <= _ROUND_UP_TO
    boxes: dict[str, list[Point | None]] = {category: [] for category in theme.CATEGORIES}
    for box in scene.boxes:
        radius = (BOX_HEIGHT / 2 if box.item.kind != "node" else 0.16) if rounded else 0.0
        half, up = box.width / 2, BOX_HEIGHT / 2
        boxes[box.category] += [*_rectangle(box.x - half, box.y - up, box.x + half, box.y + up, radius), None]
    return (
        _path("lines", lines, line={"color": theme.EDGE, "width": 1.2}),
        _path("arrow heads", heads, fill=theme.EDGE),
        *(
            _path(category, points, fill=theme.CATEGORIES[category], legend=bool(points))
            for category, points in boxes.items()
        ),
    )


def _names(scene: Scene, window: Window) -> tuple[list[Trace], dict[str, tuple[str, ...]]]:
    """One trace a category: a name in each box near the window, with the hover text; three marks a box to aim at."""
    nodes = {node.key: node for node in scene.info.nodes}
    traces, targets = [], {}
    near = [box for box in scene.boxes if window.near(box.y)] if window.text_size else []
    for category in theme.CATEGORIES:
        # Aims have a blank as text: plotly reuses text elements, and one that was empty stays so for ever.
        own = [box for box in near if box.category == category]
        marks = [(box.x, box, as_plot(box.label)) for box in own]
        marks += [(box.x + side * box.width / 3, box, " ") for box in own for side in (-1, 1)]
        name = f"{category} names"
        targets[name] = tuple(box.item.id for _, box, _ in marks)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "legendgroup": category,
                "showlegend": False,
                "x": [x for x, _, _ in marks],
                "y": [box.y for _, box, _ in marks],
                "text": [label for _, _, label in marks],
                "hovertext": [hover(box.item, nodes, scene.info.tensors) for _, box, _ in marks],
                "hoverinfo": "text",
                "marker": {"size": 14, "opacity": 0, "color": theme.CATEGORIES[category]},
                "textfont": {"color": theme.LABEL, "size": window.text_size or 1, "family": FONT},
                "cliponaxis": True,
            }
        )
    return traces, targets


def _blocks(scene: Scene, selection: Selection) -> tuple[list[Trace], list[tuple[Trace, tuple[str, ...]]]]:
    """For each status the frames of its blocks, and a label beside each frame that can be clicked."""
    frames, labels = [], []
    for status, style in theme.STATUSES.items():
        halos = [halo for halo in scene.halos if halo.region.status == status]
        outline: list[Point | None] = []
        for halo in halos:
            outline += _frame(halo)
        name = f"{style.symbol} {style.words}"
        line = {"color": style.color, "width": 1.8, "dash": style.dash}
        frames.append(_path(name, outline, fill=_faint(style.color), line=line, legend=bool(halos)))
        trace = {
            "type": "scatter",
            "mode": "markers+text",
            "name": f"{status} labels",
            "legendgroup": name,
            "showlegend": False,
            "x": [halo.x0 - 0.25 for halo in halos],
            "y": [halo.y0 + 0.4 for halo in halos],
            "text": [_label(halo, style.symbol, halo.region.id == selection.block) for halo in halos],
            "textposition": "middle left",
            "hovertext": [as_plot(f"{halo.region.label}: {style.words}") for halo in halos],
            "hoverinfo": "text",
            "marker": {"size": 16, "opacity": 0, "color": style.color},
            "textfont": {"size": 13, "family": FONT, "color": theme.INK},
        }
        labels.append((trace, tuple(f"block:{halo.region.id}" for halo in halos)))
    return frames, labels


def _label(halo: Halo, symbol: str, selected: bool) -> str:
    text = f"{symbol} {as_plot(halo.region.label)}"
    return f"<b>{text}</b>" if selected else text


def _selected(scene: Scene, selection: Selection) -> Trace:
    """A strong outline around the selected block or node."""
    points: list[Point | None] = []
    if selection.block and (halo := scene.halo(selection.block)):
        points += _frame(halo)
    if selection.node and (box := scene.box(selection.node)):
        half, up = box.width / 2 + 0.12, BOX_HEIGHT / 2 + 0.12
        points += [*_rectangle(box.x - half, box.y - up, box.x + half, box.y + up, 0.2), None]
    return _path("selected", points, line={"color": theme.SELECTION, "width": 3})


def _roles(scene: Scene, selection: Selection) -> Trace:
    """What part each node of the selected block plays, written beside its frame."""
    halo = scene.halo(selection.block)
    roles = halo.region.roles if halo else {}
    marks: list[tuple[float, float, str]] = []
    if halo:
        marks = [(halo.x1, box.y, roles.get(box.item.key, "")) for box in halo.core]
    return {
        "type": "scatter",
        "mode": "text",
        "name": "roles",
        "showlegend": False,
        "x": [x + 0.2 for x, _, _ in marks],
        "y": [y for _, y, _ in marks],
        "text": [f"<i>{as_plot(role)}</i>" for _, _, role in marks],
        "textposition": "middle right",
        "hoverinfo": "skip",
        "textfont": {"size": 11, "family": FONT, "color": theme.INK},
    }


def _path(
    name: str,
    points: Sequence[Point | None],
    *,
    fill: str = "",
    line: dict[str, Any] | None = None,
    legend: bool = False,
) -> Trace:
    """Many outlines or lines as one trace, separated by None."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "showlegend": legend,
        "x": [None if point is None else round(point[0], 3) for point in points],
        "y": [None if point is None else round(point[1], 3) for point in points],
        "hoverinfo": "skip",
        "line": line or {"color": fill, "width": 0.5},
        "fill": "toself" if fill else "none",
        "fillcolor": fill or None,
    }


def _curve(route: Sequence[Point]) -> list[Point]:
    """The line of an edge: vertical through the rows it crosses, and an S between rows where it changes column."""
    points = [(route[0][0], route[0][1] + BOX_HEIGHT / 2)]
    for (x0, y0), (x1, y1) in pairwise(route):
        start, end = y0 + BOX_HEIGHT / 2, y1 - BOX_HEIGHT / 2
        if abs(x1 - x0) > 1e-3:
            points.append((x0, start))
            for step in range(1, 8):
                t = step / 8
                points.append((x0 + (x1 - x0) * t * t * (3 - 2 * t), start + (end - 0.14 - start) * t))
            points.append((x1, end - 0.14))
    return [*points, (route[-1][0], route[-1][1] - BOX_HEIGHT / 2)]


def _rectangle(x0: float, y0: float, x1: float, y1: float, radius: float) -> list[Point]:
    """A closed outline; corners are arcs of a few points."""
    if radius <= 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    corners = (
        (x1 - radius, y0 + radius, -90),
        (x1 - radius, y1 - radius, 0),
        (x0 + radius, y1 - radius, 90),
        (x0 + radius, y0 + radius, 180),
    )
    points = [
        (x + radius * math.cos(math.radians(start + turn)), y + radius * math.sin(math.radians(start + turn)))
        for x, y, start in corners
        for turn in (0, 30, 60, 90)
    ]
    return [*points, points[0]]


def _frame(halo: Halo) -> list[Point | None]:
    """One outline around the core of a block, and one around each of its nodes further up."""
    points = [*_rectangle(halo.x0, halo.y0, halo.x1, halo.y1, 0.35), None]
    for box in halo.others:
        half, up = box.width / 2 + _FRAME, BOX_HEIGHT / 2 + _FRAME
        points += [*_rectangle(box.x - half, box.y - up, box.x + half, box.y + up, 0.25), None]
    return points


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"
