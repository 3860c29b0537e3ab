"""The models that plans lead to, the latest ones kept."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.attention import Block
from explorer.fusion.apply import apply
from explorer.fusion.plan import Plan
from explorer.model import Model

# In memory each is as large as the graph; one that is needed again is made again.
_KEPT = 4


class Fused:
    """`model` under each plan that is asked for."""

    def __init__(self, model: Model, blocks: Sequence[Block]) -> None:
        self._source = model
        self._blocks = blocks
        self._made: dict[Plan, Model] = {}  # the latest used last

    def model(self, plan: Plan) -> Model:
        """The source itself for a plan without fusions. Raises what `apply` does."""
        if not plan.fusions and plan.source_digest == self._source.digest:
            return self._source
        found = self._made.pop(plan, None) or apply(self._source, self._blocks, plan)
        self._made[plan] = found
        for oldest in list(self._made)[:-_KEPT]:
            del self._made[oldest]
        return found
