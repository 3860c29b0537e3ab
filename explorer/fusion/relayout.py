"""From one layout to another: the fewest Reshapes, Transposes and Expands, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal

from explorer.attention.block import Layout, merged_size
from explorer.model import Dim

Sizes = Mapping[str, Dim]
"""Size of each letter of a layout."""

_ONES = "0123456789"
"""Stand for axes of size 1 where these are moved like any others."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node, and the layout behind it."""

    op_type: Literal["Reshape", "Transpose", "Expand"]
    layout: Layout
    perm: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Price:
    """What nodes cost: those that move data first, since the others are free when they run."""

    moves: int = 0
    nodes: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(self.moves + other.moves, self.nodes + other.nodes)


@lru_cache(maxsize=1 << 12)
def steps(before: Layout, after: Layout) -> tuple[Step, ...]:
    """The nodes from `before` to `after`; along letters that only `after` has a value is repeated (by an Expand)."""
    missing = set("".join(after)) - set("".join(before))
    if not missing:
        return _moved(before, after)
    # The data are moved before they are repeated: there is less of them then.
    slots = [run for group in after for run in _runs(group, missing)]
    narrow = tuple("" if set(run) & missing else run for run in slots)
    padded = ("",) * (len(narrow) - len(before)) + before  # an Expand adds axes in front itself
    expanded = (*(() if padded == narrow else _moved(before, narrow)), Step("Expand", tuple(slots)))
    return expanded if tuple(slots) == after else (*expanded, Step("Reshape", after))


@lru_cache(maxsize=1 << 12)
def price(before: Layout, after: Layout) -> Price:
    """What the nodes between two layouts cost, those that compute a shape not counted."""
    way = steps(before, after)
    return Price(sum(step.op_type != "Reshape" for step in way), len(way))


def feasible(before: Layout, after: Layout, sizes: Sizes, ruler: Layout = ()) -> bool:
    """True if each Reshape on the way knows the sizes that are not numbers, and each Expand can read them off `ruler`.

    A part of an axis can be read if the rest of it is a number.
    """

    def known(group: str) -> bool:
        return isinstance(merged_size(group, sizes), int)

    for step in steps(before, after):
        if step.op_type == "Reshape":
            open_ = [x for axis, x in enumerate(step.layout) if not known(x) and before[axis : axis + 1] != (x,)]
            if any(group not in before for group in open_[1:]):
                return False
        if step.op_type == "Expand":
            for group in set(step.layout) - set(before):
                homes = (axis for axis in ruler if set(group) <= set(axis))
                if not known(group) and not any(known("".join(x for x in axis if x not in group)) for axis in homes):
                    return False
        before = step.layout
    return True


def _moved(before: Layout, after: Layout) -> tuple[Step, ...]:
    """The way between two layouts with the same letters."""
    if "".join(before) == "".join(after):
        return () if before == after else (Step("Reshape", after),)
    if before.count("") == after.count(""):
        named = [_with_ones(layout) for layout in (before, after)]
        return tuple(Step(step.op_type, _without_ones(step.layout), step.perm) for step in _permuted(*named))
    return _permuted(before, after)


def _permuted(before: Layout, after: Layout) -> tuple[Step, ...]:
    """Reshape to the pieces that stay together, Transpose these, Reshape."""
    wanted = "".join(after)
    pieces = tuple(piece for group in before for piece in _pieces(group, wanted))
    perm = sorted(range(len(pieces)), key=lambda axis: wanted.index(pieces[axis][0]))
    turned = tuple(pieces[axis] for axis in perm)
    way = [] if pieces == before else [Step("Reshape", pieces)]
    way.append(Step("Transpose", turned, tuple(perm)))
    return (*way, *([] if turned == after else [Step("Reshape", after)]))


def _pieces(group: str, wanted: str) -> Iterable[str]:
    """`group` cut wherever its letters do not follow each other in `wanted`."""
    piece = ""
    for letter in group:
        if piece and piece + letter not in wanted:
            yield piece
            piece = ""
        piece += letter
    if piece:
        yield piece


def _runs(group: str, letters: set[str]) -> list[str]:
    """`group` cut into runs that lie in `letters` and runs that do not; an empty group is one run."""
    return ["".join(run) for _, run in groupby(group, letters.__contains__)] or [""]


def _with_ones(layout: Layout) -> Layout:
    ones = iter(_ONES)
    return tuple(group or next(ones) for group in layout)


def _without_ones(layout: Layout) -> Layout:
    return tuple(group.strip(_ONES) for group in layout)
