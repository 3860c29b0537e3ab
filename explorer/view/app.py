"""The explorer: a thin shell that connects a `Workspace` with the graph, the table and the panels.

Everything shown is drawn from the workspace by `_refresh`; a handler changes the workspace or the selection and
refreshes. Verification and measurement run beside the kernel and start by themselves after each change.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as w

from explorer.errors import ExplorerError, InputError, ModelError
from explorer.fusion.plan import Plan
from explorer.tune import Tuning
from explorer.view import measured, panels
from explorer.view.controls import Controls
from explorer.view.figure import Selection
from explorer.view.graph_panel import GraphPanel
from explorer.view.jobs import Jobs, Listener, Post, Progress, Step, kernel_post
from explorer.view.profile_panel import ProfilePanel
from explorer.view.scene import Scene
from explorer.view.shapes import parse_field
from explorer.view.snapshot import block_rows, casts_left, fusable_alike, scene_of, short_path, unavailable
from explorer.view.table import table_rows
from explorer.workspace import Workspace, open_workspace

VERIFY, PROFILE, TUNE = "Verification", "Measurement", "Tuning"


class Explorer(w.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """See, fuse, verify, profile and export the attention of one ONNX model.

    `Explorer("model.onnx")`, or `Explorer(workspace)` to look at a workspace that a script made. A model that cannot be
    opened is answered with a sentence in the view, where another can be opened. `post` hands a function to the thread
    that owns the widgets; the kernel's event loop does that by default.
    """

    def __init__(self, source: Workspace | Path | str | None = None, *, post: Post | None = None) -> None:
        self._workspace: Workspace | None = None
        self._selection = Selection()
        self._scenes: dict[Plan, Scene] = {}
        self._troubles: dict[str, str] = {}
        self._tuning: Tuning | None = None
        self._controls = Controls()
        self._profile = ProfilePanel(self._controls)
        self._graph = GraphPanel(self._picked)
        self._jobs = Jobs(post or kernel_post(), Listener(self._show_progress, self._step_failed, self._ended))
        super().__init__(self._controls.arrange(self._graph.widget), layout=w.Layout(width="100%"))
        self.add_class("onnx-explorer")
        self._connect()
        if isinstance(source, (str, Path)):
            self._controls.path.value = os.fspath(source)
            self._do(self._open)
        else:
            self._use(source)

    @property
    def workspace(self) -> Workspace:
        """The workspace in view; ModelError if no model is open."""
        if self._workspace is None:
            raise ModelError("expected an open model, found none: open one in the view or with ex.Explorer(path)")
        return self._workspace

    def select(self, block: str) -> None:
        """Select a block by its id or label, as a click would."""
        self._select(Selection(block=self.workspace.block(block).id))

    def refresh(self) -> None:
        """Follow what a script did to `workspace`."""
        self._refresh()

    def close(self) -> None:
        """Stop what runs, then take the widget away."""
        self._jobs.cancel()
        super().close()

    # What the hands do

    def _connect(self) -> None:
        c = self._controls
        actions: dict[w.Button, Callable[[], None]] = {
            c.open: self._open,
            c.fuse: self._fuse,
            c.fuse_alike: lambda: self._change(
                lambda: self.workspace.fuse_family(self._selection.block, c.target.value)
            ),
            c.fuse_all: lambda: self._change(lambda: self.workspace.fuse_all(c.target.value)),
            c.undo: lambda: self._change(lambda: self.workspace.undo()),
            c.redo: lambda: self._change(lambda: self.workspace.redo()),
            c.verify: lambda: self._run(verify=True, profile=False),
            c.profile: lambda: self._run(verify=False, profile=True),
            c.tune: self._tune,
            c.cancel: self._cancel,
            c.export_model: lambda: self._export(self.workspace.export, ".onnx"),
            c.export_plan: lambda: self._export(self.workspace.export_plan, ".plan.json"),
        }
        for button, action in actions.items():
            button.on_click(lambda _, action=action: self._do(action))
        c.table.observe(lambda change: self._select(Selection(block=change["new"])), "selected")

    def _do(self, action: Callable[[], None]) -> None:
        """Run an action; what goes wrong is a sentence in the view, and the view stays as usable as it was."""
        self._say("")
        try:
            action()
        except ExplorerError as error:
            self._say(str(error))

    def _say(self, text: str, kind: str = "error") -> None:
        message = self._controls.message
        message.value = panels.message(text, kind)
        message.layout.display = "block" if text else "none"

    def _open(self) -> None:
        try:
            workspace = open_workspace(self._controls.path.value.strip())
        except ExplorerError:
            if self._workspace is None:
                self._use(None)
            raise
        self._use(workspace)

    def _use(self, workspace: Workspace | None) -> None:
        self._jobs.cancel()
        self._workspace = workspace
        self._scenes.clear()
        self._troubles.clear()
        self._tuning = None
        blocks = workspace.blocks if workspace else ()
        self._selection = Selection(block=blocks[0].id if blocks else "")
        if workspace is not None:
            self._controls.path.value = short_path(workspace.source)
            self._controls.export_path.value = f"{workspace.source.stem}_fused.onnx"
            self._graph.open(self._scene(), self._selection)
        self._refresh()

    def _fuse(self) -> None:
        block = self._selection.block
        if self.workspace.plan.target(block):
            self._change(lambda: self.workspace.unfuse(block))
        else:
            self._change(lambda: self.workspace.fuse(block, target=self._controls.target.value))

    def _change(self, action: Callable[[], object]) -> None:
        """Change the plan, show its consequences at once, then check and measure them."""
        report = action()
        self._troubles.clear()
        said = [f"Note: {note}" for note in getattr(report, "notes", ())]
        if skipped := getattr(report, "skipped", ()):
            labels = {block.id: block.label for block in self.workspace.blocks}
            reasons = "; ".join(f"{labels.get(block, block)}: {obstacle}" for block, obstacle in skipped)
            said.append(f"Left as they are: {reasons}.")
        if said:
            self._say(" ".join(said))
        self._graph.show(self._scene(), self._selection)
        if self.workspace.plan.fusions:
            self._run(verify=self.workspace.verdict is None, profile=self.workspace.last_profile is None)
        else:
            self._jobs.cancel()
            self._refresh()

    def _run(self, *, verify: bool, profile: bool) -> None:
        workspace, c = self.workspace, self._controls
        shapes, provider, runs, graph = parse_field(c.shapes.value), c.provider.value, c.runs.value, c.cuda_graph.value

        def checking(on_progress: Progress, cancel: threading.Event) -> object:
            # Of several sets of inputs the first: each would be run in float64
            return workspace.verify(shapes=shapes[0] or None, provider=provider, on_progress=on_progress, cancel=cancel)

        def measuring(on_progress: Progress, cancel: threading.Event) -> object:
            return workspace.profile(
                shapes=shapes,
                runs=runs,
                provider=provider,
                cuda_graph=graph,
                on_progress=on_progress,
                cancel=cancel,
            )

        steps = [Step(VERIFY, checking, self._refresh)] if verify else []
        steps += [Step(PROFILE, measuring, self._refresh)] if profile else []
        self._start(steps)

    def _tune(self) -> None:
        workspace, c = self.workspace, self._controls
        (shapes, *others), provider, runs = parse_field(c.shapes.value), c.provider.value, c.runs.value
        if others:
            raise InputError("expected one set of input shapes to tune for, found several: give one size, not a range")

        def tuning(on_progress: Progress, cancel: threading.Event) -> None:
            self._tuning = workspace.tune(
                shapes=shapes, runs=runs, provider=provider, on_progress=on_progress, cancel=cancel
            )

        self._start([Step(TUNE, tuning, self._refresh)])

    def _start(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._troubles.pop(step.name, None)
        self._jobs.start(steps)
        self._show_progress(0.0, "Starting" if steps else "")
        self._refresh()

    def _cancel(self) -> None:
        self._jobs.cancel()
        self._controls.cancel.disabled = True
        self._controls.doing.value = "Stopping"

    def _export(self, write: Callable[..., Path], suffix: str) -> None:
        name = self._controls.export_path.value.strip()
        path = Path(name.removesuffix(".onnx") + suffix) if name else Path()
        written = write(path, overwrite=self._controls.replace.value)
        size = f"{written.stat().st_size / 1e6:.2f} MB"
        self._say(f"Wrote {written} ({size}).", "done")

    def _picked(self, item: str) -> None:
        """Something in the graph was clicked: a block's label, a node of a block, another node, or a port."""
        kind, _, name = item.partition(":")
        scene = self._scene()
        if kind == "block":
            self._select(Selection(block=name), reveal=False)
        elif kind == "node":
            region = scene.region_of(name)
            self._select(Selection(block=region.id) if region else Selection(node=name), reveal=False)
        elif kind == "port" and (source := scene.source_of(item)):
            self._select(Selection(node=source))

    def _select(self, selection: Selection, *, reveal: bool = True) -> None:
        if selection == self._selection or self._workspace is None:
            return
        if selection == Selection() and self._selection.node:
            return  # the table says "no block" because a node without one was selected
        self._selection = selection
        self._graph.select(selection, reveal=reveal)
        self._refresh()

    # What the view shows

    def _scene(self) -> Scene:
        plan = self.workspace.plan
        if plan not in self._scenes:
            self._scenes[plan] = scene_of(self.workspace)
        return self._scenes[plan]

    def _refresh(self) -> None:
        """Draw everything but the graph from the workspace; what did not change is not sent."""
        c, workspace = self._controls, self._workspace
        reasons = unavailable(workspace, self._selection.block)
        buttons = {
            "Fuse": c.fuse, "Fuse all": c.fuse_all, "Undo": c.undo, "Redo": c.redo, "Verify": c.verify,
            "Profile": c.profile, "Tune": c.tune, "Export model": c.export_model, "Export plan": c.export_plan,
        }  # fmt: skip
        for name, button in buttons.items():
            button.disabled, button.tooltip = name in reasons, reasons.get(name, name)
        alike = fusable_alike(workspace, self._selection.block)
        c.fuse_alike.description = f"Fuse all {alike} like this"
        c.fuse_alike.layout.display = None if alike > 1 else "none"
        c.hint.value = panels.unavailable({name: reasons[name] for name in ("Fuse", "Fuse all") if name in reasons})
        self._refresh_work()
        if workspace is None:
            c.about.value = c.details.value = c.counts.value = c.numbers.value = ""
            c.table.rows = []
            self._profile.show(None, "", "")
            self._refresh_tuning("")
            return
        scene = self._scene()
        labels = {block.id: block.label for block in workspace.blocks}
        fused = self._selection.block in workspace.plan.blocks
        c.fuse.description = f"{'Unfuse' if fused else 'Fuse'} {labels.get(self._selection.block, '')}".strip()
        c.about.value = panels.about(workspace.source.name, scene.info, len(workspace.blocks), workspace.notes)
        c.counts.value = panels.counts(workspace.ops_before, workspace.ops_after)
        c.table.rows = table_rows(block_rows(workspace, casts_left(scene)))
        c.table.selected = self._selection.block
        c.details.value = self._details(workspace, scene)
        anything, running = bool(workspace.plan.fusions), self._jobs.running
        nothing = "Nothing is fused yet: fuse a block, and it is checked at once."
        if anything:
            nothing = "" if running else "Not compared yet: press Verify."
        c.numbers.value = self._trouble(VERIFY) + panels.verdict(workspace.verdict, labels, nothing)
        nothing = "Fuse a block to compare, or press Profile to measure the model as it is."
        if anything:
            nothing = "" if running else "Not measured yet: press Profile."
        self._profile.show(workspace.last_profile, self._trouble(PROFILE), nothing)
        self._refresh_tuning(measured.tuning(self._tuning or workspace.tuning))

    def _details(self, workspace: Workspace, scene: Scene) -> str:
        block = next((item for item in workspace.blocks if item.id == self._selection.block), None)
        if block is not None:
            offers = [
                (target, choice.words, choice.obstacles) for target, choice in workspace.choices(block.id).items()
            ]
            fastest = workspace.choice(block.id)
            if fastest.target:
                offers.insert(0, (f"fastest: {fastest.target}", fastest.words, ()))
            family, body = workspace.family(block.id), workspace.scope(block.id)
            place = [f"One of {family}."] if len(family.blocks) > 1 else []
            place += [f"It stands in the body of {body}."] if body else []
            if target := workspace.plan.target(block.id):
                place.append(f"It has become {workspace.choice(block.id, target).words}.")
            return panels.block(block, workspace.status(block.id), offers, workspace.obstacles(block.id), place)
        node = scene.node(self._selection.node)
        if node is not None:
            return panels.node(node, scene.info)
        return panels.nothing_selected(bool(workspace.blocks))

    def _refresh_tuning(self, shown: str) -> None:
        c = self._controls
        c.tuned.value = self._trouble(TUNE) + shown
        c.tuning.layout.display = None if c.tuned.value else "none"

    def _trouble(self, name: str) -> str:
        return panels.message(self._troubles.get(name, ""))

    # What the work beside the kernel says

    def _refresh_work(self) -> None:
        c, running = self._controls, self._jobs.running
        c.cancel.disabled = not running
        c.cancel.tooltip = "Stop the running work" if running else "Nothing runs"
        c.progress.layout.visibility = "visible" if running else "hidden"

    def _show_progress(self, fraction: float, text: str) -> None:
        self._controls.progress.value = fraction
        self._controls.doing.value = panels.plain(text)

    def _step_failed(self, name: str, error: ExplorerError) -> None:
        self._troubles[name] = str(error)
        self._refresh()

    def _ended(self, cancelled: bool) -> None:
        self._show_progress(0.0, "Cancelled" if cancelled else "")
        self._refresh()
