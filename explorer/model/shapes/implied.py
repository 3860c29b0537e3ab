"""Sizes that a graph demands of its inputs: what an exporter wrote into it as a number leaves a symbol no choice.

A tensor of `text + 36` rows that is added to one of 52 runs for text = 16 only. Exporters that trace write such numbers
down unasked, and the file still calls the dimension dynamic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import onnx_ir as ir

from explorer.model.dims import Dim, at_least, is_known, root, substitute, subtract, symbols
from explorer.model.types import TensorType

_BROADCASTING = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where", "And", "Or", "Mod"))
# One size found may make another equation solvable.
_MAX_ROUNDS = 8


def imply(model: ir.Model, types: Mapping[str, TensorType]) -> tuple[dict[str, TensorType], dict[str, Dim]]:
    """`types` with every symbol that the graph leaves no choice replaced by its size, and these sizes by symbol.

    A size is a number, or says what is left for one symbol by others (tokens = 13 - words).
    """
    types, found = dict(types), dict[str, Dim]()
    for _ in range(_MAX_ROUNDS):
        new = _solved(model, types)
        if new is None:
            break
        name, size = new
        found = {symbol: substitute(other, {name: size}) for symbol, other in found.items()} | {name: size}
        types = {key: _substituted(known, name, size) for key, known in types.items()}
    return types, found


def _substituted(known: TensorType, name: str, size: Dim) -> TensorType:
    if known.shape is None or not any(isinstance(dim, str) and name in symbols(dim) for dim in known.shape):
        return known
    return TensorType(known.dtype, tuple(substitute(dim, {name: size}) for dim in known.shape))


def _solved(model: ir.Model, types: Mapping[str, TensorType]) -> tuple[str, Dim] | None:
    """A symbol that an equation between two sizes leaves one value, and that value; numbers are preferred."""
    by_others = None
    for a, b in _equal_sizes(model, types):
        difference = subtract(a, b)
        for name in sorted(symbols(difference)):
            size = root(difference, name) if is_known(name) else None
            if isinstance(size, int):
                return name, size
            by_others = by_others or (None if size is None else (name, size))
    return by_others


def _equal_sizes(model: ir.Model, types: Mapping[str, TensorType]) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of different expressions that are one size in every run: the graph fails where they are not."""
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
            continue
        if node.op_type in _BROADCASTING:
            shapes = [_shape(types, value) for value in node.inputs if value is not None]
            for one, other in pairwise(shapes):
                yield from _broadcast(one, other)
        elif node.op_type == "MatMul":
            left, right = (_shape(types, value) for value in node.inputs[:2] if value is not None)
            if len(left) > 1 and len(right) > 1:
                if left[-1] != right[-2]:
                    yield left[-1], right[-2]
                yield from _broadcast(left[:-2], right[:-2])


def _broadcast(one: tuple[Dim, ...], other: tuple[Dim, ...]) -> Iterator[tuple[Dim, Dim]]:
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b and at_least(a, 2) and at_least(b, 2):
            yield a, b


def _shape(types: Mapping[str, TensorType], value: ir.Value) -> tuple[Dim, ...]:
    known = types.get(value.name or "")
    return () if known is None or known.shape is None else known.shape
