"""Write new nodes into a graph that is being rewritten: named, typed, with provenance, and as few as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.attention.block import Layout, merged_size
from explorer.fusion.relayout import Sizes, steps
from explorer.model import Dim, TensorType

_AXES_AS_INPUT = 13
_SHAPE_SLICES = 15

Shared = dict[tuple[object, ...], ir.Value]
"""Values already written that other blocks may read, too, by what they were made of."""


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
        unread: Sequence[TensorType] = (),
    ) -> ir.Value:
        """Insert a node whose first output has the given type, and return that output.

        `unread` are the types of further outputs, which the operator wants declared though nobody reads them.
        """
        name = self._names.fresh(f"{self._prefix}{op_type}")
        outputs = [self._output(f"{name}_output_{at}", one) for at, one in enumerate((type_, *unread))]
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, domain=domain, name=name, outputs=outputs,
            metadata_props=dict(self._provenance),
        )  # fmt: skip
        self.graph.insert_before(self._before, node)
        self.outputs += outputs
        return outputs[0]

    def _output(self, wish: str, type_: TensorType) -> ir.Value:
        shape = None if type_.shape is None else ir.Shape(declared(type_.shape))
        dtype = None if type_.dtype is None else ir.TensorType(type_.dtype)
        return ir.Value(name=self._names.fresh(wish), shape=shape, type=dtype)

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
        """Bring `value` from one layout to another by the nodes that `steps` names.

        Letters that only `after` has are repeated; `ruler` tells their sizes at run time where they are not numbers.
        """
        for step in steps(before, after):
            type_ = TensorType(dtype, tuple(merged_size(group, sizes) for group in step.layout))
            if step.op_type == "Reshape":
                value = self._reshape(value, before, step.layout, type_)
            elif step.op_type == "Transpose":
                value = self.node("Transpose", [value], type_, {"perm": step.perm})
            else:
                pairs = zip(("",) * (len(step.layout) - len(before)) + before, step.layout, strict=True)
                parts = [1 if group == old else self._length(group, sizes, ruler) for old, group in pairs]
                value = self.node("Expand", [value, self.vector(parts)], type_)
            before = step.layout
        return value

    def _length(self, group: str, sizes: Sizes, ruler: Ruler | None) -> int | ir.Value:
        """The size of an axis: a number, or a tensor of one number read off the ruler."""
        size = merged_size(group, sizes)
        if isinstance(size, int):
            return size
        assert ruler is not None
        axis = next(axis for axis, letters in enumerate(ruler.layout) if set(group) <= set(letters))
        length = self.dimension(ruler.value, axis)
        rest = merged_size("".join(x for x in ruler.layout[axis] if x not in group), sizes)
        if rest == 1:
            return length
        divisor = self.constant(np.array([rest], np.int64), "divisor")
        return self.node("Div", [length, divisor], TensorType(ir.DataType.INT64, (1,)))

    def dimension(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis, as a tensor of one number."""
        one = TensorType(ir.DataType.INT64, (1,))
        if self.opset >= _SHAPE_SLICES:
            return self.node("Shape", [value], one, {"start": axis, "end": axis + 1})
        dims = self.node("Shape", [value], TensorType(ir.DataType.INT64, (len(value.shape or ()) or "?rank",)))
        return self.node("Gather", [dims, self.constant(np.array([axis], np.int64), "axis")], one)

    def vector(self, parts: Sequence[int | ir.Value]) -> ir.Value:
        """A shape tensor of numbers and of tensors with one number."""
        if all(isinstance(part, int) for part in parts):
            return self.constant(np.array(parts, np.int64), "shape")
        pieces = [
            part if isinstance(part, ir.Value) else self.constant(np.array([part], np.int64), "size") for part in parts
        ]
        if len(pieces) == 1:
            return pieces[0]
        return self.node("Concat", pieces, TensorType(ir.DataType.INT64, (len(parts),)), {"axis": 0})

    def _reshape(self, value: ir.Value, before: Layout, after: Layout, type_: TensorType) -> ir.Value:
        assert type_.shape is not None
        added = len(after) - len(before)
        if added > 0 and after == ("",) * added + before:
            return self._unsqueeze(value, added, type_)
        target: list[int | ir.Value] = []
        for axis, (group, size) in enumerate(zip(after, type_.shape, strict=True)):
            if isinstance(size, int):
                target.append(size)
            elif before[axis : axis + 1] == (group,):
                target.append(0)
            elif -1 not in target:
                target.append(-1)
            else:
                target.append(self.dimension(value, before.index(group)))
        return self.node("Reshape", [value, self.vector(target)], type_)

    def _unsqueeze(self, value: ir.Value, count: int, type_: TensorType) -> ir.Value:
        if self.opset < _AXES_AS_INPUT:
            return self.node("Unsqueeze", [value], type_, {"axes": list(range(count))})
        axes = self.constant(np.arange(count), "axes")
        return self.node("Unsqueeze", [value, axes], type_)
