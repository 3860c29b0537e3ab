"""Masks in their spellings: each is brought to the axes of the logits and then added to them or put in by a Where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from attention_operands import Slots
from attention_spelling import VARIES, Layout, Meaning, Spelling, along, opened, pack
from attention_writer import BOOL, FLOAT, HALF, INT64, Tensor, Writer
from onnx import numpy_helper

FILLS = {"inf": -np.inf, "1e9": -1e9, "1e4": -1e4}
_LONGEST = 16  # side of the triangle that the causal mask is cut out of


class Masks:
    """Writes the mask of one graph."""

    def __init__(
        self, w: Writer, m: Meaning, s: Spelling, slots: Slots, data: Mapping[str, np.ndarray], wide: bool
    ) -> None:
        self.w, self.m, self.s, self.slots, self.data = w, m, s, slots, data
        self.dtype = np.dtype(np.float32 if wide else np.float16)
        self.element = FLOAT if wide else HALF
        with np.errstate(over="ignore"):
            fill = FILLS.get(s.fill, np.finfo(self.dtype).min)
            self.fill = np.array(fill, np.float64).astype(self.dtype)

    def put(self, x: Tensor) -> Tensor:
        """`x` with the mask; where that needs axes apart which `x` has as one, they are split for it."""
        layout = apart = x.layout
        for letters in self.m.varies.values():
            apart = opened(apart, letters)
        if apart != layout:
            x = self.w.reshape(x, apart)
        if self.s.mask_joined and self.m.mask == "causal+tokens":
            x = self._joined(x)
        else:
            for part in self.m.varies:
                x = getattr(self, f"_{part}")(x)
        return x if x.layout == layout else self.w.reshape(x, layout)

    # what is added

    def _input(self, x: Tensor) -> Tensor:
        return self._plus(x, self._given(x, self.element, "bias"))

    def _bias(self, x: Tensor) -> Tensor:
        return self._plus(x, self._constant(x, "bias", VARIES["bias"]))

    def _windows(self, x: Tensor) -> Tensor:
        return self._plus(x, self._constant(x, "bias", VARIES["windows"]))

    def _zero(self, x: Tensor) -> Tensor:
        if self.s.mask_by == "where":
            return self._plus(x, self.w.const(np.zeros((1,), self.dtype)))
        zero = np.zeros(1, self.dtype)
        like = self.w.add("Shape", x.name)
        if self.s.mask_by == "add":
            return self._plus(x, self.w.add("ConstantOfShape", like, value=_value(zero)))
        ones = self.w.add("ConstantOfShape", like, value=_value(zero + 1))
        return self._plus(x, self.w.add("Mul", ones, self.w.const(np.zeros((), self.dtype))))

    def _alibi(self, x: Tensor) -> Tensor:
        positions = Tensor(self._cast(self._range("t"), self.element), ("t",))
        slopes = self._constant(x, "slopes", "gr")
        return self._plus(x, self.w.add("Mul", slopes, self._aligned(positions, x.layout).name))

    def _plus(self, x: Tensor, what: str) -> Tensor:
        return self.w.on(x, "Add", what, first=self.s.mask_first)

    def _constant(self, x: Tensor, name: str, letters: str) -> str:
        return self.w.const(pack(self.data[name], along(x.layout, letters)).astype(self.dtype))

    def _given(self, x: Tensor, element: int, quantity: str) -> str:
        """The graph's input "mask", which has the axes of the logits."""
        layout = along(x.layout, VARIES[self.m.mask])
        if self.s.mask_trim or self.m.mask in ("additive2", "additive3", "boolean2"):
            layout = _trimmed(layout)
        self.slots.put("mask", (quantity, layout))
        return self.w.input("mask", layout, element).name

    # what is true or false

    def _boolean(self, x: Tensor) -> Tensor:
        name = self._given(x, BOOL, "visible" if self.s.mask_keep else "hidden")
        return self._apply(x, Tensor(name, ()))

    def _causal(self, x: Tensor) -> Tensor:
        if self.s.causal == "trilu":
            lowest = self.w.add("Expand", self.w.const(self.fill), self._square())
            above = self.w.add("Trilu", lowest, self.w.const(np.array(1)), upper=1)
            return self._plus(x, self._aligned(Tensor(above, ("s", "t")), x.layout).name)
        return self._apply(x, self._aligned(self._triangle(self.s.mask_keep), x.layout))

    def _tokens(self, x: Tensor) -> Tensor:
        tokens = self._aligned(self._token_input(x), x.layout)
        if self.s.mask_by == "product":
            kept = self._cast(tokens.name, self.element)
            hidden = self.w.add("Sub", self.w.const(np.ones((), self.dtype)), kept)
            return self._plus(x, self.w.add("Mul", hidden, self.w.const(self.fill)))
        return self._apply(x, self._token_condition(tokens, self.s.mask_keep))

    def _joined(self, x: Tensor) -> Tensor:
        """And of both conditions for a key to be seen."""
        causal = self._aligned(self._triangle(True), x.layout)
        tokens = self._token_condition(self._aligned(self._token_input(x), x.layout), True)
        both = self.w.add("And", causal.name, tokens.name)
        return self._apply(x, Tensor(both if self.s.mask_keep else self.w.add("Not", both), ()))

    def _token_input(self, x: Tensor) -> Tensor:
        batch = next(group for group in x.layout if "b" in group)
        self.slots.put("tokens", ("tokens", (batch, "t")))
        return self.w.input("tokens", (batch, "t"), INT64)

    def _token_condition(self, tokens: Tensor, keep: bool) -> Tensor:
        w = self.w
        if self.s.mask_by == "add":
            kept = w.add("Cast", tokens.name, to=BOOL)
            return Tensor(kept if keep else w.add("Not", kept), tokens.layout)
        hidden = w.add("Equal", tokens.name, w.const(np.array(0)))
        return Tensor(w.add("Not", hidden) if keep else hidden, tokens.layout)

    def _triangle(self, keep: bool) -> Tensor:
        """The causal mask, true for what is kept, or for what is hidden."""
        w, offset = self.w, self.m.keys - self.m.rows
        if self.s.causal == "constant":
            tri = np.tri(self.m.rows, self.m.keys, offset, dtype=bool)
            return Tensor(w.const(tri if keep else ~tri), ("s", "t"))
        if self.s.causal == "slice":
            name, layout = self._slices(), ("", "", "s", "t")
        elif self.s.causal == "tril":
            ones = w.add("ConstantOfShape", self._square(), value=_value(np.ones(1, np.float32)))
            name, layout = w.add("Cast", w.add("Trilu", ones, upper=0), to=BOOL), ("s", "t")
        else:
            rows, keys = self._range("s"), self._range("t")
            if self.m.past:
                rows = w.add("Add", rows, self._past())
            pair = w.unsqueeze(rows, (1,)), w.unsqueeze(keys, (0,))
            if keep and w.opset >= 12:
                return Tensor(w.add("GreaterOrEqual", *pair), ("s", "t"))
            hidden = w.add("Less", *pair)
            return Tensor(w.add("Not", hidden) if keep else hidden, ("s", "t"))
        return Tensor(name if keep else w.add("Not", name), layout)

    def _slices(self) -> str:
        """Rows and columns of a large triangle, as many as there are queries and keys."""
        w, zero = self.w, self.w.numbers(0)
        value = w.const(np.tri(_LONGEST, dtype=bool).reshape(1, 1, _LONGEST, _LONGEST))
        for axis, letter in ((2, "s"), (3, "t")):
            from_past = letter == "s" and self.m.past
            start = w.unsqueeze(self._past(), (0,)) if from_past else zero
            end = w.unsqueeze(w.length("t" if from_past else letter), (0,))
            value = w.add("Slice", value, start, end, w.numbers(axis), w.numbers(1))
        return value

    def _past(self) -> str:
        return self.w.add("Sub", self.w.length("t"), self.w.length("s"))

    def _square(self) -> str:
        return self.w.vector([self.w.length("s"), self.w.length("t")])

    def _range(self, letter: str) -> str:
        w = self.w
        return w.add("Range", w.const(np.array(0)), w.length(letter), w.const(np.array(1)))

    # from a condition to the logits

    def _apply(self, x: Tensor, condition: Tensor) -> Tensor:
        w, keep, name = self.w, self.s.mask_keep, condition.name
        fill = w.const(self.fill)
        if self.s.mask_by == "where":
            return w.tensor(w.add("Where", name, *((x.name, fill) if keep else (fill, x.name))), x.layout)
        if self.s.mask_by == "add":
            zero = w.const(np.zeros((), self.dtype))
            return self._plus(x, w.add("Where", name, *((zero, fill) if keep else (fill, zero))))
        marked = self._cast(name, self.element)
        if keep:
            marked = w.add("Sub", w.const(np.ones((), self.dtype)), marked)
        return self._plus(x, w.add("Mul", marked, fill))

    def _cast(self, name: str, to: int) -> str:
        return self.w.add("Cast", name, to=to)

    def _aligned(self, mask: Tensor, logits: Layout) -> Tensor:
        """A mask that a broadcast puts onto the right axes of the logits."""
        tail = logits[max(len(logits) - len(mask.layout), 0) :]
        fits = len(tail) == len(mask.layout) and all(a in ("", b) for a, b in zip(mask.layout, tail, strict=True))
        if fits:
            return mask
        target = along(logits, "".join(mask.layout))
        return self.w.go(mask, _trimmed(target) if self.s.mask_trim else target)


def _trimmed(layout: Layout) -> Layout:
    while layout and not layout[0]:
        layout = layout[1:]
    return layout


def _value(array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array)
