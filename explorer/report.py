"""The same results for programs and for people: JSON documents (`"schema": 1`) and plain text for a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from explorer.attention import Block, MaskTerm, Obstacle
from explorer.attention.block import layout_name
from explorer.attention.family import label_range
from explorer.fusion import TARGETS
from explorer.profile import Profile
from explorer.terminal import plain
from explorer.verify import Comparison, Verdict
from explorer.workspace import FuseReport, Workspace

SCHEMA = 1
_NAMES = re.compile(r" \([^()]*\)| '[^']*'")  # as `ort_reason` writes them
_COUNTED = (
    *("Cast", "Softmax", "MatMul", "Transpose", "Reshape"),
    *("MultiHeadAttention", "Attention", "GroupQueryAttention"),
)


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
        "obstacles": [_obstacle(obstacle) for obstacle in workspace.obstacles(block.id)],
        "evidence": [{"text": step.text, "nodes": list(step.nodes)} for step in block.evidence],
        "ort_reason": block.ort_reason or None,
    }


def fuse_document(
    workspace: Workspace, report: FuseReport, verdict: Verdict | None, output: str | None
) -> dict[str, Any]:
    """What `onnx-explorer fuse --json` prints; `output` is null if no model was written."""
    return {
        "schema": SCHEMA,
        "model": str(workspace.source),
        "output": output,
        "fused": [{"id": fusion.block, "target": fusion.target} for fusion in workspace.plan.fusions],
        "skipped": [{"id": block_id, "obstacle": _obstacle(obstacle)} for block_id, obstacle in report.skipped],
        "notes": list(report.notes),
        "ops_before": workspace.ops_before,
        "ops_after": workspace.ops_after,
        "plan": workspace.plan.to_json(),
        "verdict": None if verdict is None else verdict.to_json(),
    }


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


def _obstacle(obstacle: Obstacle) -> dict[str, str]:
    return {
        "code": obstacle.code,
        "at": obstacle.at,
        "expected": obstacle.expected,
        "found": obstacle.found,
        "hint": obstacle.hint,
    }


def scan_text(workspace: Workspace, *, every_block: bool = False) -> str:
    """A scan for a terminal: a row for each family of blocks, or for each block."""
    found = _plural(len(workspace.blocks), "attention block")
    lines = [f"{workspace.source.name}: {_plural(len(workspace.model.nodes), 'node')}, {found}"]
    lines += [f"note: {note}" for note in workspace.notes]
    if workspace.blocks:
        groups = _groups(workspace)
        lines += ["", *_overview(workspace, [[block] for block in workspace.blocks] if every_block else groups), ""]
        for group in groups:
            for item in workspace.obstacles(group[0].id):
                lines.append(f"{_labels(group)} cannot be fused: at {_place(group, item)}, {item}")
        lines += [f"Why ONNX Runtime leaves {whom} alone: {why}" for why, whom in _reasons(workspace.blocks)]
        more = "--explain BLOCK shows the evidence for a block."
        lines += [
            "",
            more if every_block or len(groups) == len(workspace.blocks) else f"--all lists all blocks, {more}",
        ]
    return _text(lines)


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
    return _text(lines)


def fuse_text(workspace: Workspace, report: FuseReport, verdict: Verdict | None, output: str | None) -> str:
    """The outcome of a fuse for a terminal."""
    lines = [f"Fused {len(workspace.plan.fusions)} of {_plural(len(workspace.blocks), 'attention block')}."]
    skipped = dict(report.skipped)
    for group in _groups(workspace):
        left = [block for block in group if block.id in skipped]
        if left:
            item = skipped[left[0].id]
            lines.append(f"Left {_labels(left)}: at {_place(left, item)}, {item}")
    lines += [f"As {operator}: {count}." for operator, count in Counter(_targets(workspace)).items()]
    lines.append(counts_text(workspace.ops_before, workspace.ops_after))
    lines += [f"note: {note}" for note in report.notes]
    if verdict is not None:
        lines += ["", *_verdict_lines(verdict, {block.id: block.label for block in workspace.blocks})]
    lines += ["", f"Wrote {output}." if output else "No model was written."]
    return _text(lines)


def _targets(workspace: Workspace) -> Iterable[str]:
    return (TARGETS[fusion.target].operator for fusion in workspace.plan.fusions)


def counts_text(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """`Cast 4 → 0, …` for the operators that attention is about."""
    shown = [op for op in _COUNTED if before.get(op) or after.get(op)]
    return ", ".join(f"{op} {before.get(op, 0)} → {after.get(op, 0)}" for op in shown)


def verdict_text(verdict: Verdict, labels: Mapping[str, str]) -> str:
    """A verdict for a terminal; `labels` names blocks by id."""
    return _text(_verdict_lines(verdict, labels))


def _verdict_lines(verdict: Verdict, labels: Mapping[str, str]) -> list[str]:
    compared = (*verdict.blocks, *verdict.outputs)
    rows = [_comparison(item, labels.get(item.block) or item.label or item.block or item.name) for item in compared]
    tried = "; ".join(case.words for case in verdict.cases if not case.refused_by)
    return [
        f"{'PASSED' if verdict.passed else 'FAILED'}: largest error against float64, relative to the largest value",
        *_table(("", "original", "fused", "allowed", "", "worst at"), rows),
        *(f"{item.label or item.name}: {item.problem}" for item in compared if item.problem),
        f"on {verdict.provider.upper()}, inputs: {tried or 'none'}; truth end to end: {verdict.truth}",
        *refused_cases(verdict),
        *(f"note: {note}" for note in verdict.notes),
        *([verdict.suggestion] if verdict.suggestion else []),
    ]


def refused_cases(verdict: Verdict) -> list[str]:
    """A sentence for each set of inputs on which a model did not run."""
    who = {"original": "not tried, since the original does not run", "fused": "FAILED, the fused model does not run"}
    return [f"{case.words}: {who[case.refused_by]}: {case.refusal}" for case in verdict.cases if case.refused_by]


def profile_text(profile: Profile) -> str:
    """A profile for a terminal."""
    rows = [
        (
            variant.name,
            f"{variant.latency.median_ms:.2f} ms",
            f"{variant.latency.q1_ms:.2f} – {variant.latency.q3_ms:.2f}",
            f"{variant.first_run_ms:.1f} ms",
            f"{variant.load_s:.2f} s",
            str(variant.casts_exported),
            str(variant.casts_optimized),
        )
        for variant in profile.variants
    ]
    environment = dict(profile.environment)
    version = environment.get("onnxruntime", "?")
    device = environment.get("gpu") if profile.provider == "cuda" else environment.get("cpu")
    shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in profile.shapes)
    lines = [
        f"On {profile.provider.upper()} ({device or 'unknown device'}), ONNX Runtime {version}; {shapes}",
        profile.provider_note,
        "",
        *_table(("", "median", "middle half", "first run", "load", "Casts", "Casts in ORT's graph"), rows),
    ]
    if profile.ratio is not None:
        first, last, ratio = profile.variants[0].name, profile.variants[-1].name, profile.ratio
        lines.append(f"{first} / {last}: {ratio.value:.2f}× ({ratio.low:.2f} – {ratio.high:.2f})")
    for variant in profile.variants:
        kernels = sorted({(item.operator, item.kernel, item.dtype) for item in variant.kernels})
        lines += [f"{variant.name}: {operator} ran as {kernel} ({dtype})" for operator, kernel, dtype in kernels]
        if variant.op_times:
            times = ", ".join(f"{item.op_type} {item.time_us / 1000:.2f} ms" for item in variant.op_times[:6])
            lines.append(f"{variant.name}, time by operator: {times}")
    notes = dict.fromkeys((*profile.notes, *(variant.op_times_note for variant in profile.variants)))
    return _text([*lines, *(f"note: {note}" for note in notes if note)])


def _groups(workspace: Workspace) -> list[list[Block]]:
    """The members of each family, those apart in whose way something else stands."""
    groups: dict[tuple[object, ...], list[Block]] = {}
    for family in workspace.families:
        for block in map(workspace.block, family.blocks):
            codes = tuple(item.code for item in workspace.obstacles(block.id))
            groups.setdefault((family, workspace.status(block.id), codes), []).append(block)
    return list(groups.values())


def _labels(blocks: Sequence[Block]) -> str:
    return label_range([block.label for block in blocks])


def _place(blocks: Sequence[Block], item: Obstacle) -> str:
    """Where an obstacle is, shown for the first of several blocks that have it."""
    return item.at if len(blocks) == 1 else f"{item.at} (in {blocks[0].label}, and likewise in the others)"


def _overview(workspace: Workspace, groups: Sequence[Sequence[Block]]) -> list[str]:
    """A table of blocks that are alike, a row for each group; columns that say nothing here are left out."""
    blocks = [group[0] for group in groups]
    alone = all(len(group) == 1 for group in groups)
    columns: dict[str, list[str]] = {
        "block" if alone else "blocks": [_labels(group) for group in groups],
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
    return _table(tuple(shown), list(zip(*shown.values(), strict=True)))


def _beside(number: int | None, other: int | None, whose: str) -> str:
    """ "32", or "32 (8 kv)" where the other number differs."""
    same = other is None or other == number
    return _or_unknown(number) + ("" if same else f" ({other} {whose})")


def _or_unknown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _comparison(item: Comparison, name: str) -> tuple[str, ...]:
    broken = f", {item.fused.nonfinite} NaN or infinite" if item.fused.nonfinite else ""
    return (
        name,
        f"{item.original.relative:.1e}",
        f"{item.fused.relative:.1e}{broken}",
        f"{item.allowed:.1e}",
        "pass" if item.passed else "FAIL",
        item.case,
    )


def _reasons(blocks: Iterable[Block]) -> list[tuple[str, str]]:
    """Each reason of ORT once, with the blocks it holds for; from layer to layer reasons differ in names only."""
    first: dict[str, tuple[str, list[Block]]] = {}
    for block in blocks:
        if block.ort_reason:
            kind = _NAMES.sub("", block.ort_reason)
            first.setdefault(kind, (block.ort_reason, []))[1].append(block)
    return [(why, _labels(those)) for why, those in first.values()]


def _text(lines: Iterable[str]) -> str:
    """Lines as text in which no name from a model makes a line of its own."""
    return "\n".join(map(plain, lines))


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return [line.rstrip() for line in lines]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
