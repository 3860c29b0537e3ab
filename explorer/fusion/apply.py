"""Apply a plan: a model and decisions → a new model with each chosen block replaced by one operator.

The source is never changed. Only what a block made superfluous goes; graph inputs, outputs and all names stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.errors import BlockError, ModelError, PlanError
from explorer.fusion.check import new_flaw
from explorer.fusion.choose import choose
from explorer.fusion.opset import raised
from explorer.fusion.plan import Plan
from explorer.fusion.rewrite import Rewriter
from explorer.fusion.targets import TARGETS
from explorer.model import Model
from explorer.model.pause import collector_paused


def apply(model: Model, blocks: Sequence[Block], plan: Plan) -> Model:
    """`model` with every fusion of `plan` carried out: the same plan gives the same bytes, whatever its history.

    A target of a newer operator set than the model's raises the model to that. The result has passed ONNX's checker
    and strict shape inference, as far as the source does. Raises PlanError if the plan is for another model or names a
    block that is not among `blocks`, BlockError if a block cannot become its target, ModelError if the result is not a
    valid model (a defect here, caught before anyone sees it).
    """
    if plan.source_digest != model.digest:
        raise PlanError("expected a plan made for this very file, found one for another: scan and plan again")
    if unknown := set(plan.blocks) - {block.id for block in blocks}:
        raise PlanError(f"expected a block {min(unknown)!r} in the model, found none: scan and plan again")
    planned = [(block, target) for block in blocks if (target := plan.target(block.id)) is not None]
    for block, target in planned:
        if obstacles := choose(model, block, target).obstacles:
            raise BlockError(f"{block.label} ({block.anchor}) cannot become {target}: {obstacles[0]}")
    places = {node: place for place, node in enumerate(model.nodes)}
    planned.sort(key=lambda pair: places[_last(model, pair[0])])
    with collector_paused():
        graph = _start(model, [target for _, target in planned])
        rewriter = Rewriter(model, graph, plan.digest)
        for block, target in planned:
            rewriter.fuse(block, target)
        rewriter.tidy()
        if planned and (found := new_flaw(graph, model.ir)):
            raise ModelError(f"expected the fused graph to be valid ONNX, found: {found}; nothing was changed")
        types = {**model.types, **rewriter.types}
        return Model(graph, path=model.path, digest=model.digest, types=types, notes=model.notes)


def _last(model: Model, block: Block) -> ir.Node:
    """The node that computes the block's output."""
    assert block.output is not None
    node = model.value(block.output.value).producer()
    assert node is not None
    return node


def _start(model: Model, targets: Iterable[str]) -> ir.Model:
    """A copy of the model, of an operator set that has what the targets write."""
    opset = max((TARGETS[target].min_opset for target in targets), default=0)
    if opset <= model.opset:
        return model.ir.clone()
    newer = raised(model, opset)
    if isinstance(newer, Obstacle):
        raise BlockError(str(newer))
    return newer.clone()
