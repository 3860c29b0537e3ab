"""The plan that grows step by step: what a fuse would do, and each step that was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from explorer.attention import Block, Obstacle
from explorer.attention.family import label_range
from explorer.fusion import Plan
from explorer.fusion.fused import Fused
from explorer.fusion.plan import Settings
from explorer.history import History
from explorer.model import Model
from explorer.verify import Loading
from explorer.workspace.choices import Choices


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What a fuse did: ids of the blocks it fused, and those it left alone with the first reason."""

    fused: tuple[str, ...]
    skipped: tuple[tuple[str, Obstacle], ...]
    notes: tuple[str, ...] = ()
    """What could not be made sure of here, in sentences."""


class Steps:
    """The states of one model: a history of plans, each loaded before it becomes a step."""

    def __init__(
        self, model: Model, blocks: Sequence[Block], settings: Settings, loading: Loading, choices: Choices
    ) -> None:
        self.history = History("Opened", Plan(model.digest, settings=settings))
        self.choices = choices
        self._blocks = {block.id: block for block in blocks}
        self._fused = Fused(model, blocks)
        self._loading = loading

    @property
    def plan(self) -> Plan:
        """The plan of the current step."""
        return self.history.plan

    @property
    def current(self) -> Model:
        """The source with that plan applied."""
        return self._fused.model(self.plan)

    def foresee(self, blocks: Sequence[Block], target: str) -> FuseReport:
        """What `fuse` would do; nothing is done."""
        chosen = [(block, self.choices.of(block, target, self.plan.settings)) for block in blocks]
        fused = tuple(block.id for block, choice in chosen if choice.target)
        skipped = tuple((block.id, choice.obstacles[0]) for block, choice in chosen if not choice.target)
        return FuseReport(fused, skipped, self._why(fused) if target == "auto" else ())

    def _why(self, fused: Sequence[str]) -> tuple[str, ...]:
        """What "auto" went by for these blocks, if that was measured."""
        found = self.choices.tuning(self.plan.settings)
        families = () if found.tuning is None else found.tuning.families
        tuned = [(family.label, block) for family in families for block in family.blocks if block in fused]
        measured = (f"{label}: {found.tuning.words(block)}" for label, block in dict(tuned).items() if found.tuning)
        return (*found.notes, *measured)

    def fuse(self, blocks: Sequence[Block], target: str) -> FuseReport:
        """Fuse those of `blocks` that can be, in one step."""
        report, plan = self.foresee(blocks, target), self.plan
        fused = [self._blocks[block] for block in report.fused]
        for block in fused:
            plan = plan.with_fusion(block, self.choices.of(block, target, plan.settings).target)
        return self.take(f"Fused {listed(fused)}", plan, report)

    def take(self, words: str, plan: Plan, report: FuseReport) -> FuseReport:
        """Make `plan` the current one and add to the report what loading it said; a plan that fails leaves no trace."""
        if plan == self.plan:
            return report
        notes = self._loading.blocks(plan, self._fused.model(plan))
        self.history.add(words, plan)
        return replace(report, notes=(*report.notes, *notes))


def listed(blocks: Sequence[Block]) -> str:
    """The labels of `blocks`, shortened where they are many."""
    if len(blocks) > 3:
        return f"{len(blocks)} blocks ({label_range([block.label for block in blocks])})"
    return ", ".join(block.label for block in blocks) or "nothing"
