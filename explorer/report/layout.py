"""Lines and tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from explorer.terminal import plain

_NUMBER = re.compile(r"[-+−]?\d|[–?]?$")


def text(lines: Iterable[str]) -> str:
    """Lines as text in which no name from a model makes a line of its own."""
    return "\n".join(map(plain, lines))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """A line for the header and each row; with `numbers`, columns of numbers other than the first end in line."""
    cells = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [numbers and at > 0 and all(_NUMBER.match(row[at]) for row in cells[1:]) for at in range(len(widths))]
    lines = (
        "  ".join(
            cell.rjust(width) if last else cell.ljust(width)
            for cell, width, last in zip(row, widths, right, strict=True)
        )
        for row in cells
    )
    return [line.rstrip() for line in lines]


def plural(count: int, noun: str) -> str:
    """ "1 block", "2 blocks"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
