"""The shapes field: "x=2x938x100 mask=2x938" is one set of shapes, "x=2x256..4096x100" several."""

from __future__ import annotations

from explorer.profile import parse_shapes

Shapes = dict[str, tuple[int, ...]]


def parse_field(text: str) -> tuple[Shapes, ...]:
    """The sets of shapes that the field asks for, one that fixes nothing if it is empty.

    InputError says what it could not read.
    """
    return parse_shapes(text.replace(",", " ").split())
