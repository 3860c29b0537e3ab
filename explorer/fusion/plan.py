"""A fusion plan: which blocks become which operator. Small, plain JSON that can be reviewed and replayed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from explorer.errors import PlanError

SCHEMA = 1


@dataclass(frozen=True, slots=True, order=True)
class Fusion:
    """One decision: the block with this id becomes this target operator ("mha")."""

    block: str
    target: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions about one model, in no order: applying a plan gives the same model whatever the order of its making."""

    source_digest: str
    fusions: tuple[Fusion, ...] = ()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Ids of the blocks that the plan fuses."""
        return tuple(fusion.block for fusion in self.fusions)

    def target(self, block_id: str) -> str | None:
        """The target chosen for a block, or None if the plan leaves it alone."""
        return next((fusion.target for fusion in self.fusions if fusion.block == block_id), None)

    def with_fusion(self, block_id: str, target: str) -> Plan:
        """This plan with one more decision (or another target for the same block)."""
        others = self.without(block_id).fusions
        return replace(self, fusions=tuple(sorted((*others, Fusion(block_id, target)))))

    def without(self, block_id: str) -> Plan:
        """This plan with the block left as it is."""
        return replace(self, fusions=tuple(fusion for fusion in self.fusions if fusion.block != block_id))

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        fusions = [{"block": fusion.block, "target": fusion.target} for fusion in self.fusions]
        return {"schema": SCHEMA, "source_digest": self.source_digest, "fusions": fusions}

    @staticmethod
    def from_json(document: Any) -> Plan:
        """Read a plan document; PlanError says what is missing or wrong."""
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise PlanError(f'expected a plan with "schema": {SCHEMA}, found {found!r}: export the plan again')
        try:
            fusions = tuple(sorted(Fusion(str(item["block"]), str(item["target"])) for item in document["fusions"]))
            plan = Plan(str(document["source_digest"]), fusions)
        except (KeyError, TypeError) as error:
            raise PlanError(f"expected source_digest and fusions of block and target in the plan: {error}") from None
        if len(set(plan.blocks)) != len(plan.blocks):
            raise PlanError("expected each block once in the plan, found one twice: remove one of its fusions")
        return plan

    @staticmethod
    def load(path: Path | str) -> Plan:
        """Read a plan from a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"expected a readable plan file at {path}: {error}") from None
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"expected JSON in the plan {path}, found something else at line {error.lineno}") from None
        return Plan.from_json(document)
