"""Drives a notebook in a real JupyterLab through the page that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page

ARTIFACTS = Path(__file__).parents[1] / "artifacts"


@dataclass(frozen=True)
class Lab:
    """A running server: where it is, and the folder it serves."""

    url: str
    token: str
    folder: Path


class Notebook:
    """A notebook in JupyterLab."""

    def __init__(self, page: Page, lab: Lab, path: str, theme: str = "JupyterLab Light") -> None:
        self.page = page
        page.goto(f"{lab.url}/lab/tree/{path}?reset&token={lab.token}")
        page.wait_for_function(
            "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        if page.locator("#jp-left-stack").is_visible():
            page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")

    def run_all(self) -> None:
        """Start all cells; what they do is awaited where it shows."""
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")

    def click(self, trace: str, text: str) -> None:
        """Click the first mark of the graph in sight that has this text, as a hand does: point, see it, click."""
        x, y = self.page.evaluate(
            """([name, text]) => {
              const plot = document.querySelector('.explorer-graph .js-plotly-plot');
              const { xaxis, yaxis } = plot._fullLayout;
              const trace = plot._fullData.find((trace) => trace.name === name);
              const box = plot.getBoundingClientRect();
              const inside = (at, axis) => at > 20 && at < axis._length - 20;
              for (const [index, shown] of Array.from(trace.text).entries()) {
                const [x, y] = [xaxis.d2p(trace.x[index]), yaxis.d2p(trace.y[index])];
                if (shown === text && inside(x, xaxis) && inside(y, yaxis))
                  return [box.left + xaxis._offset + x, box.top + yaxis._offset + y];
              }
              throw new Error(`no ${text} in sight`);
            }""",
            [trace, text],
        )
        self.page.mouse.move(x, y)
        self.page.locator(".explorer-graph .hoverlayer .hovertext", has_text=text).wait_for()
        self.page.mouse.click(x, y)
