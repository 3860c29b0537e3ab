"""Families: blocks that mean the same and are spelled the same, so that one look at one of them does for all."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from explorer.attention.block import Block, MaskTerm, Operand
from explorer.model import Dim
from explorer.model.dims import is_known

_SAME_SCALE = 1e-6
_MOST_RANGES = 4


@dataclass(frozen=True, slots=True)
class Family:
    """Blocks that differ in nothing but where they stand and what their nodes are called."""

    label: str
    """Labels of the members, in the graph's order: "attn0…attn21", "attn0, attn2, attn4"."""
    blocks: tuple[str, ...]
    """Ids of the members, in the graph's order."""

    def __str__(self) -> str:
        count = len(self.blocks)
        return self.label if count == 1 else f"{self.label}: {count} identical blocks"


def families(blocks: Iterable[Block]) -> tuple[Family, ...]:
    """The families of `blocks`, in the order of their first members: sizes, scale (to 1e-6 of it), mask, element types,
    layouts, operators and obstacles are alike, whatever the nodes are called."""
    alike: dict[tuple[object, ...], list[list[Block]]] = {}
    groups: list[list[Block]] = []
    for block in blocks:
        same = alike.setdefault(_features(block), [])
        group = next((group for group in same if _close(group[0].scale, block.scale)), None)
        if group is None:
            group = []
            same.append(group)
            groups.append(group)
        group.append(block)
    return tuple(
        Family(label_range([block.label for block in group]), tuple(block.id for block in group)) for group in groups
    )


def describe(block: Block) -> str:
    """What a block computes, whatever its nodes are called and however they spell it.

    "16 heads of 64, logits [2, 16, seq, seq], scale 100, no mask, float16, softmax in float32"; what is not known of a
    block is left out.
    """
    facts = [_heads(block), _logits(block)]
    if block.scale is not None:
        facts.append(f"scale {block.scale:.6g}")
    if block.factor is not None:
        facts.append(f"times a factor {_shape(block.factor.shape)}")
    if block.softcap is not None:
        facts.append(f"capped at {block.softcap:.6g}")
    facts.append(_mask(block))
    if block.nan_guard:
        facts.append("zeros where no key is seen")
    facts.append(block.dtype)
    if block.softmax_dtype not in ("", block.dtype):
        facts.append(f"softmax in {block.softmax_dtype}")
    if block.fused_as:
        facts.append(f"fused as {block.fused_as}")
    return ", ".join(fact for fact in facts if fact)


def fingerprint(block: Block) -> str:
    """What `describe` says, as 12 hexadecimal digits: members of a family share it, in whatever model they are."""
    return hashlib.sha256(describe(block).encode()).hexdigest()[:12]


def _heads(block: Block) -> str:
    if block.num_heads is None:
        return ""
    text = f"{block.num_heads} heads" if block.head_size is None else f"{block.num_heads} heads of {block.head_size}"
    if block.kv_num_heads not in (None, block.num_heads):
        text += f", {block.kv_num_heads} for keys and values"
    if block.v_head_size not in (None, block.head_size):
        text += f", values of {block.v_head_size}"
    return text


def _logits(block: Block) -> str:
    groups = (block.batch, block.heads, block.rows, block.keys)
    known = {letter for letter, _ in block.sizes}
    return f"logits {_shape(map(block.size, groups))}" if set("".join(groups)) <= known else ""


def _mask(block: Block) -> str:
    terms = [f"{term.dtype} {_shape(term.shape)}".strip() for term in block.mask.terms]
    return " ".join([f"{'no' if block.mask.kind == 'none' else block.mask.kind} mask", " + ".join(terms)]).strip()


def _shape(dims: Iterable[Dim]) -> str:
    return f"[{', '.join(str(_size(dim)) for dim in dims)}]"


def label_range(labels: Sequence[str]) -> str:
    """Labels in short: those that count up by one as a range, the middle of many ranges left out."""
    ranges: list[list[str]] = []
    for label in labels:
        if ranges and _follows(ranges[-1][-1], label):
            ranges[-1].append(label)
        else:
            ranges.append([label])
    parts = [part[0] if len(part) == 1 else f"{part[0]}…{part[-1]}" for part in ranges]
    if len(parts) > _MOST_RANGES:
        parts = [*parts[: _MOST_RANGES - 1], "…", parts[-1]]
    return ", ".join(parts)


def _follows(before: str, label: str) -> bool:
    (name, number), (next_name, next_number) = (_counted(text) for text in (before, label))
    return name == next_name and number is not None and next_number == number + 1


def _counted(label: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.*?)(\d+)", label, re.DOTALL)
    return (label, None) if found is None else (found[1], int(found[2]))


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_SAME_SCALE) or (math.isnan(one) and math.isnan(other))


def _features(block: Block) -> tuple[object, ...]:
    """All that members of a family share, but for the scale."""
    return (
        tuple((letter, _size(dim)) for letter, dim in block.sizes),
        tuple(_size(size) for _, size in block.taken_for),
        (block.batch, block.heads, block.kv_heads, block.rows, block.keys),
        (block.num_heads, block.kv_num_heads, block.head_size, block.v_head_size),
        block.softcap,
        block.factor and (tuple(map(_size, block.factor.shape)), block.factor.layout, block.factor.dtype),
        block.nan_guard,
        (block.dtype, block.softmax_dtype, block.fused_as),
        (block.mask.kind, tuple(map(_term, block.mask.terms))),
        tuple(_views(operand) for operand in (block.query, block.key, block.value)),
        block.output and (block.output.layout, block.output.dtype),
        tuple((node.role, node.op_type) for node in block.region),
        tuple(obstacle.code for obstacle in block.obstacles),
    )


def _size(dim: Dim) -> Dim:
    # What nobody knows has another name in each block
    return dim if is_known(dim) else "?"


def _term(term: MaskTerm) -> tuple[object, ...]:
    numbers = tuple(f"{number:.6g}" for number in (term.coefficient, term.fill))
    return term.kind, tuple(map(_size, term.shape)), term.layout, term.dtype, numbers, term.keep_when


def _views(operand: Operand | None) -> tuple[object, ...]:
    return () if operand is None else tuple((view.layout, view.dtype) for view in operand.views)
