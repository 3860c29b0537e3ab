"""Query, key and value from the graph's inputs to their product, and the products themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from attention_spelling import SOURCES, Layout, Meaning, Spelling, parse
from attention_writer import FLOAT, HALF, Tensor, Writer

Parts = tuple[tuple[str, Layout], ...]


@dataclass
class Slots:
    """What each graph input holds: quantities beside each other on the last axis, of which `merged` axes become one."""

    parts: dict[str, Parts] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)

    def put(self, name: str, *parts: tuple[str, Layout], merged: int = 1) -> None:
        self.parts[name], self.merged[name] = parts, merged


class Operands:
    """Writes Q, K and V of one graph."""

    def __init__(self, w: Writer, m: Meaning, s: Spelling, slots: Slots) -> None:
        self.w, self.m, self.s, self.slots = w, m, s, slots
        self.element = HALF if m.half else FLOAT
        self.batch = "" if "b" not in s.logits else "bw" if m.sizes["w"] > 1 else "b"
        self.kv = "" if m.heads == 1 and not set(s.logits) & set("ng") else "g"
        if s.repeat == "absent" and m.sizes["g"] == 1:
            self.kv = ""
        self.heads = heads_of(m, s)
        self.positions = "u" if m.past else "t"

    def layout(self, template: str, *, key: bool = False) -> Layout:
        """A template with the letters of this graph: for the query, or for key and value."""
        letters = {"b": self.batch, "n": self.heads, "g": self.kv}
        if key:
            letters |= {"n": self.kv, "s": self.positions, "t": "t"}
        return parse(template, letters)

    def sources(self) -> dict[str, Tensor]:
        """The three as they come."""
        if self.s.packed:
            return self._packed()
        found = {}
        for name, source in (("q", self.s.query), ("k", self.s.key), ("v", self.s.value)):
            layout = self._parts(SOURCES[source])[name]
            found[name] = self.w.input(name, layout, self.element)
            self.slots.put(name, (name, layout))
        return found

    def _packed(self) -> dict[str, Tensor]:
        """The three from one input."""
        if self.s.packed in ("split", "slice"):
            return self._apart("b.s", "nh")
        if self.s.packed == "interleaved":
            return self._apart("b.s.n" if self.heads else "b.s", "h")
        return self._stacked()

    def _parts(self, template: str) -> dict[str, Layout]:
        return {x: self.layout(template.replace("h", "v") if x == "v" else template, key=x != "q") for x in "qkv"}

    def _apart(self, outer: str, last: str) -> dict[str, Tensor]:
        """They lie beside each other on the last axis, of all heads or (interleaved) of each head."""
        w, parts = self.w, self._parts(f"{outer}.{last}")
        widths = [math.prod(self.m.sizes[letter] for letter in layout[-1]) for layout in parts.values()]
        w.sizes, w.symbols = {**w.sizes, "x": sum(widths)}, {**w.symbols, "x": sum(widths)}
        whole = (*self.layout(outer), "x")
        given = (*whole[:-2], "".join(whole[-2:])) if "n" in outer else whole
        self.slots.put("qkv", *parts.items(), merged=2 if "n" in outer else 1)
        x = w.go(w.input("qkv", given, self.element), whole)
        names = self._slices(x.name, widths) if self.s.packed == "slice" else split(w, x.name, -1, widths)
        return {part: w.tensor(name, parts[part]) for part, name in zip(parts, names, strict=True)}

    def _stacked(self) -> dict[str, Tensor]:
        """They lie behind each other on an axis x of their own, which is read by Gather or Split and Squeeze."""
        w, unbind = self.w, self.s.packed == "unbind"
        w.sizes, w.symbols = {**w.sizes, "x": 3}, {**w.symbols, "x": 3}
        self.slots.put("qkv", *self._parts("b.s.nh").items())
        x = w.input("qkv", self.layout("b.s.xnh"), self.element)
        x = w.go(x, self.layout("x.b.n.s.h" if unbind else "b.s.x.n.h"))
        axis = x.layout.index("x")
        if unbind:
            names = [w.squeezed(name, (axis,)) for name in split(w, x.name, axis, [1, 1, 1])]
        else:
            names = [w.add("Gather", x.name, w.const(np.array(at)), axis=axis) for at in range(3)]
        parts = self._parts("b.n.s.h" if unbind else "b.s.n.h")
        return {part: w.tensor(name, parts[part]) for part, name in zip(parts, names, strict=True)}

    def _slices(self, name: str, widths: list[int]) -> list[str]:
        w, ends = self.w, np.cumsum(widths)
        pairs = zip(ends - widths, ends, strict=True)
        return [w.add("Slice", name, w.numbers(start), w.numbers(end), w.numbers(-1)) for start, end in pairs]

    def key_or_value(self, name: str, x: Tensor, change: Callable[[str, Tensor, str], Tensor]) -> Tensor:
        """K or V from its source to where it has all its keys and heads; `change` writes factors and Casts."""
        size = "v" if name == "v" else "h"
        if self.m.past:
            x = self._cached(name, x, size)
        x = change(name, x, "source")
        if self.m.sizes["r"] > 1 and self.s.repeat not in ("broadcast", "absent"):
            x = self._repeated(self.w.go(x, self.layout(self.s.repeat_at.replace("h", size), key=True)))
        if self.s.key_stop and name == "k":
            x = self.w.go(x, parse("b.n.t.h", {"b": self.batch, "n": self._n(x)}))
        return change(name, x, "heads")

    def _n(self, x: Tensor) -> str:
        """The letters of the heads that `x` has."""
        return "".join(letter for letter in "".join(x.layout) if letter in "gr") if self.heads else ""

    def _cached(self, name: str, x: Tensor, size: str) -> Tensor:
        w = self.w
        x = w.go(x, self.layout(f"b.g.u.{size}", key=True))
        past = w.input(f"past_{name}", tuple(group.replace("u", "p") for group in x.layout), self.element)
        self.slots.put(past.name, (past.name, past.layout))
        w.add("Concat", past.name, x.name, axis=x.layout.index("u"))
        return w.output(f"present_{name}", tuple(group.replace("u", "t") for group in x.layout), self.element)

    def _repeated(self, x: Tensor) -> Tensor:
        w, count, at = self.w, self.m.sizes["r"], x.layout.index("g")
        before, behind = x.layout[:at], x.layout[at + 1 :]
        if self.s.repeat == "expand":
            x = w.reshape(x, (*before, "g", "", *behind))
            wide = (*before, "g", "r", *behind)
            read = ("b", "bw", "t") if self.s.reshape == "chain" else ()
            sizes = [w.length(group) if group in read else count if group == "r" else 1 for group in wide]
            return w.reshape(w.tensor(w.add("Expand", x.name, w.vector(sizes)), wide), (*before, "gr", *behind))
        if self.s.repeat == "gather":
            indices = w.const(np.repeat(np.arange(w.sizes["g"]), count))
            return w.tensor(w.add("Gather", x.name, indices, axis=at), (*before, "gr", *behind))
        layout = (*before, "rg", *behind)
        if self.s.repeat == "concat":
            return w.tensor(w.add("Concat", *[x.name] * count, axis=at), layout)
        repeats = [count if axis == at else 1 for axis in range(len(layout))]
        return w.tensor(w.add("Tile", x.name, w.numbers(*repeats)), layout)

    # products

    def product(self, op: str, left: Tensor, right: Tensor, result: Layout, summed: str, alpha: float = 1.0) -> Tensor:
        """The product of two tensors; MatMul and its kin put them into the layouts that they need."""
        w = self.w
        if op == "Einsum":
            left, right = (self._grouped(x, (*result, summed)) for x in (left, right))
            labels = dict(zip(dict.fromkeys((*left.layout, *right.layout)), self.s.alphabet, strict=False))
            terms = ["".join(labels[group] for group in layout) for layout in (left.layout, right.layout, result)]
            return w.tensor(w.add(op, left.name, right.name, equation=f"{terms[0]},{terms[1]}->{terms[2]}"), result)
        attributes: dict[str, object] = {} if alpha == 1.0 else {"alpha": alpha}
        names = []
        for side, x, pair in (("A", left, (result[-2], summed)), ("B", right, (summed, result[-1]))):
            batch = _batch(result[:-2], "".join(x.layout))
            if op != "MatMul" and x.layout == (*batch, *pair[::-1]):
                attributes[f"trans{side}"] = 1
            else:
                x = w.go(x, (*batch, *pair))
            names.append(x.name)
        domain = "com.microsoft" if op == "FusedMatMul" else ""
        return w.tensor(w.add(op, *names, domain=domain, **attributes), result)

    def _grouped(self, x: Tensor, groups: Layout) -> Tensor:
        """`x` with the axes of an equation, in the order in which its letters come."""
        letters = "".join(x.layout)
        own = [axis for axis in (_own(group, letters) for group in groups) if axis]
        return self.w.go(x, tuple(sorted(own, key=lambda axis: letters.index(axis[0]))))


def heads_of(m: Meaning, s: Spelling) -> str:
    """The letters of the query's heads, in their order."""
    sizes = m.sizes
    if not set(s.logits) & set("ngr"):
        return ""
    if sizes["r"] == 1:
        return "g"
    if s.repeat == "absent" and sizes["g"] == 1:
        return "r"
    return "rg" if s.repeat in ("tile", "concat") else "gr"


def _own(group: str, letters: str) -> str:
    return "".join(letter for letter in group if letter in letters)


def _batch(groups: Layout, letters: str) -> Layout:
    """Batch axes of a factor with these letters: "" where it has one entry for all, none in front."""
    own = [_own(group, letters) for group in groups]
    while own and not own[0]:
        own.pop(0)
    return tuple(own)


def split(w: Writer, name: str, axis: int, widths: list[int]) -> list[str]:
    """The parts of a Split."""
    if w.opset < 13:
        first = w.add("Split", name, outputs=len(widths), axis=axis, split=widths)
    elif w.opset >= 18 and len(set(widths)) == 1:
        first = w.add("Split", name, outputs=len(widths), axis=axis, num_outputs=len(widths))
    else:
        first = w.add("Split", name, w.numbers(*widths), outputs=len(widths), axis=axis)
    return [first, *(f"{first}_{at}" for at in range(1, len(widths)))]
