"""The headless explorer: one model, a plan that grows step by step, and what is known of each step.

State is immutable (a `Plan`); fusing, undoing and redoing move along a history of states. Fused models, verdicts and
profiles are kept by plan, so undo never loses a measurement and never shows one of another model.
"""

from __future__ import annotations

import json
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from explorer.attention import Block, Obstacle, Status, recognise
from explorer.attention.family import Family, families, label_range
from explorer.errors import BlockError, ExportError, PlanError
from explorer.fusion import TARGETS, Plan, apply, choose
from explorer.fusion.apply import PROVENANCE
from explorer.model import Model, load, save, write_atomically
from explorer.model.save import data_folder, external_files, same_file, serialize
from explorer.profile import Profile, VariantSpec, profile
from explorer.runtime import Worker
from explorer.verify import Verdict, load_inputs, seeded_inputs, verify

PROFILE_LENGTH = 256
"""Size of a dynamic dimension (other than the batch) in a profile, unless shapes are given."""

OnProgress = Callable[[float, str], None]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A target operator for a block: why it cannot express it, or in words what choosing it means."""

    target: str
    obstacles: tuple[Obstacle, ...]
    words: str


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What a fuse did: ids of the blocks it fused, and those it left alone with the first reason."""

    fused: tuple[str, ...]
    skipped: tuple[tuple[str, Obstacle], ...]


@dataclass(frozen=True, slots=True)
class _Step:
    words: str
    plan: Plan


