"""The live graph: a FigureWidget that follows a scene and a selection, and reports what is clicked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from explorer.view import figure
from explorer.view.figure import Selection, Window
from explorer.view.scene import Scene

Pick = Callable[[str], None]
"""Called with the id of the item that was clicked, "block:ID" for a block's label."""


class GraphPanel:
    """Owns the FigureWidget. All changes go through one `batch_update`, so the browser gets one message."""

    def __init__(self, on_pick: Pick) -> None:
        self._on_pick = on_pick
        self._scene: Scene | None = None
        self._selection = Selection()
        self._window, self._centre = Window(0.0, float(figure.ROWS)), 0.0
        self._targets: dict[str, tuple[str, ...]] = {}
        self._drawing, self._nudge = False, 1e-4
        blank = figure.picture(figure.EMPTY, self._window)
        # Without `showlegend`: a batch that sets a property of some traces resets it in the others until a browser
        # shows the figure, so the first batch must set it in all of them.
        bare = [{name: value for name, value in trace.items() if name != "showlegend"} for trace in blank.traces]
        self.widget = go.FigureWidget(data=bare, layout=figure.layout(self._window, 0.0))
        self.widget._config = {**(self.widget._config or {}), **figure.CONFIG}
        for trace in self.widget.data:
            if trace.name in blank.targets:
                trace.on_click(self._clicked)
        self.widget.layout.on_change(self._moved, "yaxis.range", "xaxis.range")

    def show(self, scene: Scene, selection: Selection) -> None:
        """Draw a scene. The selected block stays where it is in sight; a first scene opens on a readable window."""
        old = self._scene and self._scene.halo(selection.block)
        new = scene.halo(selection.block)
        if self._scene is None:
            self._window, self._centre = figure.window_at(scene, selection.block)
        elif old and new:
            rows, columns = new.y0 - old.y0, (new.x0 + new.x1 - old.x0 - old.x1) / 2
            self._window = Window(self._window.top + rows, self._window.bottom + rows)
            self._centre += columns
        self._scene, self._selection = scene, selection
        self._draw(move=True)

    def open(self, scene: Scene, selection: Selection) -> None:
        """Draw another model from its first block on."""
        self._scene = None
        self.show(scene, selection)

    def select(self, selection: Selection, *, reveal: bool = True) -> None:
        """Outline a selection, and bring it into sight unless the hand is already there."""
        self._selection = selection
        self._draw(move=reveal and self._bring_into_sight())

    def _bring_into_sight(self) -> bool:
        scene, selection = self._scene, self._selection
        if scene is None:
            return False
        if halo := scene.halo(selection.block):
            if self._window.top <= halo.y0 and halo.y1 <= self._window.bottom and self._in_columns(halo.x0, halo.x1):
                return False
            self._window, self._centre = figure.window_at(scene, selection.block)
            return True
        if box := scene.box(selection.node):
            if self._window.top <= box.y <= self._window.bottom and self._in_columns(box.x, box.x):
                return False
            half = figure.ROWS / 2
            self._window, self._centre = Window(box.y - half, box.y + half), box.x
            return True
        return False

    def _in_columns(self, left: float, right: float) -> bool:
        # The width of the canvas is the browser's business; half its height is always there.
        half = (self._window.bottom - self._window.top) / 2
        return self._centre - half <= left and right <= self._centre + half

    def _draw(self, *, move: bool) -> None:
        if self._scene is None:
            return
        drawn = figure.picture(self._scene, self._window, self._selection)
        self._targets = drawn.targets
        self._drawing = True
        try:
            with self.widget.batch_update():
                for trace, data in zip(self.widget.data, drawn.traces, strict=True):
                    _update(trace, data)
                if move:
                    # plotly sends only what changed, and of two axes of one scale the one it sends wins: send both.
                    self._nudge = -self._nudge
                    shifted = Window(self._window.top + self._nudge, self._window.bottom + self._nudge)
                    placed = figure.layout(shifted, self._centre + self._nudge)
                    self.widget.layout.xaxis.range = placed["xaxis"]["range"]
                    self.widget.layout.yaxis.range = placed["yaxis"]["range"]
        finally:
            self._drawing = False

    def _moved(self, _layout: object, y_range: Any, x_range: Any) -> None:
        """The window was panned or zoomed by hand: names and hover targets follow."""
        if self._drawing or self._scene is None or y_range is None:
            return
        self._window = Window(min(y_range), max(y_range))
        if x_range is not None:
            self._centre = sum(x_range) / 2
        self._draw(move=False)

    def _clicked(self, trace: Any, points: Any, _state: object) -> None:
        # plotly calls every trace's handler; those that were not hit get no points.
        ids = self._targets.get(trace.name, ())
        if points.point_inds and points.point_inds[0] < len(ids):
            self._on_pick(ids[points.point_inds[0]])


def _update(trace: Any, data: figure.Trace) -> None:
    """Set only what differs: most traces stay as they are, and every change is a message."""
    for name in figure.CHANGING:
        if name in data and _differs(trace[name], data[name]):
            trace[name] = data[name]
    if "textfont" in data and trace.textfont.size != data["textfont"]["size"]:
        trace.textfont.size = data["textfont"]["size"]


def _differs(old: Any, new: Any) -> bool:
    if old is None or isinstance(old, (str, bool)):
        return bool(old != new)
    return len(old) != len(new) or any(a != b for a, b in zip(old, new, strict=True))
