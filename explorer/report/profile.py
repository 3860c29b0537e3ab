"""A profile, and what changed from one to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from explorer.profile import Comparison, Point, Profile, codec, sweep_axis, tables, words
from explorer.profile.tables import Table
from explorer.report.chart import log_chart
from explorer.report.layout import plural, table, text

SCHEMA = 1


def profile_text(profile: Profile, *, every_point: bool = False) -> str:
    """A profile for a terminal: over the inputs where there are several, then where the time goes.

    Of several points only the last is told in detail unless `every_point`.
    """
    several = len(profile.points) > 1
    lines = [words.place(profile), profile.provider_note]
    if several:
        lines += ["", *_sweep(profile)]
    detailed = profile.points if every_point else profile.points[-1:]
    for point in detailed:
        lines += ["", *_point(profile, point)]
    if left := len(profile.points) - len(detailed):
        lines += ["", f"--all tells as much of the other {plural(left, 'set')} of inputs."]
    lines += [f"note: {note}" for note in profile.notes]
    return text(lines)


def _sweep(profile: Profile) -> list[str]:
    over = tables.sweep(profile)
    lines = [] if over is None else _table(over)
    if axis := sweep_axis(profile):
        curves = [
            (
                variant.name,
                [
                    (size, latency.median_ms)
                    for size, point in zip(axis[1], profile.points, strict=True)
                    if (latency := point.of(variant.name).latency)
                ],
            )
            for variant in profile.variants
        ]
        lines += ["", *log_chart(curves, axis[0], "ms"), "", *words.crossings(profile)]
    return lines + list(dict.fromkeys(said for point in profile.points for said in words.refusals(point)))


def _point(profile: Profile, point: Point) -> list[str]:
    """One point in detail."""
    lines = [f"Inputs: {words.shapes(point.shapes)}", *_table(tables.latencies(profile, point))]
    lines += [*words.speeds(profile, point), *words.refusals(point), *words.conditions(profile, point)]
    lines += [f"warning: {warning}" for warning in words.warnings(point)]
    for found in tables.point_tables(profile, point):
        lines += ["", found.title, *_table(found)]
    bound = [said for item in tables.traced(profile, point) if (said := words.launch_bound(item.measurement))]
    told = [*bound, *words.tracing(point)]
    return [*lines, *([""] if told else []), *told]


def comparison_text(comparison: Comparison) -> str:
    """What changed from one profile to another, for a terminal."""
    lines: list[str] = []
    for found in tables.changes(comparison):
        lines += [found.title, *_table(found), ""]
    if not comparison.conditions:
        lines.append("Both were measured under the same conditions, as far as they say.")
    return text([*lines, *_alone("before", comparison.only_before), *_alone("now", comparison.only_after)])


def comparison_document(comparison: Comparison) -> Mapping[str, Any]:
    """What `onnx-explorer profile --compare --json` prints."""
    return {"schema": SCHEMA, **codec.to_json(comparison)}


def _alone(when: str, found: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"Only {when}: {variant} on {words.shapes(shapes)}" for variant, shapes in found]


def _table(found: Table) -> list[str]:
    return table(found.columns, found.rows, numbers=True)
