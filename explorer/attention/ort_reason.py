"""Why ONNX Runtime's own fusions leave a block alone, in one or two sentences."""

from __future__ import annotations

from explorer.attention.block import Block
from explorer.attention.ort_rules import ATTENTION, DIT, OFFLINE
from explorer.attention.ort_walk import Outcome, closest, named, scalar_of
from explorer.model import Model


def ort_reason(model: Model, block: Block) -> str:
    """What keeps ORT's own fusions from `block`, or which one would take it if run by hand; "" if it is fused."""
    qk, pv = (next((n.name for n in block.region if n.role == role), None) for role in ("qk", "pv"))
    if block.fused_as or qk is None or pv is None:
        return ""
    product = model.node(qk)
    session = _session_words(closest(model, product, (ATTENTION,)))
    if product.op_type != "MatMul":
        return f"{session} So do the {len(OFFLINE)} offline rules looked at."
    if product.graph is not model.ir.graph:
        return f"{session} ORT's offline rules do not look into the body of an If, Loop or Scan."
    return f"{session} {_offline_words(model, closest(model, product, OFFLINE))}"


def _session_words(found: Outcome) -> str:
    if not found.stop:
        return f"A session (ORT_ENABLE_ALL) may fuse this: its {found.rule.name} stops at none of the nodes looked at."
    return f"A session (ORT_ENABLE_ALL) does not fuse this: its {found.rule.name} {found.stop}."


def _offline_words(model: Model, found: Outcome) -> str:
    rule, command = found.rule, f"python -m onnxruntime.transformers.optimizer --model_type {found.rule.model_type}"
    if found.stop:
        closest_one = f"The closest of the {len(OFFLINE)} offline rules looked at, {rule.name}"
        return f"{closest_one} (model_type {rule.model_type!r}), {found.stop}."
    if not rule.whole:
        return f"An offline rule, {rule.name}, stops at none of the nodes looked at; try {command} --opt_level 0."
    by_hand = f"but only if run by hand: {command} --opt_level 0."
    return f"ORT's offline rule, {rule.name}, would fuse it, {by_hand}{_harm(model, found)}"


def _harm(model: Model, found: Outcome) -> str:
    """What the DiT fusion gets silently wrong."""
    if found.rule is not DIT:
        return ""
    shape, scale = model.shape(found.nodes["merge"].outputs[0]), scalar_of(model, found.nodes["scale"])
    if scale == 0:
        return " The result would be wrong: the fused operator reads a scale of 0 as its default."
    if shape is not None and len(shape) != 3:
        merge = named(model, found.nodes["merge"])
        return f" The result would be wrong: {merge} does not give rank 3, and the fused operator does."
    return ""
