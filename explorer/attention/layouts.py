"""How axes move through Transpose and Reshape, proved with sizes that may be expressions over symbols.

A layout travels through a Transpose by permuting its axes. Through a Reshape it travels by regrouping: the letters keep
their order (a Reshape never moves data), only the boundaries between axes change. Which letters fall on which axis is
decided by sizes. Where a boundary falls inside a letter (batch and heads were one axis so far), the letter is split in
two for good: everything known about it is from then on read with its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from explorer.attention.block import Layout, merged_size
from explorer.model import Dim, Model
from explorer.model.constants import attribute
from explorer.model.dims import divide, is_known, multiply, normal

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

MaySplit = Callable[[str], bool]
_Pieces = tuple[tuple[str, Dim], ...]
"""Letters, or parts of letters, with their sizes."""


@dataclass
class Axes:
    """The letters of one block while it is read, their sizes, and how they were split."""

    sizes: dict[str, Dim] = field(default_factory=dict)
    _parts: dict[str, str] = field(default_factory=dict)
    taken_for: tuple[tuple[str, Dim], ...] = ()
    """Dimensions that are read as others (see `take_for`)."""

    def new(self, size: Dim) -> str:
        """A letter of its own for an axis of this size."""
        letter = _LETTERS[len(self.sizes)]
        self.sizes[letter] = size
        return letter

    def now(self, letters: str) -> str:
        """`letters` with each split one replaced by its parts."""
        return "".join(self.now(self._parts[letter]) if letter in self._parts else letter for letter in letters)

    def current(self, layout: Layout) -> Layout:
        """`layout` read with the letters as they are now."""
        return tuple(self.now(axis) for axis in layout)

    def size(self, letters: str) -> Dim:
        """Size of an axis on which these letters are merged."""
        return merged_size(letters, self.sizes)

    def split(self, letter: str, sizes: Sequence[Dim]) -> str:
        """Split a letter into parts of these sizes, outermost first; returns the parts."""
        if len(sizes) > 1:
            self._parts[letter] = "".join(self.new(size) for size in sizes)
        return self.now(letter)

    def take_for(self, dim: Dim, size: Dim) -> None:
        """Read the dimension `dim`, which is at least `size`, as `size` from here on."""
        if isinstance(dim, str):
            self.taken_for = (*self.taken_for, (dim, size))

    def regroup(self, layout: Layout, dims: Sequence[Dim], may_split: MaySplit) -> Layout | None:
        """The layout of the same data seen with dimensions `dims`, or None if that is not provable.

        Letters are split where a boundary demands it and `may_split` allows it.
        """
        letters = "".join(self.current(layout))
        pieces = tuple((letter, self.sizes[letter]) for letter in letters)
        found = _fit(pieces, tuple(self._resolved(letters, dims)), may_split)
        if found is None:
            return None
        for letter in letters:
            self.split(letter, [size for group in found for name, size in group if name == letter])
        parts = iter(self.now(letters))
        return tuple("".join(next(parts) for _ in group) for group in found)

    def _resolved(self, letters: str, dims: Sequence[Dim]) -> list[Dim]:
        """`dims` with one that nobody knows replaced by what the others leave it."""
        dims = [taken(dim, self.taken_for) for dim in dims]
        sizes = {self.sizes[letter] for letter in letters}
        unknown = [axis for axis, dim in enumerate(dims) if not is_known(dim) and dim not in sizes]
        if len(unknown) != 1:
            return list(dims)
        others = multiply(*(dim for axis, dim in enumerate(dims) if axis != unknown[0]))
        rest = divide(self.size(letters), others)
        return [rest if axis == unknown[0] and rest is not None else dim for axis, dim in enumerate(dims)]


def taken(dim: Dim, taken_for: Iterable[tuple[str, Dim]]) -> Dim:
    """`dim` with each of the dimensions in `taken_for` replaced by the size beside it."""
    for larger, size in taken_for:
        if isinstance(dim, str) and larger in dim:
            dim = normal(dim.replace(larger, f"({size})"))
    return dim


def _fit(pieces: _Pieces, dims: tuple[Dim, ...], may_split: MaySplit) -> list[_Pieces] | None:
    """`pieces` in one group per dimension, so that the sizes agree; None if they do not."""
    if not dims:
        return None if pieces else []
    first, rest = dims[0], dims[1:]
    # An axis of size 1 may hold a letter of size 1 or none at all: one letter or more is tried first.
    for count in (*range(1, len(pieces) + 1), 0):
        if multiply(*(size for _, size in pieces[:count])) == first:
            tail = _fit(pieces[count:], rest, may_split)
            if tail is not None:
                return [pieces[:count], *tail]
    for count, (letter, size) in enumerate(pieces):
        outer = divide(first, multiply(*(size for _, size in pieces[:count])))
        inner = None if outer in (None, 1) else divide(size, outer)
        if outer is None or inner in (None, 1) or not may_split(letter):
            continue
        tail = _fit(((letter, inner), *pieces[count + 1 :]), rest, may_split)
        if tail is not None:
            return [(*pieces[:count], (letter, outer)), *tail]
    return None


@dataclass(frozen=True, slots=True)
class Move:
    """A node that only rearranges its first input: a Transpose (`perm`) or any kind of Reshape."""

    node: ir.Node
    perm: tuple[int, ...] | None
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]

    def backward(self, axes: Axes, layout: Layout, may_split: MaySplit) -> Layout | None:
        """Layout of the node's input, given that of its output; None if it cannot be told."""
        if self.perm is None:
            return axes.regroup(layout, self.before, may_split)
        if len(layout) != len(self.perm):
            return None
        return tuple(layout[self.perm.index(axis)] for axis in range(len(self.perm)))

    def forward(self, axes: Axes, layout: Layout, may_split: MaySplit) -> Layout | None:
        """Layout of the node's output, given that of its input; None if it cannot be told."""
        if self.perm is None:
            return axes.regroup(layout, self.after, may_split)
        return tuple(layout[axis] for axis in self.perm) if len(layout) == len(self.perm) else None


def move(model: Model, node: ir.Node) -> Move | None:
    """The Move that `node` is, or None if it is none or its shapes are unknown."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return None
    before, after = model.shape(node.inputs[0]), model.shape(node.outputs[0])
    if node.op_type == "Transpose":
        perm = attribute(node, "perm", None)
        if perm is None and before is not None:
            perm = tuple(reversed(range(len(before))))
        if perm is None or sorted(perm) != list(range(len(perm))):
            return None
        return Move(node, tuple(perm), (), ())
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten") and before is not None and after is not None:
        return Move(node, None, before, after)
    return None
