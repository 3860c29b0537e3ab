"""Steps back and forth: every plan that was current once, in words."""

from __future__ import annotations

from dataclasses import dataclass

from explorer.fusion import Plan


@dataclass(frozen=True, slots=True)
class Step:
    """What was done, in words, and the plan that it led to."""

    words: str
    plan: Plan


class History:
    """The steps that were taken, the first of them the opening, and the cursor at the current one."""

    def __init__(self, words: str, plan: Plan) -> None:
        self.steps: tuple[Step, ...] = (Step(words, plan),)
        self.cursor = 0

    @property
    def plan(self) -> Plan:
        """The plan of the current step."""
        return self.steps[self.cursor].plan

    @property
    def can_undo(self) -> bool:
        """True if there is a step to go back to."""
        return self.cursor > 0

    @property
    def can_redo(self) -> bool:
        """True if there is a step to go forward to."""
        return self.cursor < len(self.steps) - 1

    def add(self, words: str, plan: Plan) -> None:
        """Take a step; those that were undone are forgotten."""
        self.steps = (*self.steps[: self.cursor + 1], Step(words, plan))
        self.cursor += 1

    def undo(self) -> None:
        """Go one step back; nothing happens at the first."""
        self.cursor = max(self.cursor - 1, 0)

    def redo(self) -> None:
        """Go one step forward again; nothing happens at the last."""
        self.cursor = min(self.cursor + 1, len(self.steps) - 1)
