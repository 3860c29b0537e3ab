"""A comparison with float64 truth."""

from __future__ import annotations

from collections.abc import Mapping

from explorer.report.layout import table, text
from explorer.verify import Comparison, Verdict


def verdict_text(verdict: Verdict, labels: Mapping[str, str]) -> str:
    """A verdict for a terminal; `labels` names blocks by id."""
    return text(verdict_lines(verdict, labels))


def verdict_lines(verdict: Verdict, labels: Mapping[str, str]) -> list[str]:
    """The same as lines, to stand among others."""
    compared = (*verdict.blocks, *verdict.outputs)
    rows = [_comparison(item, labels.get(item.block) or item.label or item.block or item.name) for item in compared]
    tried = "; ".join(case.words for case in verdict.cases if not case.refused_by)
    return [
        f"{'PASSED' if verdict.passed else 'FAILED'}: largest error against float64, relative to the largest value",
        *table(("", "original", "fused", "allowed", "", "worst at"), rows),
        *(f"{item.label or item.name}: {item.problem}" for item in compared if item.problem),
        f"on {verdict.provider.upper()}, inputs: {tried or 'none'}; truth end to end: {verdict.truth}",
        *_refused_cases(verdict),
        *(f"note: {note}" for note in verdict.notes),
        *([verdict.suggestion] if verdict.suggestion else []),
    ]


def _refused_cases(verdict: Verdict) -> list[str]:
    """A sentence for each set of inputs on which a model did not run."""
    who = {"original": "not tried, since the original does not run", "fused": "FAILED, the fused model does not run"}
    return [f"{case.words}: {who[case.refused_by]}: {case.refusal}" for case in verdict.cases if case.refused_by]


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