class Workspace:
    """A model opened for exploring. Every error is an `ExplorerError` whose text is one sentence."""

    def __init__(self, model: Model) -> None:
        self.model = model
        """The source model; it is never changed."""
        self.blocks: tuple[Block, ...] = recognise(model)
        """The attention blocks of the source, in graph order."""
        self.families: tuple[Family, ...] = families(self.blocks)
        """Blocks that mean and are spelled the same, in the order of their first members; every block is in one."""
        self._by_id = {block.id: block for block in self.blocks}
        plan = Plan(model.digest)
        self._steps: tuple[_Step, ...] = (_Step("Opened", plan),)
        self.cursor = 0
        """Position in `history` of the current state."""
        self._models: dict[Plan, Model] = {plan: model}
        self._verdicts: dict[Plan, Verdict] = {}
        self._profiles: dict[Plan, Profile] = {}
        self._worker = Worker()
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
        return self._steps[self.cursor].plan

    @property
    def current(self) -> Model:
        """The source with the current plan applied."""
        return self._model_of(self.plan)

    @property
    def history(self) -> tuple[str, ...]:
        """Each step in words, the opening first; steps behind `cursor` can be redone."""
        return tuple(step.words for step in self._steps)

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
        return "fusable" if choose(self.model, block, "auto")[0] else "blocked"

    def obstacles(self, name: str) -> tuple[Obstacle, ...]:
        """Why the block cannot be fused; empty if it can be, or is."""
        block = self.block(name)
        return () if block.fused_as else choose(self.model, block, "auto")[1]

    def choices(self, name: str) -> tuple[Choice, ...]:
        """Every target operator with what it means for the block."""
        block = self.block(name)
        if block.fused_as:
            return ()
        found = []
        for target in TARGETS:
            chosen, obstacles = choose(self.model, block, target)
            found.append(Choice(target, obstacles, TARGETS[target].words(self.model, block) if chosen else ""))
        return tuple(found)

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

    def fuse_all(self, target: str = "auto") -> FuseReport:
        """Fuse every block that can be; the report names the others with the first thing in the way."""
        blocks = [block for block in self.blocks if self.status(block.id) != "fused"]
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
        self._step(f"Unfused {_labels(blocks)}", plan)

    def apply_plan(self, plan: Plan) -> None:
        """Make `plan` the current plan; PlanError or BlockError if it does not fit this model."""
        apply(self.model, self.blocks, plan)
        self._step(f"Applied a plan of {len(plan.fusions)} fusions", plan)

    def undo(self) -> None:
        """Go one step back; nothing happens at the first."""
        self.cursor = max(self.cursor - 1, 0)

    def redo(self) -> None:
        """Go one step forward again; nothing happens at the last."""
        self.cursor = min(self.cursor + 1, len(self._steps) - 1)

    @property
    def can_undo(self) -> bool:
        """True if there is a step to go back to."""
        return self.cursor > 0

    @property
    def can_redo(self) -> bool:
        """True if there is a step to go forward to."""
        return self.cursor < len(self._steps) - 1

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

        `inputs`: an .npz with one array for each graph input; else seeded ones of `shapes` (dynamic dimensions left
        open are 2 for a batch, 32 otherwise). Raises InputError, SessionError or WorkerError.
        """
        plan, fused = self.plan, self.current
        feeds = seeded_inputs(self.model, shapes, seed) if inputs is None else load_inputs(self.model, inputs)
        blocks = [block for block in self.blocks if plan.target(block.id)]
        verdict = verify(
            self._worker,
            self.model,
            fused,
            blocks,
            feeds,
            seed=seed if inputs is None else None,
            provider=provider,
            on_progress=on_progress,
            cancel=cancel,
        )
        self._verdicts[plan] = verdict
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

        `shapes` fixes inputs; dynamic dimensions left open are 2 for a batch, 256 otherwise. `provider` is "auto",
        "cuda" or "cpu". Raises InputError, SessionError or WorkerError.
        """
        plan, fused = self.plan, self.current
        feeds = seeded_inputs(self.model, shapes, seed, length=PROFILE_LENGTH)
        variants = [("original", self.model)] + ([("fused", fused)] if plan.fusions else [])
        result = profile_models(self._worker, variants, feeds, runs, seed, provider, on_progress, cancel)
        self._profiles[plan] = result
        return result

    # Results

    def export(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the current model to `path` in one step; ExportError if it exists (unless `overwrite`) or cannot be.

        A model that refers to external data is written into the folder of that data, which both then share.
        """
        self._spare_the_source(path)
        return save(self.current.ir, path, overwrite=overwrite)

    def export_plan(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the current plan as JSON; ExportError as for `export`."""
        self._spare_the_source(path)
        text = json.dumps(self.plan.to_json(), indent=2) + "\n"
        return write_atomically(text.encode(), path, overwrite=overwrite)

    # Inner workings

    def _spare_the_source(self, path: str | Path) -> None:
        """ExportError if `path` is the opened model or one of the files that hold its weights."""
        for own in (self.source, *external_files(self.model.ir)):
            if same_file(Path(path), own):
                raise ExportError(f"expected another file than {own}, which the opened model consists of: it is kept")

    def _model_of(self, plan: Plan) -> Model:
        if plan not in self._models:
            self._models[plan] = apply(self.model, self.blocks, plan)
        return self._models[plan]

    def _fuse(self, blocks: list[Block], target: str) -> FuseReport:
        fused, skipped = [], []
        for block in blocks:
            chosen, obstacles = choose(self.model, block, target)
            if chosen:
                fused.append(block.id)
            else:
                skipped.append((block.id, obstacles[0]))
        return FuseReport(tuple(fused), tuple(skipped))

    def _commit(self, report: FuseReport, blocks: list[Block], target: str) -> FuseReport:
        plan = self.plan
        for block_id in report.fused:
            plan = plan.with_fusion(block_id, choose(self.model, self._by_id[block_id], target)[0])
        self._step(f"Fused {_labels([block for block in blocks if block.id in report.fused])}", plan)
        return report

    def _step(self, words: str, plan: Plan) -> None:
        if plan == self.plan:
            return
        if plan.source_digest != self.model.digest:
            raise PlanError("expected a plan made for this very file, found one for another: scan and plan again")
        self._model_of(plan)  # before it becomes a step: a plan that fails leaves no trace
        self._steps = (*self._steps[: self.cursor + 1], _Step(words, plan))
        self.cursor += 1


def open_workspace(path: str | Path, shapes: Shapes | None = None) -> Workspace:
    """Open the ONNX model at `path`; ModelError in one sentence if that cannot be.

    `shapes` ({"x": (2, 938, 100)}) are taken for those of its inputs: what is found holds for them, and an exported
    model declares them.
    """
    return Workspace(load(path, shapes=shapes))


def profile_models(
    worker: Worker,
    variants: list[tuple[str, Model]],
    feeds: Mapping[str, np.ndarray],
    runs: int,
    seed: int,
    provider: str,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> Profile:
    """Write the variants to a temporary folder and profile them there."""
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        specs = []
        for name, model in variants:
            file = Path(folder, f"{name}.onnx")
            file.write_bytes(serialize(model.ir))
            data = data_folder(model.ir)
            specs.append(VariantSpec(name, str(file), None if data is None else str(data)))
        return profile(
            worker, specs, feeds, provider=provider, runs=runs, seed=seed, on_progress=on_progress, cancel=cancel
        )


def _labels(blocks: list[Block]) -> str:
    if len(blocks) > 3:
        return f"{len(blocks)} blocks ({label_range([block.label for block in blocks])})"
    return ", ".join(block.label for block in blocks) or "nothing"
