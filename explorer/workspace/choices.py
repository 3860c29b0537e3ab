"""Which target each block can become, and which one "auto" stands for: by rules, or by what was measured here."""

from __future__ import annotations

from explorer import fusion
from explorer.attention import Block, Obstacle
from explorer.errors import InputError
from explorer.fusion import OPERATORS, Choice
from explorer.fusion.plan import Settings
from explorer.model import Model
from explorer.runtime import Worker
from explorer.tune import Tuning, choose
from explorer.tune.store import Found, find


class Choices:
    """The choices for the blocks of `model`, each made once."""

    def __init__(self, model: Model, worker: Worker) -> None:
        self._model = model
        self._worker = worker
        self._tunings: dict[str, Found] = {}
        self._made: dict[tuple[str, str, Settings], Choice] = {}
        self._by_rules: dict[tuple[str, Settings], Choice] = {}

    def tuning(self, settings: Settings) -> Found:
        """What "auto" goes by: the tuning that was given, else one kept for this model, provider and machine."""
        if settings.provider not in self._tunings:
            self._tunings[settings.provider] = find(self._worker, self._model.file_digest, settings.provider)
        return self._tunings[settings.provider]

    def use(self, tuning: Tuning) -> None:
        """Let "auto" go by `tuning` on its provider from now on; InputError if it is of another model."""
        if tuning.file != self._model.file_digest:
            raise InputError("expected a tuning of the opened model, found one of another: tune this model")
        self._tunings[tuning.provider] = Found(tuning)
        self._made.clear()

    def of(self, block: Block, wish: str, settings: Settings) -> Choice:
        """The choice for this block; BlockError if `wish` is no target."""
        key = (block.id, wish, settings)
        if key not in self._made:
            tuning = self.tuning(settings).tuning if wish == "auto" else None
            self._made[key] = choose(self._model, block, wish, settings, tuning)
        return self._made[key]

    def all(self, block: Block, settings: Settings) -> dict[str, Choice]:
        """Every target operator with what it means for the block; empty for one that is an operator already."""
        return {} if block.fused_as else {target: self.of(block, target, settings) for target in OPERATORS}

    def obstacles(self, block: Block, settings: Settings) -> tuple[Obstacle, ...]:
        """What is in the way of every target; that the block is faster as it is does not count."""
        key = (block.id, settings)
        if key not in self._by_rules:
            self._by_rules[key] = fusion.choose(self._model, block, "auto", settings)
        return () if block.fused_as else self._by_rules[key].obstacles
