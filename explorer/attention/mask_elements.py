"""One element of a mask as an expression of its position: what a tensor holds at (…, query i, key j).

`Elements` follows a value upstream, one rule per operator. A rule says at which position of its inputs the element is
found (`mask_positions`) or what is computed of their elements (`mask_cases`). What no rule knows is an `Unknown` of its
own, so every claim made of the result holds whatever that element is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from explorer.attention.mask_cases import (
    Cases,
    Comparison,
    Element,
    Index,
    Leaf,
    add,
    as_cases,
    as_condition,
    choose,
    compare,
    constant_element,
    divide,
    equal,
    held,
    less,
    less_or_equal,
    multiply,
    number,
    quotient,
    subtract,
)
from explorer.attention.mask_positions import broadcast, is_move, some_position, source_position
from explorer.attention.mask_predicates import (
    FALSE,
    TRUE,
    Affine,
    Condition,
    Sizes,
    TooComplex,
    Unknown,
    at_least_zero,
    atom,
)
from explorer.model import Model
from explorer.model.constants import attribute

# A triangle of 4,096 positions is read; a mask that takes more nodes than this is no plain one.
_MAX_ELEMENTS = 1 << 24
_MAX_STEPS = 300
_MAX_DEPTH = 80


# Where these are, it is no longer the mask that is computed but what it is computed from
_ACTIVATIONS = (
    *("Attention", "Conv", "Einsum", "GRU", "Gemm", "GroupNormalization", "LSTM", "LayerNormalization", "MatMul"),
    *("RMSNormalization", "SimplifiedLayerNormalization", "Softmax"),
)
_MAX_NODES = 400


def is_computed(value: ir.Value) -> bool:
    """True if `value` depends on activations, other than by their shapes, or on too many nodes to be a mask."""
    pending, seen = [value], {id(value)}
    while pending and len(seen) <= _MAX_NODES:
        node = pending.pop().producer()
        if node is None or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in _ACTIVATIONS:
            return True
        sources = [source for source in node.inputs if source is not None and id(source) not in seen]
        seen.update(id(source) for source in sources)
        pending.extend(sources)
    return bool(pending)


class Elements:
    """Elements of the values of one model, at positions made of index variables of these `sizes`."""

    def __init__(self, model: Model, sizes: Sizes) -> None:
        self.model = model
        self.sizes = sizes
        self._known: dict[tuple[int, Index], Element] = {}
        self._depth = 0

    def at(self, value: ir.Value, index: Index) -> Element:
        """The element of `value` at `index`, which has one entry per axis and 0 on axes of length 1."""
        key = (id(value), index)
        if key not in self._known:
            self._depth += 1
            element = None
            if self._depth <= _MAX_DEPTH and len(self._known) < _MAX_STEPS:
                try:
                    element = self._held(value, index, self._follow(value, index))
                except (TooComplex, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    element = None  # too much, or an ill-typed graph
            self._depth -= 1
            self._known[key] = self._unknown(value, index) if element is None else element
        return self._known[key]

    def _unknown(self, value: ir.Value, index: Index) -> Element:
        unknown = Unknown(value.name or "", index)
        return atom(unknown) if self.model.dtype(value) == ir.DataType.BOOL else _sole(unknown)

    def _held(self, value: ir.Value, index: Index, element: Element | None) -> Element | None:
        """The element as a tensor of this type holds it."""
        dtype = self.model.dtype(value)
        if element is None or isinstance(element, Condition) is not (dtype == ir.DataType.BOOL):
            return None
        if isinstance(element, Condition):
            return element
        unknown = Unknown(value.name or "", index)
        return element.map(lambda leaf: unknown if (kept := held(leaf, dtype)) is None else kept)

    def _follow(self, value: ir.Value, index: Index) -> Element | None:
        array = self.model.constant(value, _MAX_ELEMENTS)
        if array is not None:
            return constant_element(array, index, self.sizes) if array.ndim == len(index) else None
        if (size := self._size(value, index)) is not None:
            return size
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or value is not node.outputs[0]:
            return None
        if is_move(node):
            position = source_position(self.model, node, index, self.sizes)
            source = node.inputs[0]
            return None if position is None or source is None else self.at(source, position)
        if (rule := _RULES.get(node.op_type)) is not None:
            return rule(self, node, index)
        operands = self._operands(node, index)
        return None if operands is None else self._computed(node, operands, Unknown(value.name or "", index))

    def _size(self, value: ir.Value, index: Index) -> Element | None:
        """An element of a small tensor made of sizes."""
        array = self.model.partial(value)
        at = [item.number for item in index if item.number is not None]
        if array is None or not len(at) == len(index) == array.ndim:
            return None
        item: object = array.item(*at)
        return _sole(Affine(offset=item)) if isinstance(item, int | str) else None

    def _operands(self, node: ir.Node, index: Index) -> list[Element] | None:
        """The elements of all inputs of an elementwise operator that make the one at `index`."""
        after = self.model.shape(node.outputs[0])
        operands: list[Element] = []
        for value in node.inputs:
            before = None if value is None else self.model.shape(value)
            position = None if before is None or after is None else broadcast(before, after, index)
            if value is None or position is None:
                return None
            operands.append(self.at(value, position))
        return operands

    def _computed(self, node: ir.Node, operands: list[Element], unknown: Unknown) -> Element | None:
        """What an elementwise operator makes of these elements; a case that is not known is `unknown`."""
        op = node.op_type
        if op == "Where":
            condition, *branches = operands
            return choose(condition, *branches) if isinstance(condition, Condition) else None
        if op in _LOGIC and all(isinstance(operand, Condition) for operand in operands):
            return _LOGIC[op](*operands)
        numbers = [as_cases(operand) for operand in operands]
        if op in _COMPARISONS:
            comparison, swapped = _COMPARISONS[op]
            left, right = reversed(numbers) if swapped else numbers
            return compare(comparison, left, right, self.sizes)
        if op in ("Div", "Mod") and all(_is_integer(self.model, value) for value in node.inputs):
            part = int(op == "Mod")
            return _combined(
                lambda a, b: (both := quotient(a, b, self.sizes)) and both[part], numbers[0], numbers[1], unknown
            )
        if op in _ARITHMETIC:
            result = numbers[0] if len(numbers) > 1 else Cases.of(((Affine(), TRUE),))
            for other in numbers[1:] or numbers:
                result = _combined(_ARITHMETIC[op], result, other, unknown)
            return result
        return None

    def _cast(self, node: ir.Node, index: Index) -> Element | None:
        source = node.inputs[0]
        if source is None:
            return None
        element, dtype = self.at(source, index), self.model.dtype(node.outputs[0])
        if dtype == ir.DataType.BOOL:
            return as_condition(element, self.sizes)
        numbers = as_cases(element)
        return numbers.map(_truncated) if dtype is not None and dtype.is_integer() else numbers

    def _range(self, node: ir.Node, index: Index) -> Element | None:
        """start + step·i."""
        start, step = self._single(node.inputs[0], ()), self._single(node.inputs[2], ())
        return None if start is None or step is None or step.terms else _sole(start + index[0].times(step.offset))

    def _constant_of_shape(self, node: ir.Node, index: Index) -> Element | None:
        fill = attribute(node, "value", None)
        array = np.zeros(1, np.float32) if fill is None else fill.numpy()
        return constant_element(array, (Affine(),), self.sizes)

    def _concat(self, node: ir.Node, index: Index) -> Element | None:
        axis = attribute(node, "axis", 0) % len(index)
        element: Element | None = None
        end = Affine()
        parts: list[tuple[ir.Value, Affine, Affine]] = []
        for value in node.inputs:
            shape = None if value is None else self.model.shape(value)
            if value is None or shape is None:
                return None
            start, end = end, end + Affine(offset=shape[axis])
            parts.append((value, start, end))
        for value, start, end in reversed(parts):
            inside = at_least_zero(end - index[axis] + Affine(offset=-1), self.sizes)
            if element is None or inside != FALSE:
                own = self.at(value, (*index[:axis], index[axis] - start, *index[axis + 1 :]))
                element = own if element is None else choose(inside, own, element)
        return element

    def _gather(self, node: ir.Node, index: Index) -> Element | None:
        data, indices = node.inputs[:2]
        shape = None if indices is None else self.model.shape(indices)
        data_shape = None if data is None else self.model.shape(data)
        if data is None or indices is None or shape is None or data_shape is None:
            return None
        axis = attribute(node, "axis", 0) % len(data_shape)
        at = self._position(indices, index[axis : axis + len(shape)])
        return self.at(data, (*index[:axis], at, *index[axis + len(shape) :]))

    def _gather_nd(self, node: ir.Node, index: Index) -> Element | None:
        data, indices = node.inputs[:2]
        shape = None if indices is None else self.model.shape(indices)
        if (
            data is None
            or indices is None
            or not shape
            or isinstance(shape[-1], str)
            or attribute(node, "batch_dims", 0)
        ):
            return None
        row, rest = index[: len(shape) - 1], index[len(shape) - 1 :]
        at = [self._position(indices, (*row, Affine(offset=axis))) for axis in range(shape[-1])]
        return self.at(data, (*at, *rest))

    def _position(self, indices: ir.Value, index: Index) -> Affine:
        """The position that an element of `indices` means, or a variable that stands for it if that is unknown."""
        at = self._single(indices, index)
        # A negative position would count from the end
        return at if at is not None and at.is_natural(self.sizes) else some_position(indices, index)

    def _pad(self, node: ir.Node, index: Index) -> Element | None:
        """The source where the position lies in it, a number around it."""
        source, amounts, around_by, axes = [*node.inputs, None, None][:4]
        pads, shape = self.model.partial(amounts), None if source is None else self.model.shape(source)
        constant = axes is None and attribute(node, "mode", "constant") == "constant"
        if source is None or shape is None or pads is None or not constant or len(pads) != 2 * len(index):
            return None
        inside, position = TRUE, []
        for at, dim, begin in zip(index, shape, pads.tolist(), strict=False):
            place = at - Affine(offset=begin)
            after = Affine(offset=dim) - place + Affine(offset=-1)
            inside = inside & at_least_zero(place, self.sizes) & at_least_zero(after, self.sizes)
            position.append(place)
        around: Element = FALSE if self.model.dtype(source) == ir.DataType.BOOL else _sole(Affine())
        if around_by is not None:
            around = self.at(around_by, ())
        return choose(inside, self.at(source, tuple(position)), around)

    def _trilu(self, node: ir.Node, index: Index) -> Element | None:
        """One side of a diagonal of the last two axes; the other side is 0."""
        diagonal = Affine()
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            given = self._single(node.inputs[1], ())
            if given is None:
                return None
            diagonal = given
        source = node.inputs[0]
        if source is None or len(index) < 2:
            return None
        ahead = index[-1] - index[-2] - diagonal
        kept = at_least_zero(ahead if attribute(node, "upper", 1) else ahead.times(-1), self.sizes)
        zero: Element = FALSE if self.model.dtype(source) == ir.DataType.BOOL else _sole(Affine())
        return choose(kept, self.at(source, index), zero)

    def _eye(self, node: ir.Node, index: Index) -> Element | None:
        ahead = index[1] - index[0] - Affine(offset=attribute(node, "k", 0))
        on = at_least_zero(ahead, self.sizes) & at_least_zero(ahead.times(-1), self.sizes)
        return on if self.model.dtype(node.outputs[0]) == ir.DataType.BOOL else as_cases(on)

    def _cumulated(self, node: ir.Node, index: Index) -> Element | None:
        """The running sum of one number: c, 2·c, 3·c …"""
        axis = self._single(node.inputs[1], ()) or self._single(node.inputs[1], (Affine(),))
        source = node.inputs[0]
        if source is None or axis is None or axis.number is None or attribute(node, "reverse", 0):
            return None
        each = self._single(source, index)
        if each is None or each.number is None:
            return None
        count = index[axis.number] + Affine(offset=0 if attribute(node, "exclusive", 0) else 1)
        return _sole(count.times(each.number))

    def _single(self, value: ir.Value | None, index: Index) -> Affine | None:
        """The integer form that an element always is, or None."""
        if value is None or len(self.model.shape(value) or ()) != len(index):
            return None
        element = self.at(value, index)
        leaf = element.only if isinstance(element, Cases) else None
        return leaf if isinstance(leaf, Affine) else None


def _is_integer(model: Model, value: ir.Value | None) -> bool:
    dtype = None if value is None else model.dtype(value)
    return dtype is not None and dtype.is_integer()


def _sole(leaf: Leaf) -> Cases:
    return Cases.of(((leaf, TRUE),))


def _truncated(leaf: Leaf) -> Leaf:
    return number(math.trunc(leaf)) if isinstance(leaf, float) and math.isfinite(leaf) else leaf


def _combined(function: _Arithmetic, left: Cases, right: Cases, unknown: Unknown) -> Cases:
    parts: list[tuple[Leaf, Condition]] = []
    for a, where_a in left.parts:
        for b, where_b in right.parts:
            leaf = function(a, b)
            parts.append((unknown if leaf is None else leaf, where_a & where_b))
    return Cases.of(parts)


_Arithmetic = Callable[[Leaf, Leaf], "Leaf | None"]
_Rule = Callable[[Elements, ir.Node, Index], "Element | None"]

_LOGIC: dict[str, Callable[..., Condition]] = {
    "And": lambda a, b: a & b,
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseNot": lambda a: ~a,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
    "Not": lambda a: ~a,
    "Or": lambda a, b: a | b,
    "Xor": lambda a, b: a ^ b,
}
# The comparison, and whether it is made of the operands in the other order
_COMPARISONS: dict[str, tuple[Comparison, bool]] = {
    "Equal": (equal, False),
    "Greater": (less, True),
    "GreaterOrEqual": (less_or_equal, True),
    "Less": (less, False),
    "LessOrEqual": (less_or_equal, False),
}
# Neg is 0 − x
_ARITHMETIC: dict[str, _Arithmetic] = {
    "Add": add,
    "Div": divide,
    "Mul": multiply,
    "Neg": subtract,
    "Sub": subtract,
    "Sum": add,
}
_RULES: dict[str, _Rule] = {
    "Cast": Elements._cast,
    "CastLike": Elements._cast,
    "Concat": Elements._concat,
    "ConstantOfShape": Elements._constant_of_shape,
    "CumSum": Elements._cumulated,
    "EyeLike": Elements._eye,
    "Gather": Elements._gather,
    "GatherND": Elements._gather_nd,
    "Pad": Elements._pad,
    "Range": Elements._range,
    "Trilu": Elements._trilu,
}
