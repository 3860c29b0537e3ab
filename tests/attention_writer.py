"""Writes ONNX nodes for tensors whose axes have letters: the Transposes, Reshapes and shape chains between layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from attention_spelling import Layout
from onnx import TensorProto, helper, numpy_helper

_LENGTHS = "bstpu"  # sizes that exporters read at run time


@dataclass(frozen=True)
class Tensor:
    """A value of the graph and what lies on its axes."""

    name: str
    layout: Layout


def route(before: Layout, after: Layout, coarse: bool) -> list[Layout]:
    """The layouts on the way from one to another: each is a Reshape or a Transpose of the one before it."""
    source, target = "".join(before), "".join(after)
    if source == target:
        return [] if before == after else [after]
    runs = [source[0]]
    for left, right in pairwise(source):
        pair = left + right
        together = pair in target if coarse else all(any(pair in group for group in x) for x in (before, after))
        # what is merged with the head size would be taken for the heads
        if together and left not in "hv" and (right not in "hv" or set(runs[-1]) <= set("gr")):
            runs[-1] += right
        else:
            runs.append(right)
    path = [before, tuple(runs), tuple(sorted(runs, key=target.index)), after]
    return [layout for last, layout in pairwise(path) if layout != last]


class Writer:
    """Collects the parts of one graph; `symbols` has the declared size of each letter, a number or a name."""

    def __init__(
        self, sizes: Mapping[str, int], symbols: Mapping[str, int | str], opset: int, reshape: str, *,
        squeeze: bool = False, coarse: bool = False,
    ) -> None:  # fmt: skip
        self.sizes, self.symbols, self.opset = sizes, symbols, opset
        self.reshape_by, self.squeeze, self.coarse = reshape, squeeze, coarse
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.count = 0
        self.casts = 0
        """How many Casts lie on the way of the data."""
        self.remember = True
        """Sizes are read off the operands, not off the logits or what comes behind them."""
        self._seen: dict[str, tuple[str, int]] = {}

    # nodes

    def add(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: object) -> str:
        """Write a node; returns the name of its first output, the others end in _1, _2, …"""
        self.count += 1
        names = [f"v{self.count}", *(f"v{self.count}_{at}" for at in range(1, outputs))]
        name = f"{op}_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0]

    def const(self, array: np.ndarray, as_node: bool = False) -> str:
        if as_node:
            return self.add("Constant", value=numpy_helper.from_array(array))
        self.count += 1
        self.initializers.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def numbers(self, *numbers: int) -> str:
        return self.const(np.array(numbers, np.int64))

    def tensor(self, name: str, layout: Layout) -> Tensor:
        """What is called `name`, remembered as a place where sizes can be read."""
        for axis, group in enumerate(layout) if self.remember else ():
            self._seen.setdefault(group, (name, axis))
        return Tensor(name, layout)

    def on(self, x: Tensor, op: str, *others: str, first: bool = False, **attributes: object) -> Tensor:
        """An elementwise node on `x`; its other inputs come first if `first`."""
        inputs = (*others, x.name) if first else (x.name, *others)
        return self.tensor(self.add(op, *inputs, **attributes), x.layout)

    def cast(self, x: Tensor, to: int) -> Tensor:
        self.casts += 1
        return self.on(x, "Cast", to=to)

    # inputs, outputs and sizes

    def input(self, name: str, layout: Layout, element: int) -> Tensor:
        self.inputs.append(helper.make_tensor_value_info(name, element, [self.dim(group) for group in layout]))
        return self.tensor(name, layout)

    def output(self, name: str, layout: Layout, element: int) -> Tensor:
        """Make what the last node computes an output of the graph."""
        self.nodes[-1].output[0] = name
        self.outputs.append(helper.make_tensor_value_info(name, element, [self.dim(group) for group in layout]))
        return self.tensor(name, layout)

    def dim(self, group: str) -> int | str:
        """The declared size of an axis."""
        sizes = [self.symbols[letter] for letter in group]
        number = math.prod(size for size in sizes if isinstance(size, int))
        names = [f"({size})" if " " in size and len(sizes) > 1 else size for size in sizes if isinstance(size, str)]
        return "*".join([str(number)] * (number != 1) + names) if names else number

    def length(self, group: str) -> str:
        """A scalar: the size of an axis, read off some tensor at run time."""
        if group in self._seen:
            return self._size(*self._seen[group])
        home = next((seen for seen in self._seen if group[0] in seen and len(seen) > len(group) == 1), None)
        if home is not None:
            rest = math.prod(self.sizes[letter] for letter in home.replace(group, ""))
            return self.add("Div", self.length(home), self.const(np.array(rest)))
        parts = [letter for letter in group if letter in _LENGTHS]
        fixed = math.prod(self.sizes[letter] for letter in group if letter not in _LENGTHS)
        product = self.length(parts[0])
        for part in parts[1:]:
            product = self.add("Mul", product, self.length(part))
        return product if fixed == 1 else self.add("Mul", product, self.const(np.array(fixed)))

    def _size(self, name: str, axis: int) -> str:
        return self.add("Gather", self.add("Shape", name), self.const(np.array(axis)), axis=0)

    def vector(self, items: Sequence[int | str]) -> str:
        """A 1-D tensor of numbers and of scalars computed at run time."""
        if all(isinstance(item, int) for item in items):
            return self.numbers(*items)  # type: ignore[arg-type]
        zero = self.numbers(0)
        parts = [self.numbers(x) if isinstance(x, int) else self.unsqueeze(x, (0,), zero) for x in items]
        return self.add("Concat", *parts, axis=0)

    def unsqueeze(self, name: str, axes: Sequence[int], given: str = "") -> str:
        if self.opset < 13:
            return self.add("Unsqueeze", name, axes=list(axes))
        return self.add("Unsqueeze", name, given or self.numbers(*axes))

    def squeezed(self, name: str, axes: Sequence[int]) -> str:
        if self.opset < 13:
            return self.add("Squeeze", name, axes=list(axes))
        return self.add("Squeeze", name, self.numbers(*axes))

    # layouts

    def go(self, x: Tensor, target: Layout) -> Tensor:
        """Bring `x` into another layout."""
        for layout in route(x.layout, target, self.coarse):
            x = self.reshape(x, layout) if "".join(x.layout) == "".join(layout) else self.transpose(x, layout)
        return x

    def transpose(self, x: Tensor, layout: Layout) -> Tensor:
        if layout == x.layout[::-1]:
            return self.tensor(self.add("Transpose", x.name), layout)
        perm = [x.layout.index(group) for group in layout]
        return self.tensor(self.add("Transpose", x.name, perm=perm), layout)

    def reshape(self, x: Tensor, layout: Layout) -> Tensor:
        before, after = ([group for group in each if group] for each in (x.layout, layout))
        if self.squeeze and before == after:
            if len(layout) < len(x.layout) and "" not in layout:
                return self.tensor(self.squeezed(x.name, _ones(x.layout)), layout)
            if len(layout) > len(x.layout) and "" not in x.layout:
                return self.tensor(self.unsqueeze(x.name, _ones(layout)), layout)
        return self.tensor(self.add("Reshape", x.name, self._target(x, layout)), layout)

    def _target(self, x: Tensor, after: Layout) -> str:
        before = x.layout
        items: list[int | str] = []
        lengths = [axis for axis, group in enumerate(after) if set(group) & set(_LENGTHS)]
        for axis, group in enumerate(after):
            size = self.dim(group)
            same = axis < len(before) and before[axis] == group
            if self.reshape_by == "local" and group in x.layout and axis in lengths:
                items.append(self._size(x.name, x.layout.index(group)))
            elif self.reshape_by in ("chain", "local") and axis in lengths:
                items.append(self.length(group))
            elif self.reshape_by == "minus" and lengths and axis == lengths[-1]:
                items.append(-1)
            elif self.reshape_by in ("zeros", "minus") and same:
                items.append(0)
            elif isinstance(size, int):
                items.append(size)
            elif -1 not in items and self.reshape_by != "minus":
                items.append(-1)
            else:
                items.append(0 if same else self.length(group))
        return self.vector(items)


def _ones(layout: Layout) -> list[int]:
    return [axis for axis, group in enumerate(layout) if not group]


FLOAT, HALF, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
