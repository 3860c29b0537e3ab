"""A fusion plan: which blocks become which operator. Small, plain JSON that can be reviewed and replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from explorer.attention import Block
from explorer.attention.family import describe, fingerprint, label_range
from explorer.errors import PlanError
from explorer.model import Model

SCHEMA = 2

Provider = Literal["cuda", "cpu"]

# So many changed blocks are explained in one message; the others are named.
_MOST_EXPLAINED = 6
_FUSION_FIELDS = ("block", "target", "label", "family", "words")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a plan is made for."""

    provider: Provider = "cuda"
    """The execution provider on which "auto" chooses the fastest target."""


@dataclass(frozen=True, slots=True, order=True)
class Fusion:
    """One decision: the block with this id becomes this target ("mha", "attention/bnsh").

    The rest says what the block was, so that it can be told in another model; two decisions that differ in it alone are
    equal.
    """

    block: str
    target: str
    label: str = field(default="", compare=False)
    """Its label ("attn3") in the model that the plan was made for."""
    family: str = field(default="", compare=False)
    """Its `fingerprint`."""
    words: str = field(default="", compare=False)
    """Its description."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a block of a plan in another model."""

    fusion: Fusion
    kind: Literal["moved", "changed", "vanished"]
    words: str
    """A sentence without its full stop."""
    block: str
    """Id of the block now, "" if it vanished."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions about one model, in no order: applying a plan gives the same model whatever the order of its making."""

    source_digest: str
    fusions: tuple[Fusion, ...] = ()
    settings: Settings = Settings()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Ids of the blocks that the plan fuses."""
        return tuple(fusion.block for fusion in self.fusions)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that equal plans share."""
        decisions = [self.source_digest, self.settings.provider, [[item.block, item.target] for item in self.fusions]]
        return hashlib.sha256(json.dumps(decisions).encode()).hexdigest()[:12]

    def target(self, block_id: str) -> str | None:
        """The target chosen for a block, or None if the plan leaves it alone."""
        return next((fusion.target for fusion in self.fusions if fusion.block == block_id), None)

    def with_fusion(self, block: Block, target: str) -> Plan:
        """This plan with one more decision (or another target for the same block)."""
        others = self.without(block.id).fusions
        fusion = Fusion(block.id, target, block.label, fingerprint(block), describe(block))
        return replace(self, fusions=tuple(sorted((*others, fusion))))

    def without(self, block_id: str) -> Plan:
        """This plan with the block left as it is."""
        return replace(self, fusions=tuple(fusion for fusion in self.fusions if fusion.block != block_id))

    # On another model

    def fit(self, blocks: Sequence[Block]) -> tuple[Change, ...]:
        """How the blocks of the plan differ from `blocks`, those of another model; empty if all are found unchanged.

        A block is found by its id. If that is gone, it moved to the one block that is like it and that no decision is
        about; several that are gone moved in order to as many like them.
        """
        by_id = {block.id: block for block in blocks}
        planned = set(self.blocks)
        free: dict[str, list[Block]] = {}
        for block in blocks:
            if block.id not in planned:
                free.setdefault(fingerprint(block), []).append(block)
        gone: dict[str, list[Fusion]] = {}
        for fusion in sorted(self.fusions, key=_by_label):
            if fusion.block not in by_id:
                gone.setdefault(fusion.family, []).append(fusion)
        moved: dict[str, Block] = {}
        for family, fusions in gone.items():
            if len(fusions) == len(alike := free.get(family, [])):
                moved.update(zip((fusion.block for fusion in fusions), alike, strict=True))
        found = (_change(fusion, by_id.get(fusion.block), moved.get(fusion.block)) for fusion in self.fusions)
        return tuple(sorted((change for change in found if change), key=lambda change: _by_label(change.fusion)))

    def rebase(self, model: Model, blocks: Sequence[Block]) -> Plan:
        """The same plan for another model, in whose `blocks` all those of the plan are found unchanged.

        PlanError otherwise, which names each block that moved, changed or vanished.
        """
        if changes := self.fit(blocks):
            said = [change.words for change in changes[:_MOST_EXPLAINED]]
            if rest := [change.fusion.label or change.fusion.block for change in changes[_MOST_EXPLAINED:]]:
                said.append(f"{label_range(rest)} changed likewise")
            raise PlanError(
                f"expected the blocks that the plan was made for, found another model: {'; '.join(said)}: "
                "plan again, or apply the plan by family"
            )
        return self._on(model, ((block, self.target(block.id)) for block in blocks))

    def by_family(self, model: Model, blocks: Sequence[Block]) -> Plan:
        """The plan for another model that gives each block the target that the plan gave to those like it.

        Blocks with obstacles are left alone. PlanError if no block is like one of the plan's, or if the plan gave
        different targets to blocks that are alike.
        """
        chosen: dict[str, Fusion] = {}
        for fusion in sorted(self.fusions, key=_by_label):
            first = chosen.setdefault(fusion.family, fusion)
            if first.target != fusion.target:
                raise PlanError(
                    f"expected one target for each family in the plan, found {first.target} for {first.label} and "
                    f"{fusion.target} for {fusion.label}, which are alike: decide for one of them"
                )
        free = [(block, fingerprint(block)) for block in blocks if not block.obstacles]
        targets = [(block, chosen[family].target) for block, family in free if family in chosen]
        if not targets:
            planned = "; ".join(dict.fromkeys(fusion.words for fusion in self.fusions)) or "none at all"
            there = "; ".join(dict.fromkeys(map(describe, blocks))) or "none at all"
            raise PlanError(f"expected a block like one of the plan's ({planned}), found others ({there}): plan anew")
        return self._on(model, targets)

    def _on(self, model: Model, targets: Iterable[tuple[Block, str | None]]) -> Plan:
        plan = Plan(model.digest, settings=self.settings)
        for block, target in targets:
            plan = plan if target is None else plan.with_fusion(block, target)
        return plan

    # As a document

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        return {
            "schema": SCHEMA,
            "source_digest": self.source_digest,
            "settings": {"provider": self.settings.provider},
            "fusions": [{name: getattr(fusion, name) for name in _FUSION_FIELDS} for fusion in self.fusions],
        }

    @staticmethod
    def from_json(document: Any) -> Plan:
        """Read a plan document; PlanError says what is missing or wrong."""
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = _shown(document.get("schema") if isinstance(document, dict) else document)
            raise PlanError(f'expected a plan with "schema": {SCHEMA}, found {found}: export the plan again')
        listed = document.get("fusions")
        if not isinstance(listed, list):
            raise PlanError(f'expected a list of "fusions" in the plan, found {_shown(listed)}: export the plan again')
        fusions = tuple(sorted(Fusion(*(_text(item, name) for name in _FUSION_FIELDS)) for item in listed))
        provider = _text(document.get("settings"), "provider")
        if provider not in get_args(Provider):
            raise PlanError(f"expected the provider cuda or cpu in the plan, found {provider[:40]!r}: name one of them")
        plan = Plan(_text(document, "source_digest"), fusions, Settings(cast(Provider, provider)))
        if len(set(plan.blocks)) != len(plan.blocks):
            raise PlanError("expected each block once in the plan, found one twice: remove one of its fusions")
        return plan

    @staticmethod
    def load(path: Path | str) -> Plan:
        """Read a plan from a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PlanError(f"expected a readable plan file at {path}: {error}") from None
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"expected JSON in the plan {path}, found something else: {error}") from None
        return Plan.from_json(document)


def _change(fusion: Fusion, block: Block | None, moved_to: Block | None) -> Change | None:
    """What became of a block: `block` has its id, `moved_to` is like it and has another."""
    name = f"{fusion.label} ({fusion.block})" if fusion.label else fusion.block
    if block is not None:
        if fingerprint(block) != fusion.family:
            words = f"{name} changed: it was {fusion.words}, it is {describe(block)}"
            return Change(fusion, "changed", words, block.id)
        if block.label != fusion.label:
            return Change(fusion, "moved", f"{name} moved: it is {block.label} now", block.id)
        return None
    if moved_to is not None:
        return Change(fusion, "moved", f"{name} moved: {moved_to.label} ({moved_to.id}) is like it", moved_to.id)
    return Change(fusion, "vanished", f"{name} vanished: it was {fusion.words}", "")


def _by_label(fusion: Fusion) -> tuple[int, str]:
    return len(fusion.label), fusion.label  # attn2 before attn10


def _text(document: Any, name: str) -> str:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, str):
        raise PlanError(f"expected a text as {name!r} in the plan, found {_shown(found)}: export the plan again")
    return found


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value) if isinstance(value, int) else f"a {type(value).__name__}"
