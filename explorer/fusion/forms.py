"""The layouts that an operator reads and writes, and the cheapest way of a block into one set of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import onnx_ir as ir

from explorer.attention import Block, Obstacle, Operand, View
from explorer.attention.block import Layout
from explorer.fusion.relayout import Price, feasible, price
from explorer.model import Model

# Nodes that only say how to read what is there.
_FREE = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"))


LayoutName = Literal["bsd", "bnsh"]
"""What a form is called in the name of a target: that of the key's layout."""


@dataclass(frozen=True, slots=True)
class Form:
    """The layouts of query, key, value and result that go together."""

    name: LayoutName
    query: Layout
    key: Layout
    value: Layout
    output: Layout

    @property
    def packed(self) -> bool:
        """True if all heads lie on one axis (BSD) in the query."""
        return len(self.query) == 3


@dataclass(frozen=True, slots=True)
class Fit:
    """How a block gets into a form: the value from which each operand is read, and what that costs.

    The price counts the nodes written and those of the graph that stay because something behind them is read.
    """

    form: Form
    query: View
    key: View
    value: View
    price: Price
    repeats: bool
    """True if key or value are read with fewer heads than the form has, so that they must be repeated."""

    @property
    def views(self) -> tuple[tuple[View, Layout], ...]:
        """What is read and the layout that it gets, for query, key and value."""
        return (self.query, self.form.query), (self.key, self.form.key), (self.value, self.form.value)


def packed(block: Block, kv_heads: str) -> Form:
    """All in BSD; key and value have the heads named by `kv_heads`."""
    batch, heads, rows, keys = block.batch, block.heads, block.rows, block.keys
    query, output = ((batch, rows, heads + head) for head in "HV")
    key, value = ((batch, keys, kv_heads + head) for head in "HV")
    return Form("bsd", query, key, value, output)


def unpacked(block: Block, kv_heads: str) -> Form:
    """All in BNSH; key and value have the heads named by `kv_heads`."""
    batch, heads, rows, keys = block.batch, block.heads, block.rows, block.keys
    query, output = ((batch, heads, rows, head) for head in "HV")
    key, value = ((batch, kv_heads, keys, head) for head in "HV")
    return Form("bnsh", query, key, value, output)


def with_split_heads(form: Form, block: Block) -> Layout:
    """The layout of the query in `form` with an axis of its own for the heads: there they can be told apart."""
    return (block.batch, block.rows, block.heads, "H") if form.packed else form.query


_KNOWN: WeakKeyDictionary[Model, dict[tuple[object, ...], Fit | tuple[Obstacle, ...]]] = WeakKeyDictionary()
"""What has been found: whoever chooses a target asks several times."""


def cheapest(model: Model, block: Block, forms: Sequence[Form]) -> Fit | tuple[Obstacle, ...]:
    """The form that costs least (of equals the first) and how the block gets into it; why not, if into none.

    No reasons for no forms.
    """
    known = _KNOWN.setdefault(model, {})
    key = (block.anchor, *forms, block.query, block.key, block.value, block.output, block.factor, block.sizes)
    if key not in known:
        found = [_fit(model, block, form) for form in forms]
        fits = [fit for fit in found if isinstance(fit, Fit)]
        obstacles = [reasons for reasons in found if not isinstance(reasons, Fit)]
        known[key] = min(fits, key=lambda fit: fit.price) if fits else min(obstacles, key=len, default=())
    return known[key]


def _fit(model: Model, block: Block, form: Form) -> Fit | tuple[Obstacle, ...]:
    assert block.output is not None
    sizes = dict(block.sizes)
    obstacles: list[Obstacle] = []
    views: list[View] = []
    total, repeats = price(form.output, block.output.layout), False
    if not feasible(form.output, block.output.layout, sizes):
        found = str(block.output.layout)
        obstacles.append(Obstacle("layout", block.anchor, "a result in a layout of known sizes", found))
    for name, operand, layout in _operands(block, form):
        via = with_split_heads(form, block) if name == "Q" and block.factor is not None else layout
        letters = set("".join(layout))
        # all that goes on the axes, but for heads of known number, and no more
        needed = letters - {letter for letter in block.heads if isinstance(sizes[letter], int)}
        ways = [
            (stays + price(view.layout, via) + price(via, layout), -at, view)
            for at, (view, stays) in enumerate(zip(operand.views, _staying(model, operand), strict=True))
            if needed <= set(view.letters) <= letters
        ]
        whole = [way for way in ways if len(way[2].letters) == len(letters)]
        known = [way for way in whole or ways if feasible(way[2].layout, via, sizes) and feasible(via, layout, sizes)]
        if known:
            paid, _, view = min(known)
            views.append(view)
            total += paid
            repeats |= not whole
        elif ways:
            found = str(operand.views[0].layout)
            obstacles.append(Obstacle("layout", block.anchor, f"{name} in a layout of known sizes", found))
        else:
            lacking = "batch entries" if set(block.batch) - set(operand.views[0].letters) else "positions or heads"
            found = f"one entry of {name} for all of them"
            obstacles.append(Obstacle("broadcast", block.anchor, f"{name} with all its {lacking}", found))
    return tuple(obstacles) if obstacles else Fit(form, views[0], views[1], views[2], total, repeats)


def _operands(block: Block, form: Form) -> Iterator[tuple[str, Operand, Layout]]:
    assert block.query is not None
    assert block.key is not None
    assert block.value is not None
    yield "Q", block.query, form.query
    yield "K", block.key, form.key
    yield "V", block.value, form.value


def _staying(model: Model, operand: Operand) -> list[Price]:
    """For each view what the nodes between it and the source cost, which stay if it is read.

    Not those that stay anyway, since others read what they or a node behind them compute.
    """
    others, costs = False, []
    for view in operand.views[:-1]:
        value = model.value(view.value)
        node = value.producer()
        assert node is not None
        others = others or value.is_graph_output() or len(_readers(value)) > 1
        costs.append(Price() if others else Price(int(node.op_type not in _FREE), 1))
    staying = [Price()]
    for cost in reversed(costs):
        staying.append(staying[-1] + cost)
    return staying[::-1]


def _readers(value: ir.Value) -> list[ir.Node]:
    """Who reads more than the shape of a value."""
    return [use.node for use in value.uses() if use.node.op_type != "Shape"]
