"""The attention blocks of a model, and the evidence for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from explorer.attention import Block, MaskTerm
from explorer.attention.block import layout_name
from explorer.report.blocks import alike, labelled, obstacle_document, place
from explorer.report.layout import plural, table, text
from explorer.workspace import Workspace

SCHEMA = 1
_NAMES = re.compile(r" \([^()]*\)| '[^']*'")  # as `ort_reason` writes them


def scan_document(workspace: Workspace) -> dict[str, Any]:
    """What `onnx-explorer scan --json` prints."""
    return {
        "schema": SCHEMA,
        "model": str(workspace.source),
        "source_digest": workspace.model.digest,
        "nodes": len(workspace.model.nodes),
        "ops": workspace.ops_before,
        "notes": list(workspace.notes),
        "families": [{"label": family.label, "blocks": list(family.blocks)} for family in workspace.families],
        "blocks": [block_document(workspace, block) for block in workspace.blocks],
    }


def block_document(workspace: Workspace, block: Block) -> dict[str, Any]:
    """One block of a scan."""
    return {
        "id": block.id,
        "label": block.label,
        "anchor": block.anchor,
        "scope": workspace.scope(block.id),
        "status": workspace.status(block.id),
        "fused_as": block.fused_as or None,
        "num_heads": block.num_heads,
        "kv_num_heads": block.kv_num_heads,
        "head_size": block.head_size,
        "v_head_size": block.v_head_size,
        "sizes": dict(block.sizes),
        "taken_for": dict(block.taken_for),
        "scale": block.scale,
        "factor": None if block.factor is None else block.factor.value,
        "mask": {"kind": block.mask.kind, "terms": [_term(term) for term in block.mask.terms]},
        "softcap": block.softcap,
        "nan_guard": block.nan_guard,
        "dtype": block.dtype or None,
        "softmax_dtype": block.softmax_dtype or None,
        "layouts": _layouts(block),
        "casts": list(block.casts),
        "nodes": [{"name": node.name, "op_type": node.op_type, "role": node.role} for node in block.region],
        "targets": [target for target, choice in workspace.choices(block.id).items() if choice.target],
        "obstacles": [obstacle_document(obstacle) for obstacle in workspace.obstacles(block.id)],
        "evidence": [{"text": step.text, "nodes": list(step.nodes)} for step in block.evidence],
        "ort_reason": block.ort_reason or None,
    }


def scan_text(workspace: Workspace, *, every_block: bool = False) -> str:
    """A scan for a terminal: a row for each family of blocks, or for each block."""
    found = plural(len(workspace.blocks), "attention block")
    lines = [f"{workspace.source.name}: {plural(len(workspace.model.nodes), 'node')}, {found}"]
    lines += [f"note: {note}" for note in workspace.notes]
    if workspace.blocks:
        groups = alike(workspace)
        lines += ["", *_overview(workspace, [[block] for block in workspace.blocks] if every_block else groups), ""]
        for group in groups:
            for item in workspace.obstacles(group[0].id):
                lines.append(f"{labelled(group)} cannot be fused: at {place(group, item)}, {item}")
        lines += [f"Why ONNX Runtime leaves {whom} alone: {why}" for why, whom in _reasons(workspace.blocks)]
        more = "--explain BLOCK shows the evidence for a block."
        lines += [
            "",
            more if every_block or len(groups) == len(workspace.blocks) else f"--all lists all blocks, {more}",
        ]
    return text(lines)


def explain_text(workspace: Workspace, name: str) -> str:
    """The evidence for one block, by id or label, step by step; BlockError if there is no such block."""
    block = workspace.block(name)
    family = workspace.family(block.id)
    inside = workspace.scope(block.id)
    lines = [
        f"{block.label} ({block.id}) at {block.anchor}: {workspace.status(block.id)}",
        *([f"in the body of {inside}"] if inside else []),
        *([f"one of {family}"] if len(family.blocks) > 1 else []),
        "",
        *_overview(workspace, [[block]]),
        "",
    ]
    for number, step in enumerate(block.evidence, 1):
        lines.append(f"{number:>3}. {step.text}")
        lines += [f"     {node}" for node in step.nodes]
    lines += [f"It cannot be fused: at {item.at}, {item}" for item in workspace.obstacles(block.id)]
    if block.ort_reason:
        lines.append(f"Why ONNX Runtime leaves it alone: {block.ort_reason}")
    return text(lines)


def _term(term: MaskTerm) -> dict[str, Any]:
    return {"kind": term.kind, "value": term.value, "shape": list(term.shape), "coefficient": term.coefficient}


def _layouts(block: Block) -> dict[str, str] | None:
    if block.query is None or block.key is None or block.value is None:
        return None
    return {
        "query": layout_name(block.query.source.layout),
        "key": layout_name(block.key.source.layout),
        "value": layout_name(block.value.source.layout),
    }


def _overview(workspace: Workspace, groups: Sequence[Sequence[Block]]) -> list[str]:
    """A table of blocks that are alike, a row for each group; columns that say nothing here are left out."""
    blocks = [group[0] for group in groups]
    alone = all(len(group) == 1 for group in groups)
    columns: dict[str, list[str]] = {
        "block" if alone else "blocks": [labelled(group) for group in groups],
        "count": [] if alone else [str(len(group)) for group in groups],
        "status": [workspace.status(block.id) for block in blocks],
        "heads": [_beside(block.num_heads, block.kv_num_heads, "kv") for block in blocks],
        "head size": [_beside(block.head_size, block.v_head_size, "v") for block in blocks],
        "scale": ["?" if block.scale is None else f"{block.scale:.6g}" for block in blocks],
        "mask": [block.mask.kind for block in blocks],
        "softcap": ["" if block.softcap is None else f"{block.softcap:.6g}" for block in blocks],
        "types": [" → ".join(dict.fromkeys(filter(None, (block.dtype, block.softmax_dtype)))) for block in blocks],
        "Casts": [str(len(block.casts)) for block in blocks],
        "id": [block.id for block in blocks] if alone else [],
        "anchor": [block.anchor for block in blocks] if alone else [],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    return table(tuple(shown), list(zip(*shown.values(), strict=True)))


def _beside(number: int | None, other: int | None, whose: str) -> str:
    """ "32", or "32 (8 kv)" where the other number differs."""
    same = other is None or other == number
    return _or_unknown(number) + ("" if same else f" ({other} {whose})")


def _or_unknown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _reasons(blocks: Iterable[Block]) -> list[tuple[str, str]]:
    """Each reason of ORT once, with the blocks it holds for; from layer to layer reasons differ in names only."""
    first: dict[str, tuple[str, list[Block]]] = {}
    for block in blocks:
        if block.ort_reason:
            kind = _NAMES.sub("", block.ort_reason)
            first.setdefault(kind, (block.ort_reason, []))[1].append(block)
    return [(why, labelled(those)) for why, those in first.values()]
