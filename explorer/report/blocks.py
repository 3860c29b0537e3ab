"""Attention blocks: those that are alike together, and what is in their way."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.attention import Block, Obstacle
from explorer.attention.family import label_range
from explorer.workspace import Workspace


def alike(workspace: Workspace) -> list[list[Block]]:
    """The members of each family, those apart in whose way something else stands."""
    found: dict[tuple[object, ...], list[Block]] = {}
    for family in workspace.families:
        for block in map(workspace.block, family.blocks):
            codes = tuple(item.code for item in workspace.obstacles(block.id))
            found.setdefault((family, workspace.status(block.id), codes), []).append(block)
    return list(found.values())


def labelled(blocks: Sequence[Block]) -> str:
    """Their labels, those in a row as a range."""
    return label_range([block.label for block in blocks])


def place(blocks: Sequence[Block], item: Obstacle) -> str:
    """Where an obstacle is, shown for the first of several blocks that have it."""
    return item.at if len(blocks) == 1 else f"{item.at} (in {blocks[0].label}, and likewise in the others)"


def obstacle_document(obstacle: Obstacle) -> dict[str, str]:
    """An obstacle as JSON."""
    return {
        "code": obstacle.code,
        "at": obstacle.at,
        "expected": obstacle.expected,
        "found": obstacle.found,
        "hint": obstacle.hint,
    }
