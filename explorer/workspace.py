"""The headless explorer: one model, a plan that grows step by step, and what is known of each step.

State is immutable (a `Plan`); fusing, undoing and redoing move along a history of states. Fused models, verdicts and
profiles are kept by plan, so undo never loses a measurement and never shows one of another model.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from explorer.attention import Block, Obstacle, Status, recognise
from explorer.attention.family import Family, families, label_range
from explorer.errors import BlockError, ExportError
from explorer.fusion import TARGETS, Choice, Plan, choose
from explorer.fusion.fused import Fused
from explorer.fusion.plan import Provider, Settings
from explorer.fusion.provenance import PROVENANCE
from explorer.history import History
from explorer.model import Model, load, save, write_atomically
from explorer.model.save import ExternalData, external_files, same_file
from explorer.profile import Profile, profile_models
from explorer.runtime import Worker
from explorer.verify import Loading, Verdict, fitting_inputs, given_case, verify

PROFILE_LENGTH = 256
"""Size of a dynamic dimension (other than the batch) in a profile, unless shapes are given."""

OnProgress = Callable[[float, str], None]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What a fuse did: ids of the blocks it fused, and those it left alone with the first reason."""

    fused: tuple[str, ...]
    skipped: tuple[tuple[str, Obstacle], ...]
    notes: tuple[str, ...] = ()
    """What could not be made sure of here, in sentences."""


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
        plan = Plan(model.digest, settings=settings or Settings())
        self._history = History("Opened", plan)
        self._choices: dict[tuple[str, str, Settings], Choice] = {}
        self._fused = Fused(model, self.blocks)
        self._verdicts: dict[Plan, Verdict] = {}
        self._profiles: dict[Plan, Profile] = {}
        self._worker = worker or Worker()
        self._loading = Loading(self._worker, model, self.blocks)
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
        return self._history.plan

    @property
    def current(self) -> Model:
        """The source with the current plan applied."""
        return self._fused.model(self.plan)

    @property
    def history(self) -> tuple[str, ...]:
        """Each step in words, the opening first; steps behind `cursor` can be redone."""
        return tuple(step.words for step in self._history.steps)

    @property
    def cursor(self) -> int:
        """Position in `history` of the current state."""
        return self._history.cursor

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
        return self._profiles.get(self.plan)

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
        return "fusable" if self._choose(block, "auto").target else "blocked"

    def obstacles(self, name: str) -> tuple[Obstacle, ...]:
        """Why the block cannot be fused; empty if it can be, or is."""
        block = self.block(name)
        return () if block.fused_as else self._choose(block, "auto").obstacles

    def choice(self, name: str) -> Choice:
        """What "auto" chooses for the block, and in words why; or no target, and the obstacles."""
        return self._choose(self.block(name), "auto")

    def choices(self, name: str) -> dict[str, Choice]:
        """Every target operator with what it means for the block, or with what stands in its way."""
        block = self.block(name)
        return {} if block.fused_as else {target: self._choose(block, target) for target in TARGETS}

    def scope(self, name: str) -> str | None:
        """Key of the If, Loop or Scan in whose body the block stands; None in the main graph."""
        body = self.model.node(self.block(name).anchor).graph
        if body is self.model.ir.graph:
            return None
        attributes = ((node, attribute) for node in self.model.nodes for attribute in node.attributes.values())
        return next(self.model.key(node) for node, attribute in attributes if attribute.value is body)

    def nodes_of(self, name: str) -> tuple[str, ...]:
        """Keys of the block's nodes in the current model: its region, or the nodes that replaced it."""
        block, current = self.block(name), self.current
        if self.plan.target(block.id) is None:
            return tuple(key for key in block.nodes if current.has_node(key))
        mark = f"{PROVENANCE}block"
        return tuple(current.key(node) for node in current.nodes if node.metadata_props.get(mark) == block.id)

    # Steps

    def fuse(self, *names: str, target: str = "auto") -> FuseReport:
        """Fuse the blocks with these ids or labels; BlockError, and nothing done, if one of them cannot be."""
        blocks = [self.block(name) for name in names]
        report = self._fuse(blocks, target)
        for block_id, obstacle in report.skipped:
            block = self.block(block_id)
            raise BlockError(f"{block.label} ({block.anchor}) cannot be fused at {obstacle.at!r}: {obstacle}")
        return self._commit(report, blocks, target)

    def fuse_all(self, target: str = "auto", skip: Sequence[str] = ()) -> FuseReport:
        """Fuse every block that can be but those named in `skip`; the report says what is in the way of the others."""
        left = {self.block(name).id for name in skip}
        blocks = [block for block in self.blocks if block.id not in left and self.status(block.id) != "fused"]
        return self._commit(self._fuse(blocks, target), blocks, target)

    def fuse_family(self, name: str, target: str = "auto") -> FuseReport:
        """Fuse the block with this id or label and every other of its family that can be, in one step.

        The report names those left alone with the first thing in the way; BlockError if there is no such block.
        """
        blocks = [self.block(member) for member in self.family(name).blocks if self.status(member) != "fused"]
        return self._commit(self._fuse(blocks, target), blocks, target)

    def unfuse(self, *names: str) -> None:
        """Put these blocks back as they were in the source."""
        blocks = [self.block(name) for name in names]
        plan = self.plan
        for block in blocks:
            plan = plan.without(block.id)
        self._step(f"Unfused {_labels(blocks)}", plan, FuseReport((), ()))

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
        return self._step(f"Applied a plan of {len(plan.fusions)} fusions", plan, FuseReport(plan.blocks, ()))

    def undo(self) -> None:
        """Go one step back; nothing happens at the first."""
        self._history.undo()

    def redo(self) -> None:
        """Go one step forward again; nothing happens at the last."""
        self._history.redo()

    @property
    def can_undo(self) -> bool:
        """True if there is a step to go back to."""
        return self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """True if there is a step to go forward to."""
        return self._history.can_redo

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
        shapes: Shapes | None = None,
        runs: int = 20,
        seed: int = 0,
        provider: str = "auto",
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
    ) -> Profile:
        """Time the source against the current model in one worker process, and see what ORT makes of each.

        `shapes` fixes inputs; dynamic dimensions left open are 2 for a batch, 256 otherwise or as many as the model
        takes. `provider` is "auto", "cuda" or "cpu". Raises InputError, SessionError or WorkerError.
        """
        plan, fused = self.plan, self.current
        feeds = fitting_inputs(self._worker, self.model, shapes, seed, PROFILE_LENGTH, provider=provider, cancel=cancel)
        variants = [("original", self.model)] + ([("fused", fused)] if plan.fusions else [])
        result = profile_models(
            self._worker,
            variants,
            feeds,
            provider=provider,
            runs=runs,
            seed=seed,
            on_progress=on_progress,
            cancel=cancel,
        )
        self._profiles[plan] = result
        return result

    # Results

    def export(self, path: str | Path, overwrite: bool = False, data: ExternalData = "share") -> Path:
        """Write the current model to `path` in one step; ExportError if it exists (unless `overwrite`) or cannot be.

        `data` says what becomes of the files that hold weights outside the model: "share" leaves them to both models
        (the new one must be written into their folder), "copy" copies them beside the new model, "link" gives them a
        second name there.
        """
        self._spare_the_source(path)
        if self.plan.fusions:
            self._loading.model(self.plan, self.current)
        return save(self.current.ir, path, overwrite=overwrite, data=data)

    def export_plan(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the current plan as JSON; ExportError as for `export`."""
        self._spare_the_source(path)
        text = json.dumps(self.plan.to_json(), indent=2) + "\n"
        return write_atomically(text.encode(), path, overwrite=overwrite)

    def export_verdict(self, path: str | Path, block: str = "", overwrite: bool = False) -> Path:
        """Write the latest verdict on the current model as JSON, or all that it says of one block.

        ExportError as for `export`, or if there is none; BlockError if the verdict is not about such a block.
        """
        self._spare_the_source(path)
        verdict = self.verdict
        if verdict is None:
            raise ExportError("expected a verdict on the current model, found none: verify it first")
        if not block:
            document = verdict.to_json()
        elif (found := self.block(block)).id in {item.block for item in verdict.blocks}:
            document = verdict.block_report(found.id)
        else:
            raise BlockError(f"expected a block that was compared, found {found.label}: fuse it and verify again")
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        return write_atomically(text.encode(), path, overwrite=overwrite)

    # Inner workings

    def _spare_the_source(self, path: str | Path) -> None:
        """ExportError if `path` is the opened model or one of the files that hold its weights."""
        for own in (self.source, *external_files(self.model.ir)):
            if same_file(Path(path), own):
                raise ExportError(f"expected another file than {own}, which the opened model consists of: it is kept")

    def _choose(self, block: Block, target: str) -> Choice:
        key = (block.id, target, self.plan.settings)
        if key not in self._choices:
            self._choices[key] = choose(self.model, block, target, self.plan.settings)
        return self._choices[key]

    def _fuse(self, blocks: list[Block], target: str) -> FuseReport:
        chosen = [(block, self._choose(block, target)) for block in blocks]
        return FuseReport(
            fused=tuple(block.id for block, choice in chosen if choice.target),
            skipped=tuple((block.id, choice.obstacles[0]) for block, choice in chosen if not choice.target),
        )

    def _commit(self, report: FuseReport, blocks: list[Block], target: str) -> FuseReport:
        plan = self.plan
        for block_id in report.fused:
            block = self._by_id[block_id]
            plan = plan.with_fusion(block, self._choose(block, target).target)
        return self._step(f"Fused {_labels([block for block in blocks if block.id in report.fused])}", plan, report)

    def _step(self, words: str, plan: Plan, report: FuseReport) -> FuseReport:
        if plan == self.plan:
            return report
        # Before it becomes a step: a plan that fails leaves no trace
        notes = self._loading.blocks(plan, self._fused.model(plan))
        self._history.add(words, plan)
        return replace(report, notes=notes)


def open_workspace(path: str | Path, shapes: Shapes | None = None, provider: Provider = "cuda") -> Workspace:
    """Open the ONNX model at `path`; ModelError in one sentence if that cannot be.

    `shapes` ({"x": (2, 938, 100)}) are taken for those of its inputs: what is found holds for them, and an exported
    model declares them. `provider` is the one on which the target "auto" is to be the fastest.
    """
    return Workspace(load(path, shapes=shapes), Settings(provider))


def _labels(blocks: list[Block]) -> str:
    if len(blocks) > 3:
        return f"{len(blocks)} blocks ({label_range([block.label for block in blocks])})"
    return ", ".join(block.label for block in blocks) or "nothing"
