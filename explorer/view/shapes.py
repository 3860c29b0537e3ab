"""The shapes field: "x=2x938x100 mask=2x938" → shapes by input name."""

from __future__ import annotations

from explorer.errors import InputError


def parse_shapes(text: str) -> dict[str, tuple[int, ...]] | None:
    """Read the field; None if it is empty (then the explorer chooses). InputError says what it could not read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in text.replace(",", " ").split():
        name, equals, dims = part.rpartition("=")
        sizes = dims.lower().split("x")
        if not equals or not name or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise InputError(
                f'Expected shapes like "x=2x938x100", found "{part}": write NAME=SIZExSIZE, one space apart.'
            )
        shapes[name] = tuple(map(int, sizes))
    return shapes or None
