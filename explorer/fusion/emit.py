"""Write new nodes into a graph that is being rewritten: named, typed, with provenance, and as few as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.attention.block import Layout, View
from explorer.attention.layouts import Sizes
from explorer.model import Dim, TensorType


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
        self._graph = graph
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
        shape = None if type_.shape is None else ir.Shape(type_.shape)
        dtype = None if type_.dtype is None else ir.TensorType(type_.dtype)
        output = ir.Value(name=self._names.fresh(f"{name}_output_0"), shape=shape, type=dtype)
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, domain=domain, name=name, outputs=[output],
            metadata_props=dict(self._provenance),
        )  # fmt: skip
        self._graph.insert_before(self._before, node)
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
        self._graph.register_initializer(value)
        return value

    def relayout(self, value: ir.Value, before: Layout, after: Layout, sizes: Sizes, dtype: ir.DataType) -> ir.Value:
        """Bring `value` from one layout to another with at most Reshape, Transpose, Reshape."""
        letters_before, letters_after = "".join(before), "".join(after)
        if before == after:
            return value
        if letters_before != letters_after:
            split: Layout = tuple(letters_before)
            value = self._reshape(value, before, split, sizes, dtype)
            perm = [letters_before.index(letter) for letter in letters_after]
            shape = tuple(sizes[letter] for letter in letters_after)
            value = self.node("Transpose", [value], TensorType(dtype, shape), {"perm": perm})
            before = tuple(letters_after)
        return self._reshape(value, before, after, sizes, dtype)

    def _reshape(self, value: ir.Value, before: Layout, after: Layout, sizes: Sizes, dtype: ir.DataType) -> ir.Value:
        if before == after:
            return value
        shape = tuple(merged_size(group, sizes) for group in after)
        target = [
            0 if axis < len(before) and before[axis] == group else size if isinstance(size, int) else -1
            for axis, (group, size) in enumerate(zip(after, shape, strict=True))
        ]
        constant = self.constant(np.array(target, np.int64), "shape")
        return self.node("Reshape", [value, constant], TensorType(dtype, shape))


def relayout_cost(before: Layout, after: Layout) -> int:
    """How many nodes `Emitter.relayout` adds."""
    if before == after:
        return 0
    moved = "".join(before) != "".join(after)
    split = any(len(axis) != 1 for axis in before)
    merged = any(len(axis) != 1 for axis in after)
    return moved * (1 + split) + (merged if moved else 1)


def cheapest_view(views: Sequence[View], wanted: Layout) -> View:
    """The view from which `wanted` takes the fewest nodes; of equals the one furthest upstream."""
    return min(reversed(views), key=lambda view: relayout_cost(view.layout, wanted))


def merged_size(group: str, sizes: Sizes) -> Dim:
    """Size of an axis on which several letters are merged, None unless all are known numbers (or it is one symbol)."""
    if len(group) == 1:
        return sizes[group]
    size = 1
    for letter in group:
        factor = sizes[letter]
        if not isinstance(factor, int):
            return None
        size *= factor
    return size
