"""The panels of a profile and of a tuning, as HTML text. Pure; every piece of model text is escaped on its way in."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.profile import Point, Profile, tables, words
from explorer.profile.tables import Table
from explorer.tune import Tuning
from explorer.tune import tables as tuned
from explorer.view.panels import notes, table
from explorer.view.text import as_html, printable


def profile(result: Profile | None, point: Point | None, nothing: str) -> str:
    """The measurement: how fast, over inputs where they are several, then one point; `nothing` if there is none."""
    if result is None or point is None:
        return f"<p>{as_html(nothing)}</p>"
    head = words.speeds(result, point) or ["One model was measured, so there is no ratio."]
    parts = [_verdict(head), *_sentences(words.refusals(point))]
    if over := tables.sweep(result):
        parts += [*_sentences(words.crossings(result)), _table(over)]
    parts.append(_table(tables.latencies(result, point)))
    parts += [_table(found) for found in (tables.kernels(result, point), tables.blocks(result, point)) if found]
    parts += [f'<p class="explorer-warning">⚠ {as_html(warning)}</p>' for warning in words.warnings(point)]
    bound = [said for item in tables.traced(result, point) if (said := words.launch_bound(item.measurement))]
    parts += _sentences(bound)
    more = [_table(found) for found in (tables.operators(result, point), tables.machine(result, point)) if found]
    if more:
        parts.append(f"<details><summary>Time by operator, memory, placement</summary>{''.join(more)}</details>")
    about = (
        result.provider_note,
        f"{words.place(result)}; {words.shapes(point.shapes)}",
        *words.conditions(result, point),
        *words.tracing(point),
        *result.notes,
    )
    return "".join(parts) + notes(about)


def tuning(result: Tuning | None) -> str:
    """What was tried and what wins; empty when nothing was."""
    if result is None:
        return ""
    head, *rest = tuned.headline(result)
    tried = "".join(map(_table, tuned.trials(result)))
    return f"{_verdict([head])}{''.join(_sentences(rest))}{tried}{notes((*tuned.refusals(result), *result.notes))}"


def point_name(point: Point) -> str:
    """A point in a list to choose from."""
    return printable(words.shapes(point.shapes))


def _verdict(sentences: Iterable[str]) -> str:
    return "".join(f'<p class="explorer-verdict">{as_html(sentence)}</p>' for sentence in sentences)


def _sentences(sentences: Iterable[str]) -> list[str]:
    return [f"<p>{as_html(sentence)}</p>" for sentence in sentences]


def _table(found: Table) -> str:
    return f"<h4>{as_html(found.title)}</h4>{table(found.columns, found.rows)}"
