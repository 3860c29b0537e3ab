"""From a model to its attention blocks.

Each Softmax that stands between a product of two computed tensors and another one is read (`reading`, `naming`). What
changes the meaning is an obstacle on the block; a Softmax that does not stand between two such products is no attention
and is not listed. Operators that already are attention are listed, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from explorer.attention.block import Block
from explorer.attention.fused import fused_block, is_fused
from explorer.attention.paths import ways_down, ways_up
from explorer.attention.reading import Reading
from explorer.attention.softmax import Softmax, softmax_at
from explorer.attention.walk import Notes
from explorer.model import Model

# Of several products upstream (a relative position bias is one, too) the right one is among the nearest.
_MAX_CANDIDATES = 3


def recognise(model: Model) -> tuple[Block, ...]:
    """All attention blocks of `model` in graph order; each Softmax or fused operator gives at most one."""
    blocks: list[Block] = []
    claimed: frozenset[str] = frozenset()
    order = {model.key(node): at for at, node in enumerate(model.nodes)}
    for node in model.nodes:
        label = f"attn{len(blocks)}"
        if is_fused(node):
            blocks.append(fused_block(model, node, label))
        elif (softmax := softmax_at(model, node)) is not None and (
            block := _best(model, softmax, label, claimed, order)
        ) is not None:
            blocks.append(block)
            # What prepares Q, K and V may be shared between blocks; the rest of a region is its own
            claimed |= {part.name for part in block.region if part.role not in ("layout", "scale", "cast", "repeat")}
    return tuple(blocks)


def _best(
    model: Model, softmax: Softmax, label: str, claimed: frozenset[str], order: Mapping[str, int]
) -> Block | None:
    """The block of the nearest product upstream that gives one without obstacles, or of the nearest."""
    down = next(ways_down(model, softmax.result), None)
    first: Block | None = None
    if down is None:
        return None
    for count, up in enumerate(ways_up(model, softmax.value), 1):
        block = Reading(Notes(model, claimed), order, softmax, up, down).block(label)
        first = first or block
        if not block.obstacles:
            return block
        if count == _MAX_CANDIDATES:
            break
    return first
