"""Sizes of values inside a block, told from values outside it: once it is fused there are no logits left to ask.

TorchScript asks any tensor at hand for its shape. A Shape of the logits stands in nobody's way as long as each of its
dimensions can be read off query, key or value instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from explorer.attention.block import Block
from explorer.attention.layouts import taken
from explorer.model import Dim, Model
from explorer.model.dims import divide

_MAX_AXES = 3


@dataclass(frozen=True, slots=True)
class Measure:
    """factor times the sizes of some axes, each of a value by name; without any the factor alone."""

    factor: int
    axes: tuple[tuple[str, int], ...] = ()


def measures(model: Model, value: ir.Value, block: Block) -> tuple[Measure, ...] | None:
    """The dimensions of `value`, inside `block`, each read off one of its operands; None if that cannot be."""
    shape = model.shape(value)
    # the values furthest upstream: whatever is fused, they stay
    sources = [operand.source.value for operand in (block.query, block.key, block.value) if operand is not None]
    found = [_measure(model, taken(dim, block.taken_for), sources) for dim in shape or ()]
    known = tuple(item for item in found if item is not None)
    return known if shape is not None and len(known) == len(found) else None


def _measure(model: Model, dim: Dim, sources: list[str], axes: tuple[tuple[str, int], ...] = ()) -> Measure | None:
    if isinstance(dim, int):
        return Measure(dim, axes)
    for name in sources if len(axes) < _MAX_AXES else ():
        for axis, size in enumerate(model.shape(model.value(name)) or ()):
            rest = None if isinstance(size, int) else divide(dim, size)
            if rest is not None and (found := _measure(model, rest, sources, (*axes, (name, axis)))) is not None:
                return found
    return None
