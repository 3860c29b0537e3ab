"""The widgets of the explorer and where they stand. No behaviour: `app` connects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from explorer.profile import Point, Profile
from explorer.view import figure
from explorer.view.profile_figure import point_layout, point_traces
from explorer.view.sweep_figure import sweep_layout, sweep_traces
from explorer.view.table import BlockTable

TARGETS = (
    ("fastest", "auto"),
    ("MultiHeadAttention", "mha"),
    ("ai.onnx Attention", "attention"),
    ("GroupQueryAttention", "gqa"),
)
PROVIDERS = (("automatic", "auto"), ("CUDA", "cuda"), ("CPU", "cpu"))


def _button(label: str, icon: str, style: str = "") -> w.Button:
    return w.Button(description=label, icon=icon, button_style=style, layout=w.Layout(width="auto"))


def _text(label: str, placeholder: str, width: str) -> w.Text:
    # An HTML label of its own would not be tied to the field; the description is.
    style = {"description_width": "initial"}
    return w.Text(
        description=label, placeholder=placeholder, style=style, layout=w.Layout(flex=f"1 1 {width}", width="auto")
    )


def _checkbox(label: str) -> w.Checkbox:
    return w.Checkbox(description=label, indent=False, layout=w.Layout(width="auto"))


def _card(*children: w.Widget, flex: str = "1 1 360px", **layout: Any) -> w.VBox:
    box = w.VBox(children, layout=w.Layout(flex=flex, min_width="0", **layout))
    box.add_class("explorer-card")
    return box


def _row(*children: w.Widget, **layout: Any) -> w.Box:
    return w.Box(
        children, layout=w.Layout(display="flex", flex_flow="row wrap", grid_gap="6px", align_items="center", **layout)
    )


def point_widget(profile: Profile, point: Point) -> go.FigureWidget:
    """The plot of one point of a profile."""
    return _plot(point_traces(profile, point), point_layout(profile, point))


def sweep_widget(profile: Profile) -> go.FigureWidget | None:
    """The plot of latency over the size that varies; None if there is no such size."""
    traces = sweep_traces(profile)
    return _plot(traces, sweep_layout(profile)) if traces else None


def _plot(traces: Sequence[figure.Trace], layout: dict[str, Any]) -> go.FigureWidget:
    plot = go.FigureWidget(data=list(traces), layout=layout)
    plot._config = {**(plot._config or {}), **figure.CONFIG, "scrollZoom": False, "displayModeBar": False}
    return plot


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """Every widget that `app` reads or writes, by what it is for."""

    path: w.Text = field(default_factory=lambda: _text("Model", "path of an .onnx file", "320px"))
    open: w.Button = field(default_factory=lambda: _button("Open", "folder-open"))
    about: w.HTML = field(default_factory=w.HTML)
    message: w.HTML = field(default_factory=w.HTML)

    fuse: w.Button = field(default_factory=lambda: _button("Fuse", "compress", "primary"))
    fuse_alike: w.Button = field(default_factory=lambda: _button("Fuse all like this", "compress"))
    fuse_all: w.Button = field(default_factory=lambda: _button("Fuse all", "compress"))
    target: w.Dropdown = field(
        default_factory=lambda: w.Dropdown(
            description="Fuse to",
            options=TARGETS,
            style={"description_width": "initial"},
            layout=w.Layout(width="220px"),
        )
    )
    undo: w.Button = field(default_factory=lambda: _button("Undo", "undo"))
    redo: w.Button = field(default_factory=lambda: _button("Redo", "repeat"))
    hint: w.HTML = field(default_factory=w.HTML)

    counts: w.HTML = field(default_factory=w.HTML)
    table: BlockTable = field(default_factory=BlockTable)
    details: w.HTML = field(default_factory=w.HTML)

    shapes: w.Text = field(
        default_factory=lambda: _text(
            "Input shapes", "automatic, or x=2x938x100 time=2x64, or x=2x256..4096x100", "320px"
        )
    )
    provider: w.Dropdown = field(
        default_factory=lambda: w.Dropdown(
            description="Run on",
            options=PROVIDERS,
            style={"description_width": "initial"},
            layout=w.Layout(width="170px"),
        )
    )
    runs: w.BoundedIntText = field(
        default_factory=lambda: w.BoundedIntText(
            description="Runs",
            value=20,
            min=3,
            max=1000,
            style={"description_width": "initial"},
            layout=w.Layout(width="110px"),
        )
    )
    verify: w.Button = field(default_factory=lambda: _button("Verify", "check"))
    profile: w.Button = field(default_factory=lambda: _button("Profile", "clock-o"))
    cuda_graph: w.Checkbox = field(default_factory=lambda: _checkbox("CUDA graphs, too"))
    tune: w.Button = field(default_factory=lambda: _button("Tune", "sliders"))
    progress: w.FloatProgress = field(
        default_factory=lambda: w.FloatProgress(
            min=0.0, max=1.0, bar_style="info", layout=w.Layout(width="140px", visibility="hidden")
        )
    )
    doing: w.HTML = field(default_factory=w.HTML)
    cancel: w.Button = field(default_factory=lambda: _button("Cancel", "stop"))

    numbers: w.HTML = field(default_factory=w.HTML)
    measured: w.HTML = field(default_factory=w.HTML)
    point: w.Dropdown = field(
        default_factory=lambda: w.Dropdown(
            description="In detail",
            style={"description_width": "initial"},
            layout=w.Layout(width="auto", display="none"),
        )
    )
    plot: w.VBox = field(default_factory=lambda: w.VBox(layout=w.Layout(min_width="0", overflow="auto")))

    tuned: w.HTML = field(default_factory=w.HTML)
    tuning: w.VBox = field(default_factory=w.VBox)

    export_path: w.Text = field(default_factory=lambda: _text("Export to", "path of the new .onnx file", "320px"))
    replace: w.Checkbox = field(default_factory=lambda: _checkbox("Replace existing file"))
    export_model: w.Button = field(default_factory=lambda: _button("Export model", "download"))
    export_plan: w.Button = field(default_factory=lambda: _button("Export plan", "file-text-o"))

    def arrange(self, graph: w.Widget) -> tuple[w.Widget, ...]:
        """The children of the explorer, top to bottom; beside each other where the width allows it."""
        self.hint.add_class("explorer-hint")
        self.doing.add_class("explorer-hint")
        self.table.layout = w.Layout(max_height="216px", overflow="auto", width="100%")
        canvas = _card(graph, flex="3 1 480px")
        canvas.add_class("explorer-graph")
        side = w.VBox(
            [
                _card(self.counts, flex="0 0 auto"),
                _card(self.table, flex="0 0 auto"),
                _card(self.details, flex="1 1 auto", max_height="520px", overflow="auto"),
            ],
            layout=w.Layout(flex="2 1 360px", min_width="0", grid_gap="8px"),
        )
        self.tuning.children = (_card(w.HTML("<h3>Tuning</h3>"), self.tuned, flex="0 0 auto"),)
        running = _row(
            self.verify, self.profile, self.tune, self.shapes, self.provider, self.runs, self.cuda_graph,
            self.progress, self.doing, self.cancel,
        )  # fmt: skip
        return (
            _row(self.path, self.open),
            self.about,
            self.message,
            _row(self.fuse, self.fuse_alike, self.fuse_all, self.target, self.undo, self.redo, self.hint),
            w.Box(
                [canvas, side],
                layout=w.Layout(display="flex", flex_flow="row wrap", grid_gap="8px", align_items="stretch"),
            ),
            running,
            w.Box(
                [
                    _card(w.HTML("<h3>Numbers</h3>"), self.numbers),
                    _card(w.HTML("<h3>Profile</h3>"), self.point, self.plot, self.measured, flex="2 1 560px"),
                ],
                layout=w.Layout(display="flex", flex_flow="row wrap", grid_gap="8px", align_items="stretch"),
            ),
            self.tuning,
            _row(self.export_path, self.replace, self.export_model, self.export_plan),
        )
