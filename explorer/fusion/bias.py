"""From the terms of a mask to the one input that an operator takes: numbers to add to the logits, or true for keep.

Masks that hide are joined to one condition, numbers to one sum, each at its own shape; only then comes what all rows
and keys need. Layers that share a mask share what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, MaskTerm
from explorer.attention.block import Layout, merged_size
from explorer.attention.mask import numbers
from explorer.fusion.emit import Emitter, Ruler, Shared
from explorer.fusion.relayout import feasible
from explorer.model import Model, TensorType, dtype_name

LOWEST = {"float16": -65472.0, "bfloat16": -1e29, "float32": -1e29}
"""The most negative number that is written: hidden logits get it, and whatever is lower is raised to it.

Kernels multiply by log₂e, which turns −3.4e38 into −∞ and a row that sees no key into NaN; Attention on CUDA takes what
is at or below −1e30, or −65504 in float16, for hidden and gives such rows 0 instead of the mean of V.
"""


def hides_later_keys(block: Block) -> bool:
    """True if the operators' attribute for it says the causal term: what it hides is hidden whatever else there is.

    Beside other terms that is so only if it hides with −∞ and none of them puts a finite number there: of a query whose
    earlier keys are all padding, say, a finite one leaves the mean over all keys, the attribute that over the earlier.
    """
    terms = block.mask.terms
    causal = [at for at, term in enumerate(terms) if term.kind == "causal"]
    if not causal or len(causal) == len(terms):
        return bool(causal)
    later = terms[causal[0] + 1 :]
    replaced = any(term.kind == "boolean" and term.fill != -np.inf for term in later)
    return not replaced and all(terms[at].fill == -np.inf for at in causal)


def other_terms(block: Block) -> tuple[MaskTerm, ...]:
    """The terms that no attribute says."""
    said = hides_later_keys(block)
    return tuple(term for term in block.mask.terms if not (said and term.kind == "causal"))


def expressible(block: Block, term: MaskTerm) -> bool:
    """True for a term that can be brought onto the axes of the logits."""
    for group, dim in zip(term.layout[len(term.layout) - len(term.shape) :], term.shape, strict=True):
        size = block.size(group)
        if isinstance(dim, int) and isinstance(size, int) and dim not in (1, size):
            return False
    before = block.term_layout(term)
    return feasible(before, _aligned(block, before), dict(block.sizes), read_off_query(block))


def read_off_query(block: Block) -> Layout:
    """Axes of the query whose sizes are read at run time where they are no numbers; those of the keys are not there."""
    return (block.batch, block.rows)


def tells_keys(block: Block) -> bool:
    """True if the mask has an entry for each key, or their number is fixed."""
    have = "".join(letter for term in other_terms(block) for letter in "".join(block.term_layout(term)))
    return all(letter in have or isinstance(block.size(letter), int) for letter in block.keys)


def _aligned(block: Block, before: Layout) -> Layout:
    """On the axes of the logits, each for all its entries or for one: no more axes in front than `before` has."""
    have = set("".join(before))
    groups = [group if set(group) & have else "" for group in (block.batch, block.heads, block.rows, block.keys)]
    while len(groups) > len(before) and not groups[0]:
        del groups[0]
    return tuple(groups)


@dataclass(frozen=True, slots=True)
class _Part:
    """A value, its axes (as far as it has them those of the logits) and its element type."""

    value: ir.Value
    layout: Layout
    dtype: ir.DataType


@dataclass(frozen=True, slots=True)
class MaskWriter:
    """Writes the mask of `block`, but for what an attribute says.

    `ruler` is the query as the operator reads it, `dtype` its element type; `booleans` says whether the operator takes
    true for keep, `four_axes` whether it insists on the axes of batch and heads where they are 1.
    """

    model: Model
    block: Block
    emit: Emitter
    value: Callable[[str], ir.Value]
    ruler: Ruler
    dtype: ir.DataType
    booleans: bool = False
    four_axes: bool = True

    def write(self, shared: Shared) -> ir.Value:
        """The mask with all rows and keys, as the operator takes it."""
        block = self.block
        groups = (block.batch, block.heads, block.rows, block.keys)
        sizes = tuple(block.size(group) for group in groups)
        key = (
            "mask", id(self.emit.graph), other_terms(block), block.nan_guard, groups, sizes,
            self.dtype, self.booleans, self.four_axes,
        )  # fmt: skip
        if key not in shared:
            whole = self._whole()
            batch, heads, *_ = ("",) * (4 - len(whole.layout)) + whole.layout
            final: Layout = (batch, heads, block.rows, block.keys)
            if not self.four_axes:
                final = final[-max(len(whole.layout), 2) :]
            shared[key] = self.emit.relayout(
                whole.value, whole.layout, final, dict(block.sizes), whole.dtype, self.ruler
            )  # fmt: skip
        return shared[key]

    def _whole(self) -> _Part:
        """All terms in one, at the smallest shape that holds them."""
        terms = other_terms(self.block)
        conditions = [term for term in terms if term.dtype == "bool"]
        empty = self._tells_empty_rows(conditions)
        if not conditions:
            return self._sum(terms)
        if len(conditions) == len(terms) and self.booleans and empty:
            return self._joined(conditions, keep=True)
        if len(conditions) == len(terms):
            # one number for all that is hidden, so low that the logits are lost in it, as they are in the source
            return self._where(conditions, -np.inf if empty else -np.finfo(np.float64).max, None)
        if empty:
            return self._where(conditions, -np.inf, self._sum([term for term in terms if term.dtype != "bool"]))
        return self._in_turn(terms)

    def _in_turn(self, terms: Sequence[MaskTerm]) -> _Part:
        """Numbers added and keys hidden with finite ones, one after the other: keys can be hidden more than once."""
        whole: _Part | None = None
        for term in terms:
            if term.dtype == "bool":
                whole = self._where([term], term.fill, whole)
            else:
                added = self._part(term, self._addend(term), self.dtype)
                whole = added if whole is None else self._folded("Add", [whole, added])
        assert whole is not None
        return self._bounded(whole)

    def _where(self, conditions: list[MaskTerm], fill: float, visible: _Part | None) -> _Part:
        """`visible` (None: 0) for keys that all conditions keep, `fill` or the lowest number for the others."""
        # Which is true, a key that is kept or one that is hidden?
        keep = any(term.keep_when for term in conditions)
        condition = self._joined(conditions, keep=keep)
        number = fill if fill == -np.inf else max(fill, LOWEST[dtype_name(self.dtype)])
        hidden = self.emit.constant(self._number(number, self.dtype), "hide")
        visible = visible or _Part(self.emit.constant(self._number(0.0, self.dtype), "keep"), (), self.dtype)
        layout = _union(condition.layout, visible.layout)
        branches = (visible.value, hidden) if keep else (hidden, visible.value)
        value = self.emit.node("Where", [condition.value, *branches], self._type(layout, self.dtype))
        return _Part(value, layout, self.dtype)

    def _tells_empty_rows(self, conditions: list[MaskTerm]) -> bool:
        """True if a row that sees no key gives 0 or NaN in the source, not the mean of V."""
        return bool(conditions) and (self.block.nan_guard or all(term.fill == -np.inf for term in conditions))

    def _joined(self, terms: list[MaskTerm], *, keep: bool) -> _Part:
        """One condition, true for the keys that all terms keep, or (not `keep`) for those that any of them hides."""
        boolean = ir.DataType.BOOL
        parts = []
        for term in terms:
            value = self.value(term.value)
            if term.keep_when != keep:
                value = self.emit.node("Not", [value], TensorType(boolean, term.shape))
            parts.append(self._part(term, value, boolean))
        return self._folded("And" if keep else "Or", parts)

    def _sum(self, terms: Sequence[MaskTerm]) -> _Part:
        """The sum of all numbers, in the element type of the query."""
        total = self._folded("Add", [self._part(term, self._addend(term), self.dtype) for term in terms])
        return total if len(terms) == 1 else self._bounded(total)

    def _bounded(self, total: _Part) -> _Part:
        """A sum whose numbers are not too low: the lowest of float16 add up to −∞."""
        if self.dtype != ir.DataType.FLOAT16 or self.block.nan_guard:
            return total
        return replace(total, value=self._raised(total.value, self._type(total.layout, self.dtype)))

    def _addend(self, term: MaskTerm) -> ir.Value:
        """The numbers of a term in the element type of the query, in their own shape."""
        value, own = self.value(term.value), _DTYPES[term.dtype]
        kind = TensorType(own, term.shape)
        if term.coefficient != 1.0:
            factor = self.emit.constant(self._number(term.coefficient, own), "factor")
            value = self.emit.node("Mul", [value, factor], kind)
        if self._may_be_too_low(term):
            value = self._raised(value, kind)
        if own == self.dtype:
            return value
        return self.emit.node("Cast", [value], TensorType(self.dtype, term.shape), {"to": self.dtype})

    def _may_be_too_low(self, term: MaskTerm) -> bool:
        """True unless all finite numbers of a term are in bounds, whatever the inputs are."""
        if term.dtype == "float16":
            return False
        value = self.model.value(term.value)
        array = self.model.constant(value)
        known = numbers(self.model, value) if array is None else array.ravel()
        if known is None:
            return True
        added = np.asarray(known, np.float64) * term.coefficient
        return bool(np.min(added, where=np.isfinite(added), initial=0.0) < LOWEST[dtype_name(self.dtype)])

    def _raised(self, value: ir.Value, type_: TensorType) -> ir.Value:
        """`value` with what is too low raised to the lowest number. Max has kernels for all types, Clip has not.

        Behind a guard −∞ stays: there a row of it gives 0, a row of finite numbers the mean of V.
        """
        assert type_.dtype is not None
        bound = self.emit.constant(self._number(LOWEST[dtype_name(self.dtype)], type_.dtype), "lowest")
        raised = self.emit.node("Max", [value, bound], type_)
        if not self.block.nan_guard:
            return raised
        finite = self.emit.constant(self._number(_FINITE[type_.dtype], type_.dtype), "lowest_finite")
        infinite = self.emit.node("Less", [value, finite], TensorType(ir.DataType.BOOL, type_.shape))
        return self.emit.node("Where", [infinite, value, raised], type_)

    def _part(self, term: MaskTerm, value: ir.Value, dtype: ir.DataType) -> _Part:
        before = self.block.term_layout(term)
        after = _aligned(self.block, before)
        value = self.emit.relayout(value, before, after, dict(self.block.sizes), dtype, self.ruler)
        return _Part(value, after, dtype)

    def _folded(self, op_type: str, parts: list[_Part]) -> _Part:
        whole = parts[0]
        for part in parts[1:]:
            layout = _union(whole.layout, part.layout)
            value = self.emit.node(op_type, [whole.value, part.value], self._type(layout, whole.dtype))
            whole = _Part(value, layout, whole.dtype)
        return whole

    def _type(self, layout: Layout, dtype: ir.DataType) -> TensorType:
        sizes = dict(self.block.sizes)
        return TensorType(dtype, tuple(merged_size(group, sizes) for group in layout))

    @staticmethod
    def _number(number: float, dtype: ir.DataType) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.array(number, dtype=dtype.numpy())


_FINITE = {
    ir.DataType.FLOAT16: -65504.0, ir.DataType.BFLOAT16: -3.3895313892515355e38,
    ir.DataType.FLOAT: -3.4028234663852886e38, ir.DataType.DOUBLE: -1.7976931348623157e308,
}  # fmt: skip
_DTYPES = {
    "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
}  # fmt: skip


def _union(one: Layout, other: Layout) -> Layout:
    """The layout of two values that are broadcast against each other."""
    length = max(len(one), len(other))
    pairs = zip(("",) * (length - len(one)) + one, ("",) * (length - len(other)) + other, strict=True)
    return tuple(a or b for a, b in pairs)
