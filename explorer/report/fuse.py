"""What a fuse did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from explorer.fusion import TARGETS
from explorer.report.blocks import alike, labelled, obstacle_document, place
from explorer.report.layout import plural, text
from explorer.report.verdict import verdict_lines
from explorer.verify import Verdict
from explorer.workspace import FuseReport, Workspace

SCHEMA = 1
_COUNTED = (
    *("Cast", "Softmax", "MatMul", "Transpose", "Reshape"),
    *("MultiHeadAttention", "Attention", "GroupQueryAttention"),
)


def fuse_document(
    workspace: Workspace, report: FuseReport, verdict: Verdict | None, output: str | None
) -> dict[str, Any]:
    """What `onnx-explorer fuse --json` prints; `output` is null if no model was written."""
    return {
        "schema": SCHEMA,
        "model": str(workspace.source),
        "output": output,
        "fused": [{"id": fusion.block, "target": fusion.target} for fusion in workspace.plan.fusions],
        "skipped": [{"id": block_id, "obstacle": obstacle_document(obstacle)} for block_id, obstacle in report.skipped],
        "notes": list(report.notes),
        "ops_before": workspace.ops_before,
        "ops_after": workspace.ops_after,
        "plan": workspace.plan.to_json(),
        "verdict": None if verdict is None else verdict.to_json(),
    }


def fuse_text(workspace: Workspace, report: FuseReport, verdict: Verdict | None, output: str | None) -> str:
    """The outcome of a fuse for a terminal."""
    lines = [f"Fused {len(workspace.plan.fusions)} of {plural(len(workspace.blocks), 'attention block')}."]
    skipped = dict(report.skipped)
    for group in alike(workspace):
        left = [block for block in group if block.id in skipped]
        if left:
            item = skipped[left[0].id]
            lines.append(f"Left {labelled(left)}: at {place(left, item)}, {item}")
    lines += [f"As {operator}: {count}." for operator, count in Counter(_targets(workspace)).items()]
    lines.append(counts_text(workspace.ops_before, workspace.ops_after))
    lines += [f"note: {note}" for note in report.notes]
    if verdict is not None:
        lines += ["", *verdict_lines(verdict, {block.id: block.label for block in workspace.blocks})]
    lines += ["", f"Wrote {output}." if output else "No model was written."]
    return text(lines)


def _targets(workspace: Workspace) -> Iterable[str]:
    return (TARGETS[fusion.target].operator for fusion in workspace.plan.fusions)


def counts_text(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """`Cast 4 → 0, …` for the operators that attention is about."""
    shown = [op for op in _COUNTED if before.get(op) or after.get(op)]
    return ", ".join(f"{op} {before.get(op, 0)} → {after.get(op, 0)}" for op in shown)
