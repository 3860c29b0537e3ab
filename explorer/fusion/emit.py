"""Write new nodes into a graph that is being rewritten: named, typed, with provenance, and as few as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.attention.block import Layout, View, merged_size
from explorer.model import Dim, TensorType

Sizes = Mapping[str, Dim]
"""Size of each letter of a layout."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """A value of the graph being written that tells the sizes of the letters in its layout at run time."""

    value: ir.Value
    layout: Layout


def declared(shape: Sequence[Dim]) -> list[int | str | None]:
    """A shape as a file may state it: numbers and plain symbols; an expression or a size nobody knows is left open."""
    return [dim if isinstance(dim, int) or dim.isidentifier() else None for dim in shape]


class Names:
    """Gives out names that nothing in the model has."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def fresh(self, wish: str) -> str:
        """`wish`, or `wish` with a number behind it if that is taken."""
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


class Emitter:
    """Inserts nodes before one node of a graph; every node carries the same provenance."""

    def __init__(
        self, graph: ir.Graph, before: ir.Node, names: Names, prefix: str, provenance: Mapping[str, str], opset: int
    ) -> None:
        self.opset = opset
        self.graph = graph
        self._before = before
        self._names = names
        self._prefix = prefix
        self._provenance = provenance
        self.outputs: list[ir.Value] = []
        """What the nodes written so far compute."""

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        type_: TensorType,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one output of the given type, and return that output."""
        name = self._names.fresh(f"{self._prefix}{op_type}")
        shape = None if type_.shape is None else ir.Shape(declared(type_.shape))
        dtype = None if type_.dtype is None else ir.TensorType(type_.dtype)
        output = ir.Value(name=self._names.fresh(f"{name}_output_0"), shape=shape, type=dtype)
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, domain=domain, name=name, outputs=[output],
            metadata_props=dict(self._provenance),
        )  # fmt: skip
        self.graph.insert_before(self._before, node)
        self.outputs.append(output)
        return output

    def constant(self, array: np.ndarray, wish: str) -> ir.Value:
        """An initializer that holds `array`."""
        name = self._names.fresh(f"{self._prefix}{wish}")
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def relayout(
        self,
        value: ir.Value,
        before: Layout,
        after: Layout,
        sizes: Sizes,
        dtype: ir.DataType,
        ruler: Ruler | None = None,
    ) -> ir.Value:
        """Bring `value` from one layout to another with at most Reshape, Expand, Transpose, Reshape.

        Letters that only `after` has are repeated; `ruler` tells their sizes at run time where they are not numbers.
        """
        wanted = "".join(after)
        if missing := "".join(letter for letter in wanted if letter not in "".join(before)):
            value, before = self._repeat(value, before, missing, wanted, sizes, dtype, ruler)
        letters = "".join(before)
        if letters != wanted:
            value = self._reshape(value, before, tuple(letters), sizes, dtype)
            perm = [letters.index(letter) for letter in wanted]
            shape = tuple(sizes[letter] for letter in wanted)
            value = self.node("Transpose", [value], TensorType(dtype, shape), {"perm": perm})
            before = tuple(wanted)
        return self._reshape(value, before, after, sizes, dtype)

    def _repeat(
        self,
        value: ir.Value,
        before: Layout,
        missing: str,
        wanted: str,
        sizes: Sizes,
        dtype: ir.DataType,
        ruler: Ruler | None,
    ) -> tuple[ir.Value, Layout]:
        """Repeat `value` along the letters it lacks, put where `wanted` has them if the others are in that order."""
        own = "".join(before)
        in_order = own == "".join(letter for letter in wanted if letter in own)
        order = wanted if in_order else own + missing
        value = self._reshape(value, before, tuple("" if x in missing else x for x in order), sizes, dtype)
        parts = [self._length(x, sizes, ruler) if x in missing else 1 for x in order]
        shape = tuple(sizes[letter] for letter in order)
        return self.node("Expand", [value, self.vector(parts)], TensorType(dtype, shape)), tuple(order)

    def _length(self, letter: str, sizes: Sizes, ruler: Ruler | None) -> int | ir.Value:
        """The size of a letter: a number, or a tensor of one number read off the ruler."""
        size = sizes[letter]
        if isinstance(size, int):
            return size
        assert ruler is not None
        axis = next(axis for axis, group in enumerate(ruler.layout) if letter in group)
        length = self.dimension(ruler.value, axis)
        rest = merged_size(ruler.layout[axis].replace(letter, ""), sizes)
        if rest == 1:
            return length
        divisor = self.constant(np.array([rest], np.int64), "divisor")
        return self.node("Div", [length, divisor], TensorType(ir.DataType.INT64, (1,)))

    def dimension(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis, as a tensor of one number."""
        int64 = ir.DataType.INT64
        dims = self.node("Shape", [value], TensorType(int64, (len(value.shape or ()) or "?rank",)))
        at = self.constant(np.array([axis], np.int64), "axis")
        return self.node("Gather", [dims, at], TensorType(int64, (1,)))

    def vector(self, parts: Sequence[int | ir.Value]) -> ir.Value:
        """A shape tensor of numbers and of tensors with one number."""
        if all(isinstance(part, int) for part in parts):
            return self.constant(np.array(parts, np.int64), "shape")
        pieces = [
            part if isinstance(part, ir.Value) else self.constant(np.array([part], np.int64), "size") for part in parts
        ]
        return self.node("Concat", pieces, TensorType(ir.DataType.INT64, (len(parts),)), {"axis": 0})

    def _reshape(self, value: ir.Value, before: Layout, after: Layout, sizes: Sizes, dtype: ir.DataType) -> ir.Value:
        if before == after:
            return value
        shape = tuple(merged_size(group, sizes) for group in after)
        added = len(after) - len(before)
        if added > 0 and after == ("",) * added + before:
            return self._unsqueeze(value, added, TensorType(dtype, shape))
        target: list[int | ir.Value] = []
        for axis, (group, size) in enumerate(zip(after, shape, strict=True)):
            if isinstance(size, int):
                target.append(size)
            elif axis < len(before) and before[axis] == group:
                target.append(0)
            elif -1 not in target:
                target.append(-1)
            else:
                target.append(self.dimension(value, before.index(group)))
        return self.node("Reshape", [value, self.vector(target)], TensorType(dtype, shape))

    def _unsqueeze(self, value: ir.Value, count: int, type_: TensorType) -> ir.Value:
        if self.opset < 13:
            return self.node("Unsqueeze", [value], type_, {"axes": list(range(count))})
        axes = self.constant(np.arange(count), "axes")
        return self.node("Unsqueeze", [value, axes], type_)


