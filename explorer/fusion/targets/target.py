"""What a target operator must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.fusion.bias import BiasCache
from explorer.fusion.emit import Emitter
from explorer.model import Model


@dataclass(frozen=True, slots=True)
class Site:
    """Where a block is rewritten: the scanned model, the block, and the values of the graph being written."""

    model: Model
    block: Block
    emit: Emitter
    value: Callable[[str], ir.Value]
    """A value of the graph being written, by its name in the scanned model."""
    biases: BiasCache


class Target(Protocol):
    """One operator that attention can be fused to."""

    name: str
    """Name in plans and on the command line."""
    operator: str
    """Full operator name, "domain.OpType"."""

    def obstacles(self, model: Model, block: Block) -> tuple[Obstacle, ...]:
        """Why this operator cannot express `block`; empty if it can."""

    def build(self, site: Site) -> ir.Value:
        """Write the operator and its layout nodes; return a value that holds the block's output in its layout."""

    def words(self, model: Model, block: Block) -> str:
        """What choosing this operator means for this block: layout nodes added, masks, kernels it can reach."""
