"""A tuning: every way in which a model's attention was computed, and which wins."""

from __future__ import annotations

from explorer.report.layout import table, text
from explorer.tune import Tuning, tables


def tuning_text(tuning: Tuning) -> str:
    """A tuning for a terminal."""
    lines = tables.headline(tuning)
    for found in tables.trials(tuning):
        lines += ["", found.title, *table(found.columns, found.rows, numbers=True)]
    if refused := tables.refusals(tuning):
        lines += ["", *refused]
    return text([*lines, *(f"note: {note}" for note in tuning.notes)])
