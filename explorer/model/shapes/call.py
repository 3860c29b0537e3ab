"""What a rule sees of a node: its attributes, and the types and partly known contents of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.model.dims import Dim, at_least, is_known, maximum
from explorer.model.types import TensorType, unknown

Shape = tuple[Dim, ...]
Shapes = Sequence["Shape | None"]
"""One shape for each output; None, or nothing at the end, where the rank is unknown."""

ShapeRule = Callable[["Call"], Shapes]
DtypeRule = int | ir.DataType | Callable[["Call"], ir.DataType | None]
"""Element type of an output: that of the input at a position, a fixed one, or what a function says."""
Rule = tuple[tuple[DtypeRule, ...], ShapeRule]
"""Element types of the outputs (the last one is also that of all further outputs), and their shapes."""
Rules = dict[str, Rule]

# What a rule may raise on a graph that is ill-formed or says too little.
RULE_ERRORS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)


class UnknownError(ValueError):
    """What a rule needs is not known."""


class Call:
    """One application of an operator."""

    __slots__ = ("_contents", "_scope", "_sizes", "_types", "inputs", "node", "opset")

    def __init__(
        self,
        node: ir.Node,
        types: dict[int, TensorType],
        contents: Callable[[ir.Value], np.ndarray | None],
        sizes: Container[Dim],
        opset: int,
        scope: str,
    ) -> None:
        self.node = node
        self.inputs = node.inputs
        self.opset = opset
        self._types = types
        self._contents = contents
        self._sizes = sizes
        self._scope = scope

    def given(self, position: int) -> bool:
        """True if the node has an input at `position`."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def dtype(self, position: int) -> ir.DataType | None:
        """Element type of an input, None if unknown or not given."""
        known = self._type(position)
        return None if known is None else known.dtype

    def rank_or_none(self, position: int) -> int | None:
        """How many axes an input has, None if unknown or not given."""
        known = self._type(position)
        return None if known is None or known.shape is None else len(known.shape)

    def shape(self, position: int) -> Shape:
        """Shape of an input; UnknownError if it is not given or its rank is unknown."""
        known = self._type(position)
        if known is None or known.shape is None:
            raise UnknownError
        return known.shape

    def _type(self, position: int) -> TensorType | None:
        value = self.inputs[position] if position < len(self.inputs) else None
        return None if value is None else self._types.get(id(value))

    def elements(self, position: int) -> list[Any] | None:
        """Contents of an input as a flat list of numbers, dimensions (str), Ratios and None (unknown).

        None if it is not given, or depends on inputs throughout.
        """
        value = self.inputs[position] if position < len(self.inputs) else None
        array = None if value is None else self._contents(value)
        return None if array is None else array.reshape(-1).tolist()

    def numbers(self, name: str, position: int | None = None) -> list[int] | None:
        """A list of integers given as an attribute or as an input, whichever there is; None if neither.

        UnknownError if the input's contents are not known.
        """
        found = self.attribute(name)
        if found is not None:
            return list(found)
        if position is None or not self.given(position):
            return None
        elements = self.elements(position)
        if elements is None or not all(isinstance(element, int) for element in elements):
            raise UnknownError
        return elements

    def is_size(self, dim: Dim) -> bool:
        """True if `dim` is at least 0: provably, or because an array has that size."""
        return at_least(dim, 0) or dim in self._sizes

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or `default` if it is not there."""
        attributes = self.node.attributes
        return attributes[name].value if name in attributes else default

    def fresh(self, axis: int, output: int = 0) -> Dim:
        """A size nobody knows, for this axis of this output."""
        return unknown(f"{self._scope}{self.node.outputs[output].name}.{axis}")


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front; ValueError if there is no such axis."""
    if not -rank <= axis < rank:
        raise ValueError(f"no axis {axis}")
    return axis % rank


def same(a: Dim, b: Dim) -> Dim:
    """One of two sizes that are equal in every model that runs: the one that says more."""
    return min(a, b, key=lambda dim: (not isinstance(dim, int), not is_known(dim), len(str(dim)), str(dim)))


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """Size of an axis on which a and b are broadcast, given that they can be: equal, or one of them 1."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) or isinstance(b, int):
        return same(a, b)
    long_a, long_b = at_least(a, 2), at_least(b, 2)
    if long_a and long_b:
        return same(a, b)
    return a if long_a else b if long_b else maximum(a, b)


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """Shape of several arrays broadcast together."""
    first, *others = shapes
    for other in others:
        if other == first:
            continue
        rank = max(len(first), len(other))
        left, right = (1,) * (rank - len(first)) + first, (1,) * (rank - len(other)) + other
        first = tuple(a if a == b else broadcast_dim(a, b) for a, b in zip(left, right, strict=True))
    return first
