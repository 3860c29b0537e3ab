"""What is kept of a measurement, one row for each contestant, and how it prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from explorer.profile import Profile
from explorer.profile.statistics import quantile, ratio_interval

if TYPE_CHECKING:  # torch is not everywhere
    from benchmarks.networks.runs import TorchRuns

ORIGINAL, EAGER, COMPILED, GRAPH = "original", "torch eager", "torch.compile", " + CUDA graph"
"""Contestants; all are related to the original and to torch.compile."""

Row = dict[str, Any]


def ort_rows(found: Profile) -> list[Row]:
    """A row for each variant of a profile of one point."""
    (point,) = found.points
    rows = []
    for item in point.measurements:
        variant = found.variant(item.variant)
        row: Row = {"contestant": item.variant, "by": "onnxruntime", "refusal": item.refusal}
        row |= {"first_run_ms": item.first_run_ms, "load_s": variant.load_s, "optimization": variant.optimization}
        row["runs_ms"] = [] if item.latency is None else list(item.latency.runs_ms)
        if (trace := item.trace) is not None:
            row |= {
                "casts": [variant.casts_exported, variant.casts_optimized],
                "casts_us": trace.time_of("Cast"),
                "method": trace.method,
                "busy_us": trace.busy_us,
                "idle_us": trace.idle_us,
                "unattributed_share": trace.unattributed_share,
                "arena_peak_bytes": trace.arena_peak_bytes,
                "kernels": dict(Counter(dispatch.kernel for dispatch in item.dispatch)),
                "said_and_seen_agree": all(not d.said or not d.seen or d.said == d.seen for d in item.dispatch),
                "warnings": sorted({dispatch.warning for dispatch in item.dispatch if dispatch.warning}),
            }
        rows.append(row)
    return rows


def torch_rows(runs: TorchRuns) -> list[Row]:
    """A row for each variant of a TorchRuns."""
    rows = [
        {
            "contestant": name,
            "by": "torch",
            "refusal": "",
            "first_run_ms": runs.first_ms[name],
            "runs_ms": times,
            "blocks_ms": runs.blocks_ms[name],
            "difference": runs.difference[name],
        }
        for name, times in runs.times_ms.items()
    ]
    refused = [
        {"contestant": name, "by": "torch", "refusal": words, "runs_ms": []} for name, words in runs.refusals.items()
    ]
    return rows + refused


def summarise(rows: Sequence[Row]) -> None:
    """Add to each row its median, the width of its middle half, and how many times as fast it is as the references."""
    by_name = {row["contestant"]: row for row in rows}
    for row in rows:
        times = row["runs_ms"] = [round(ms, 4) for ms in row["runs_ms"]]
        if times:
            row |= {"median_ms": quantile(times, 0.5), "iqr_ms": quantile(times, 0.75) - quantile(times, 0.25)}
        for key, name in (("to_original", ORIGINAL), ("to_compile", COMPILED)):
            reference = by_name.get(name, {"runs_ms": []})
            row[key] = None
            if times and reference["runs_ms"]:
                paired = row["by"] == reference["by"]
                low, high = ratio_interval(reference["runs_ms"], times, 0, paired=paired)
                value = quantile(reference["runs_ms"], 0.5) / quantile(times, 0.5)
                row[key] = {"value": round(value, 3), "low": round(low, 3), "high": round(high, 3)}


HEADER = (
    f"{'':28}{'median':>10}{'IQR':>8}{'× original':>12}{'(95 %)':>15}{'× compile':>11}"
    f"{'busy':>8}{'idle':>8}{'unattr.':>9}{'Casts':>10}  kernels"
)


def line(row: Row) -> str:
    """A row of the printed table; times in milliseconds."""
    if not row["runs_ms"]:
        return f"{row['contestant']:28}{'–':>10}  {row['refusal'][:120]}"
    original, compiled = row["to_original"], row["to_compile"]
    text = f"{row['contestant']:28}{row['median_ms']:10.3f}{row['iqr_ms']:8.3f}"
    text += f"{original['value']:11.2f}×{original['low']:8.2f}–{original['high']:<6.2f}" if original else " " * 27
    text += f"{compiled['value']:10.2f}×" if compiled else " " * 11
    if "busy_us" in row:
        text += f"{row['busy_us'] / 1e3:8.2f}{row['idle_us'] / 1e3:8.2f}{row['unattributed_share']:9.2%}"
        text += f"{row['casts'][0]:>6}→{row['casts'][1]:<3}  "
        text += ", ".join(f"{count} {name}" for name, count in row["kernels"].items())
    return text
