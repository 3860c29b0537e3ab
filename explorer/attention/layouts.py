"""How an operand's axes move through Transpose and Reshape, proved with sizes that may be symbols.

A layout travels through a Transpose by permuting its axes. Through a Reshape it travels by regrouping: the letters keep
their order (a Reshape never moves data), only the boundaries between axes change. Which letters fall on which axis is
decided by sizes: a group fits a dimension if the product of its letters' sizes is provably that dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from explorer.attention.block import Layout
from explorer.model import Dim, Model
from explorer.model.constants import attribute

Sizes = Mapping[str, Dim]
"""Size of each letter: an int, a symbol, or None if unknown."""


def permute(layout: Layout, perm: Sequence[int]) -> Layout:
    """The layout after Transpose(perm)."""
    return tuple(layout[axis] for axis in perm)


def unpermute(layout: Layout, perm: Sequence[int]) -> Layout:
    """The layout that Transpose(perm) turned into `layout`."""
    before = [""] * len(layout)
    for to, axis in enumerate(perm):
        before[axis] = layout[to]
    return tuple(before)


def regroup(layout: Layout, dims: Sequence[Dim], sizes: Sizes) -> Layout | None:
    """The layout of the same data seen with dimensions `dims`, or None if that is not provable.

    One unknown dimension is allowed: the others leave it nothing but the remaining letters. A symbol that is no
    letter's size is as good as unknown.
    """
    symbols = set(sizes.values())
    dims = [None if isinstance(dim, str) and dim not in symbols else dim for dim in dims]
    if sum(dim is None for dim in dims) > 1:
        return None
    return _fit("".join(layout), tuple(dims), sizes)


def _fit(letters: str, dims: tuple[Dim, ...], sizes: Sizes) -> Layout | None:
    if not dims:
        return () if not letters else None
    first, rest = dims[0], dims[1:]
    # An axis of size 1 may hold a letter of size 1 or none at all: one letter or more is tried first.
    for count in (*range(1, len(letters) + 1), 0):
        group = letters[:count]
        if first is not None and _product(group, sizes) != _normal(first):
            continue
        tail = _fit(letters[count:], rest, sizes)
        if tail is not None:
            return (group, *tail)
    return None


def _product(group: str, sizes: Sizes) -> tuple[int, tuple[str, ...]] | None:
    """The size of a merged axis as (integer factor, sorted symbols), or None if a letter's size is unknown."""
    factor, symbols = 1, []
    for letter in group:
        size = sizes.get(letter)
        if size is None:
            return None
        if isinstance(size, int):
            factor *= size
        else:
            symbols.append(size)
    return factor, tuple(sorted(symbols))


def _normal(dim: Dim) -> tuple[int, tuple[str, ...]]:
    return (dim, ()) if isinstance(dim, int) else (1, (str(dim),))


@dataclass(frozen=True, slots=True)
class Move:
    """A Transpose or Reshape that a layout can be followed through, in either direction."""

    node: ir.Node
    perm: tuple[int, ...] | None
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]

    def backward(self, layout: Layout, sizes: Sizes) -> Layout | None:
        """Layout of the node's input, given that of its output."""
        if self.perm is not None:
            return unpermute(layout, self.perm) if len(layout) == len(self.perm) else None
        aligned = self._aligned(layout, self.after, self.before)
        return regroup(layout, self.before, sizes) or aligned

    def forward(self, layout: Layout, sizes: Sizes) -> Layout | None:
        """Layout of the node's output, given that of its input."""
        if self.perm is not None:
            return permute(layout, self.perm) if len(layout) == len(self.perm) else None
        aligned = self._aligned(layout, self.before, self.after)
        return regroup(layout, self.after, sizes) or aligned

    @staticmethod
    def _aligned(layout: Layout, known: tuple[Dim, ...], wanted: tuple[Dim, ...]) -> Layout | None:
        """Equal leading dimensions hold the same letters, whatever their size; one last axis takes all the rest."""
        same = 0
        while same < min(len(known), len(wanted)) and known[same] is not None and known[same] == wanted[same]:
            same += 1
        if len(layout) != len(known) or same + 1 != len(wanted):
            return None
        return (*layout[:same], "".join(layout[same:]))


def move(model: Model, node: ir.Node) -> Move | None:
    """The Move that `node` is, or None if it is no layout node or its effect is unknown."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return None
    source, result = node.inputs[0], node.outputs[0]
    before, after = model.shape(source), model.shape(result)
    if node.op_type == "Transpose":
        perm = attribute(node, "perm", None)
        if perm is None and before is not None:
            perm = tuple(reversed(range(len(before))))
        return None if perm is None else Move(node, tuple(perm), (), ())
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        if before is None and after is None:
            return None
        return _reshape(model, node, before, after)
    return None


def _reshape(model: Model, node: ir.Node, before: tuple[Dim, ...] | None, after: tuple[Dim, ...] | None) -> Move | None:
    """Complete the two shapes of a Reshape by what its target says: 0 copies a dimension, so both sides are equal."""
    target = model.partial(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
    if target is None:
        return None if before is None or after is None else Move(node, None, before, after)
    wanted: list[Dim] = list(after) if after is not None else [None] * len(target)
    known: list[Dim] = list(before) if before is not None else []
    if not known or len(wanted) != len(target):
        return None
    for axis, dim in enumerate(target):
        if dim == 0 and not attribute(node, "allowzero", 0) and axis < len(known):
            # unknown on both sides, yet the same: a symbol that stands for it nowhere else
            same = known[axis] if known[axis] is not None else wanted[axis]
            known[axis] = wanted[axis] = same if same is not None else f"{node.name or id(node)}:{axis}"
        elif wanted[axis] is None and dim is not None and dim != -1:
            wanted[axis] = int(dim) if isinstance(dim, int) else str(dim)
    return Move(node, None, tuple(known), tuple(wanted))