def can_relayout(before: Layout, after: Layout, sizes: Sizes) -> bool:
    """True if `Emitter.relayout` can write it: each Reshape on the way knows the sizes that are not numbers."""
    letters, wanted = "".join(before), "".join(after)
    stages = [before, after] if letters == wanted else [before, tuple(letters), tuple(wanted), after]
    for first, second in zip(stages[::2], stages[1::2], strict=True):
        unknown = [
            group
            for axis, group in enumerate(second)
            if not isinstance(merged_size(group, sizes), int) and not (axis < len(first) and first[axis] == group)
        ]
        if any(group not in first for group in unknown[1:]):
            return False
    return True


def relayout_cost(before: Layout, after: Layout) -> int:
    """How many nodes `Emitter.relayout` adds, those that compute a shape not counted."""
    if before == after:
        return 0
    missing = set("".join(after)) - set("".join(before))
    moved = "".join(letter for letter in "".join(after) if letter not in missing) != "".join(before)
    split = any(len(axis) != 1 for axis in before)
    merged = any(len(axis) != 1 for axis in after)
    if missing:
        return 2 + moved + merged
    return moved * (1 + split) + (merged if moved else 1)


def cheapest_view(views: Sequence[View], wanted: Layout) -> View:
    """The view from which `wanted` takes the fewest nodes; of equals the one furthest upstream."""
    return min(reversed(views), key=lambda view: relayout_cost(view.layout, wanted))
