"""The same results for programs and for people: JSON documents (`"schema": 1`) and plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from explorer.attention import Block, MaskTerm, Obstacle
from explorer.attention.block import layout_name
from explorer.profile import Profile
from explorer.terminal import plain
from explorer.verify import Comparison, Verdict
from explorer.workspace import FuseReport, Workspace

SCHEMA = 1
_COUNTED = ("Cast", "Softmax", "MatMul", "Transpose", "Reshape", "MultiHeadAttention")


def scan_document(workspace: Workspace) -> dict[str, Any]:
    """What `onnx-explorer scan --json` prints."""
    return {
        "schema": SCHEMA,
        "model": str(workspace.source),
        "source_digest": workspace.model.digest,
        "nodes": len(workspace.model.nodes),
        "ops": workspace.ops_before,
        "notes": list(workspace.notes),
        "blocks": [block_document(workspace, block) for block in workspace.blocks],
    }


def block_document(workspace: Workspace, block: Block) -> dict[str, Any]:
    """One block of a scan."""
    return {
        "id": block.id,
        "label": block.label,
        "anchor": block.anchor,
        "status": workspace.status(block.id),
        "fused_as": block.fused_as or None,
        "num_heads": block.num_heads,
        "kv_num_heads": block.kv_num_heads,
        "head_size": block.head_size,
        "v_head_size": block.v_head_size,
        "scale": block.scale,
        "mask": {"kind": block.mask.kind, "terms": [_term(term) for term in block.mask.terms]},
        "softcap": block.softcap,
        "dtype": block.dtype or None,
        "softmax_dtype": block.softmax_dtype or None,
        "layouts": _layouts(block),
        "casts": list(block.casts),
        "nodes": [{"name": node.name, "op_type": node.op_type, "role": node.role} for node in block.region],
        "targets": [choice.target for choice in workspace.choices(block.id) if not choice.obstacles],
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


def scan_text(workspace: Workspace) -> str:
    """A scan for a terminal."""
    found = _plural(len(workspace.blocks), "attention block")
    lines = [f"{workspace.source.name}: {_plural(len(workspace.model.nodes), 'node')}, {found}"]
    lines += [f"note: {note}" for note in workspace.notes]
    if workspace.blocks:
        header = ("block", "status", "heads", "head size", "scale", "mask", "Casts", "id", "anchor")
        rows = [_row(workspace, block) for block in workspace.blocks]
        lines += ["", *_table(header, rows), ""]
        for block in workspace.blocks:
            lines += [f"{block.label} cannot be fused: at {item.at}, {item}" for item in workspace.obstacles(block.id)]
        lines += [f"Why ONNX Runtime leaves {whom} alone: {why}" for why, whom in _reasons(workspace.blocks)]
    return _text(lines)


def fuse_text(workspace: Workspace, report: FuseReport, verdict: Verdict | None, output: str | None) -> str:
    """The outcome of a fuse for a terminal."""
    lines = [f"Fused {len(workspace.plan.fusions)} of {_plural(len(workspace.blocks), 'attention block')}."]
    lines += [f"Left {workspace.block(name).label}: at {item.at}, {item}" for name, item in report.skipped]
    lines.append(counts_text(workspace.ops_before, workspace.ops_after))
    if verdict is not None:
        lines += ["", *_verdict_lines(verdict, {block.id: block.label for block in workspace.blocks})]
    lines += ["", f"Wrote {output}." if output else "No model was written."]
    return _text(lines)


def counts_text(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """`Cast 4 → 0, …` for the operators that attention is about."""
    shown = [op for op in _COUNTED if before.get(op) or after.get(op)]
    return ", ".join(f"{op} {before.get(op, 0)} → {after.get(op, 0)}" for op in shown)


def verdict_text(verdict: Verdict, labels: Mapping[str, str]) -> str:
    """A verdict for a terminal; `labels` names blocks by id."""
    return _text(_verdict_lines(verdict, labels))


def _verdict_lines(verdict: Verdict, labels: Mapping[str, str]) -> list[str]:
    compared = (*verdict.blocks, *verdict.outputs)
    rows = [_comparison(item, labels.get(item.block, item.block) or item.name) for item in compared]
    return [
        f"{'PASSED' if verdict.passed else 'FAILED'}: largest error against float64, relative to the largest value",
        *_table(("", "original", "fused", "allowed", ""), rows),
        f"on {verdict.provider.upper()}; truth end to end: {verdict.truth}",
        *(f"note: {note}" for note in verdict.notes),
    ]


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


def _row(workspace: Workspace, block: Block) -> tuple[str, ...]:
    return (
        block.label,
        workspace.status(block.id),
        _or_unknown(block.num_heads),
        _or_unknown(block.head_size),
        "?" if block.scale is None else f"{block.scale:.6g}",
        block.mask.kind,
        str(len(block.casts)),
        block.id,
        block.anchor,
    )


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
    )


def _reasons(blocks: Iterable[Block]) -> list[tuple[str, str]]:
    """Each reason of ORT once, with the blocks it holds for; reasons differ in node names only from layer to layer."""
    first: dict[str, tuple[str, list[str]]] = {}
    for block in blocks:
        if block.ort_reason:
            kind = block.ort_reason
            for node in block.region:
                kind = kind.replace(node.name, node.op_type)
            first.setdefault(kind, (block.ort_reason, []))[1].append(block.label)
    return [(why, labels[0] if len(labels) == 1 else f"{labels[0]} … {labels[-1]}") for why, labels in first.values()]


def _text(lines: Iterable[str]) -> str:
    """Lines as text in which no name from a model makes a line of its own."""
    return "\n".join(map(plain, lines))


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return [line.rstrip() for line in lines]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
