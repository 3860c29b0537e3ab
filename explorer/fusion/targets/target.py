"""What a target operator must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.fusion.emit import Emitter, Shared
from explorer.fusion.forms import LayoutName
from explorer.fusion.plan import Provider
from explorer.model import Model

Kernel = Literal["cudnn", "flash", "memory-efficient", "math", "cpu", "cpu-float16"]
"""What computes the operator: on CUDA cuDNN's flash kernel, Flash Attention 2, the memory-efficient one of CUTLASS, or
matrix products and a softmax ("math"); on the CPU in float32, or in float16."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a block is rewritten: the scanned model, the block, and the values of the graph being written."""

    model: Model
    block: Block
    emit: Emitter
    value: Callable[[str], ir.Value]
    """A value of the graph being written, by its name in the scanned model."""
    shared: Shared


@dataclass(frozen=True, slots=True)
class Cost:
    """What a target costs for one block."""

    layout_nodes: int
    """Nodes that stand between the operator and what lies around the block: written for it, or left for it to read."""
    transposes: int
    """Those of them that move data; a Reshape does not."""
    kernels: tuple[Kernel, ...]
    """What can compute it on the provider, the best first; empty if nothing can."""
    layout: LayoutName
    """The layout that this is the cost of."""


class Target(Protocol):
    """One operator that attention can be fused to."""

    name: str
    """Name in plans and on the command line: "mha", or with a layout "mha/bsd"."""
    layout: LayoutName | None
    """The only layout that it writes; None for the cheapest of all that the operator has."""
    operator: str
    """Full operator name, "domain.OpType"."""
    min_opset: int
    """The oldest version of ai.onnx that has all nodes that it writes."""

    def obstacles(self, model: Model, block: Block) -> tuple[Obstacle, ...]:
        """Why this operator cannot express `block`; empty if it can.

        One with the code "repeat" stands only in the way of choosing it unasked.
        """

    def cost(self, model: Model, block: Block, provider: Provider) -> Cost:
        """What the operator costs, for a block without obstacles other than "repeat"."""

    def build(self, site: Site) -> ir.Value:
        """Write the operator and its layout nodes; return a value that holds the block's output in its layout."""

    def words(self, model: Model, block: Block) -> str:
        """What choosing this operator means for such a block: where it reads, what becomes of the mask."""
