"""Where the attention blocks of a model are, whether spelled out or fused: for people, and to tell their time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from explorer.attention import Block
from explorer.fusion.provenance import PROVENANCE
from explorer.model import Model
from explorer.profile import Region

_BLOCK, _PLAN = f"{PROVENANCE}block", f"{PROVENANCE}plan"


def regions(model: Model, blocks: Sequence[Block]) -> tuple[Region, ...]:
    """The regions of `blocks` in `model`, which is their source or was made of it.

    Nodes that say which block they stand for have no role; those of a block that was left alone have that of its part.
    """
    fused: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.nodes:
        if of := node.metadata_props.get(_BLOCK):
            fused[of].append(node)
    found = [_region(model, of, ((node, "") for node in nodes)) for of, nodes in fused.items()]
    told = {id(node) for nodes in fused.values() for node in nodes}
    for block in blocks:
        parts = [(model.node(part.name), part.role) for part in block.region if model.has_node(part.name)]
        if block.id not in fused and not any(id(node) in told for node, _ in parts):
            # A block that is one operator in the file has no parts to tell apart
            found.append(_region(model, block.id, ((node, "" if role == "fused" else role) for node, role in parts)))
    return tuple(region for region in found if region.outputs)


def nodes_of(model: Model, block: Block) -> tuple[str, ...]:
    """Keys of the block's nodes in `model`, its source or made of it: its region, or the nodes that stand for it."""
    fused = tuple(model.key(node) for node in model.nodes if node.metadata_props.get(_BLOCK) == block.id)
    return fused or tuple(key for key in block.nodes if model.has_node(key))


def scope(model: Model, block: Block) -> str | None:
    """Key of the If, Loop or Scan in whose body the block stands; None in the main graph."""
    body = model.node(block.anchor).graph
    if body is model.ir.graph:
        return None
    attributes = ((node, attribute) for node in model.nodes for attribute in node.attributes.values())
    return next(model.key(node) for node, attribute in attributes if attribute.value is body)


def plan_digest(model: Model) -> str:
    """The digest of the fusion plan that all fused nodes of `model` name; "" if there is none, or are several."""
    digests = {digest for node in model.nodes if (digest := node.metadata_props.get(_PLAN))}
    return digests.pop() if len(digests) == 1 else ""


def _region(model: Model, block: str, parts: Iterable[tuple[ir.Node, str]]) -> Region:
    nodes = list(parts)
    return Region(
        block,
        tuple((model.key(node), role) for node, role in nodes),
        tuple(value.name for node, _ in nodes for value in node.outputs if value.name),
    )
