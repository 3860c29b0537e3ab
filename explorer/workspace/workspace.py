"""The headless explorer: one model, a plan that grows step by step, and what is known of each step.

State is immutable (a `Plan`); fusing, undoing and redoing move along a history of states. Fused models, verdicts and
profiles are kept by plan, so undo never loses a measurement and never shows one of another model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from explorer.attention import Block, Obstacle, Status, recognise
from explorer.attention.family import Family, families
from explorer.errors import BlockError, ExportError
from explorer.fusion import Choice, Plan
from explorer.fusion.plan import Provider, Settings
from explorer.model import ExternalData, Model, load, save
from explorer.profile import Comparison, Profile, compare
from explorer.runtime import Worker
from explorer.tune import Tuning, store
from explorer.verify import Loading, Verdict, given_case, verify
from explorer.workspace.choices import Choices
from explorer.workspace.exports import spare, verdict_document, write_json
from explorer.workspace.measure import Measurements, OnProgress
from explorer.workspace.points import Shapes
from explorer.workspace.regions import nodes_of, scope
from explorer.workspace.steps import FuseReport, Steps, listed


class Workspace:
    """A model opened for exploring. Every error is an `ExplorerError` whose text is one sentence."""

    def __init__(self, model: Model, settings: Settings | None = None, worker: Worker | None = None) -> None:
        """`settings` are those of its plans; `worker` is one to share, which lives on when this is gone."""
        self.model = model
        """The source model; it is never changed."""
        self.blocks: tuple[Block, ...] = recognise(model)
        """The attention blocks of the source, in graph order."""
        self.families: tuple[Family, ...] = families(self.blocks)
        """Blocks that mean and are spelled the same, in the order of their first members; every block is in one."""
        self._by_id = {block.id: block for block in self.blocks}
        self._worker = worker or Worker()
        self._loading = Loading(self._worker, model, self.blocks)
        self._steps = Steps(model, self.blocks, settings or Settings(), self._loading, Choices(model, self._worker))
        self._verdicts: dict[Plan, Verdict] = {}
        self._measurements = Measurements(self._worker, model, self.blocks)
        if worker is None:
            self._finalizer = weakref.finalize(self, self._worker.close)

    def close(self) -> None:
        """Stop the worker process; the next verify or profile would start another."""
        self._worker.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What there is

    @property
    def source(self) -> Path:
        """The file that was opened."""
        return self.model.path

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the source that a user should know."""
        return self.model.notes

    @property
    def plan(self) -> Plan:
        """The fusions of the current state."""
        return self._steps.plan

    @property
    def current(self) -> Model:
        """The source with the current plan applied."""
        return self._steps.current

    @property
    def history(self) -> tuple[str, ...]:
        """Each step in words, the opening first; steps behind `cursor` can be redone."""
        return tuple(step.words for step in self._steps.history.steps)

    @property
    def cursor(self) -> int:
        """Position in `history` of the current state."""
        return self._steps.history.cursor

    @property
    def ops_before(self) -> dict[str, int]:
        """Nodes of each op type in the source."""
        return self.model.op_counts()

    @property
    def ops_after(self) -> dict[str, int]:
        """Nodes of each op type in the current model."""
        return self.current.op_counts()

    @property
    def verdict(self) -> Verdict | None:
        """The latest verdict on the current model."""
        return self._verdicts.get(self.plan)

    @property
    def last_profile(self) -> Profile | None:
        """The latest profile of the current model."""
        return self._measurements.of(self.plan)

    @property
    def tuning(self) -> Tuning | None:
        """What the target "auto" goes by: the latest tuning, or one kept for this very model, provider and machine.

        Looked up when it is first asked for.
        """
        return self._steps.choices.tuning(self.plan.settings).tuning

    def block(self, name: str) -> Block:
        """The block with this id or label ("attn0"); BlockError if there is none."""
        found = self._by_id.get(name) or next((block for block in self.blocks if block.label == name), None)
        if found is None:
            known = ", ".join(f"{block.label} ({block.id})" for block in self.blocks[:8]) or "none at all"
            raise BlockError(f"expected the id or label of a block, found {name!r}; this model has {known}")
        return found

    def family(self, name: str) -> Family:
        """The family of the block with this id or label; BlockError if there is none."""
        block = self.block(name)
        return next(family for family in self.families if block.id in family.blocks)

    def status(self, name: str) -> Status:
        """ "fused" (by the current plan, or in the file already), "fusable", or "blocked"."""
        block = self.block(name)
        if block.fused_as or self.plan.target(block.id):
            return "fused"
        return "blocked" if self.obstacles(block.id) else "fusable"

    def obstacles(self, name: str) -> tuple[Obstacle, ...]:
        """Why the block cannot be fused; empty if it can be, or is."""
        return self._steps.choices.obstacles(self.block(name), self.plan.settings)

    def choice(self, name: str, target: str = "auto") -> Choice:
        """What `target` comes to for the block, and in words why; or no target, and the obstacles.

        "auto" goes by `tuning` where there is one, else by rules. BlockError for an unknown target.
        """
        return self._steps.choices.of(self.block(name), target, self.plan.settings)

    def choices(self, name: str) -> dict[str, Choice]:
        """Every target operator with what it means for the block, or with what stands in its way."""
        return self._steps.choices.all(self.block(name), self.plan.settings)

    def scope(self, name: str) -> str | None:
        """Key of the If, Loop or Scan in whose body the block stands; None in the main graph."""
        return scope(self.model, self.block(name))

    def nodes_of(self, name: str) -> tuple[str, ...]:
        """Keys of the block's nodes in the current model: its region, or the nodes that replaced it."""
        return nodes_of(self.current, self.block(name))

    # Steps

    def fuse(self, *names: str, target: str = "auto") -> FuseReport:
        """Fuse the blocks with these ids or labels; BlockError, and nothing done, if one of them cannot be."""
        blocks = [self.block(name) for name in names]
        for block_id, obstacle in self._steps.foresee(blocks, target).skipped:
            block = self.block(block_id)
            raise BlockError(f"{block.label} ({block.anchor}) cannot be fused at {obstacle.at!r}: {obstacle}")
        return self._steps.fuse(blocks, target)

    def fuse_all(self, target: str = "auto", skip: Sequence[str] = ()) -> FuseReport:
        """Fuse every block that can be but those named in `skip`; the report says what is in the way of the others."""
        left = {self.block(name).id for name in skip}
        blocks = [block for block in self.blocks if block.id not in left and self.status(block.id) != "fused"]
        return self._steps.fuse(blocks, target)

    def fuse_family(self, name: str, target: str = "auto") -> FuseReport:
        """Fuse the block with this id or label and every other of its family that can be, in one step.

        The report names those left alone with the first thing in the way; BlockError if there is no such block.
        """
        blocks = [self.block(member) for member in self.family(name).blocks if self.status(member) != "fused"]
        return self._steps.fuse(blocks, target)

    def unfuse(self, *names: str) -> None:
        """Put these blocks back as they were in the source."""
        blocks = [self.block(name) for name in names]
        plan = self.plan
        for block in blocks:
            plan = plan.without(block.id)
        self._steps.take(f"Unfused {listed(blocks)}", plan, FuseReport((), ()))

    def apply_plan(self, plan: Plan, *, by_family: bool = False) -> FuseReport:
        """Make `plan` the current plan; PlanError or BlockError if it does not fit this model.

        A plan for another model fits if all its blocks are found unchanged here; otherwise the error says which moved,
        changed or vanished. `by_family` gives every block here the target that the plan gives to blocks like it: so a
        plan for two layers does for all 22.
        """
        if by_family:
            plan = plan.by_family(self.model, self.blocks)
        elif plan.source_digest != self.model.digest:
            plan = plan.rebase(self.model, self.blocks)
        return self._steps.take(f"Applied a plan of {len(plan.fusions)} fusions", plan, FuseReport(plan.blocks, ()))

    def undo(self) -> None:
        """Go one step back; nothing happens at the first."""
        self._steps.history.undo()

    def redo(self) -> None:
        """Go one step forward again; nothing happens at the last."""
        self._steps.history.redo()

    @property
    def can_undo(self) -> bool:
        """True if there is a step to go back to."""
        return self._steps.history.can_undo

    @property
    def can_redo(self) -> bool:
        """True if there is a step to go forward to."""
        return self._steps.history.can_redo

    # Proof and measurement

    def verify(
        self,
        *,
        inputs: str | Path | None = None,
        shapes: Shapes | None = None,
        seed: int = 0,
        provider: str = "auto",
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
    ) -> Verdict:
        """Compare the current model with the source against float64 truth, per block and end to end.

        `inputs`: an .npz with one array for each graph input; else seeded ones of several sizes, or of `shapes` alone
        (`explorer.verify.default_cases`). Raises InputError, SessionError or WorkerError.
        """
        plan, fused = self.plan, self.current
        blocks = [block for block in self.blocks if plan.target(block.id)]
        verdict = verify(
            self._worker,
            self.model,
            fused,
            blocks,
            None if inputs is None else [given_case(self.model, inputs)],
            shapes=shapes,
            seed=seed,
            provider=provider,
            on_progress=on_progress,
            cancel=cancel,
        )
        self._verdicts[plan] = verdict
        self._loading.loaded(plan)
        return verdict

    def profile(
        self,
        *,
        shapes: Shapes | Sequence[Shapes] | None = None,
        runs: int = 20,
        seed: int = 0,
        provider: str = "auto",
        cuda_graph: bool = False,
        trace: bool = True,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        timeout_s: float | None = None,
    ) -> Profile:
        """Time the source against the current model in one worker process, and see where the time of each goes.

        `shapes` fixes inputs; several are as many points of one profile. Dynamic dimensions left open are 2 for a
        batch, 256 otherwise or as many as the model takes. `provider` is "auto", "cuda" or "cpu"; `cuda_graph` also
        times each model as a CUDA graph; without `trace` only latencies are measured. Raises InputError, SessionError
        or WorkerError (WorkerTimeout after `timeout_s` seconds).
        """
        return self._measurements.profile(
            self.plan,
            self.current,
            shapes=shapes,
            runs=runs,
            seed=seed,
            provider=provider,
            cuda_graph=cuda_graph,
            trace=trace,
            on_progress=on_progress,
            cancel=cancel,
            timeout_s=timeout_s,
        )

    def tune(
        self,
        *,
        shapes: Shapes | None = None,
        runs: int = 20,
        seed: int = 0,
        provider: str = "auto",
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
    ) -> Tuning:
        """Measure every family of blocks as every target, cut out and in the model, and find the plan that wins.

        The target "auto" goes by it from now on, here and whenever this model is opened on this machine, if it was
        measured on the provider that "auto" is to be the fastest on. `shapes` and errors are those of `profile`.
        """
        tuning = self._measurements.tune(
            self.families,
            shapes=shapes,
            runs=runs,
            seed=seed,
            provider=provider,
            on_progress=on_progress,
            cancel=cancel,
        )
        try:
            store.save(tuning)
        except ExportError as error:  # what was measured is worth more than its copy
            tuning = replace(tuning, notes=(*tuning.notes, f"It is not kept for later: {error}"))
        return self.use_tuning(tuning)

    def use_tuning(self, tuning: Tuning | str | Path) -> Tuning:
        """Let "auto" go by `tuning`, a value or a saved one; InputError if it is of another model."""
        given = tuning if isinstance(tuning, Tuning) else Tuning.load(tuning)
        self._steps.choices.use(given)
        return given

    def load_profile(self, path: str | Path) -> Profile:
        """Take a saved profile for the latest of the current model; InputError if it is of another model or plan."""
        profile = Profile.load(path)
        self._measurements.keep(self.plan, profile)
        return profile

    def compare(self, before: Profile | str | Path) -> Comparison:
        """How the latest profile of the current model differs from `before`, a profile or a saved one."""
        earlier = before if isinstance(before, Profile) else Profile.load(before)
        return compare(earlier, self._profiled())

    # Results

    def export(self, path: str | Path, overwrite: bool = False, data: ExternalData = "share") -> Path:
        """Write the current model to `path` in one step; ExportError if it exists (unless `overwrite`) or cannot be.

        `data` says what becomes of the files that hold weights outside the model: "share" leaves them to both models
        (the new one must be written into their folder), "copy" copies them beside the new model, "link" gives them a
        second name there.
        """
        spare(self.model, path)
        if self.plan.fusions:
            self._loading.model(self.plan, self.current)
        return save(self.current.ir, path, overwrite=overwrite, data=data)

    def export_plan(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the current plan as JSON; ExportError as for `export`."""
        spare(self.model, path)
        return write_json(self.plan.to_json(), path, overwrite=overwrite)

    def export_profile(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the latest profile of the current model as JSON; ExportError as for `export`, or if there is none."""
        spare(self.model, path)
        return self._profiled().save(path, overwrite=overwrite)

    def export_verdict(self, path: str | Path, block: str = "", overwrite: bool = False) -> Path:
        """Write the latest verdict on the current model as JSON, or all that it says of one block.

        ExportError as for `export`, or if there is none; BlockError if the verdict is not about such a block.
        """
        spare(self.model, path)
        if self.verdict is None:
            raise ExportError("expected a verdict on the current model, found none: verify it first")
        document = verdict_document(self.verdict, self.block(block) if block else None)
        return write_json(document, path, overwrite=overwrite)

    # Inner workings

    def _profiled(self) -> Profile:
        if (profile := self.last_profile) is None:
            raise ExportError("expected a profile of the current model, found none: profile it first")
        return profile


def open_workspace(path: str | Path, shapes: Shapes | None = None, provider: Provider = "cuda") -> Workspace:
    """Open the ONNX model at `path`; ModelError in one sentence if that cannot be.

    `shapes` ({"x": (2, 938, 100)}) are taken for those of its inputs: what is found holds for them, and an exported
    model declares them. `provider` is the one on which the target "auto" is to be the fastest.
    """
    return Workspace(load(path, shapes=shapes), Settings(provider))
