"""Values that never change: initializers, Constant nodes, and small arithmetic on those and on known dimensions.

Exporters compute scales and Reshape targets at run time (Shape → Gather → Cast → Sqrt → Div …). Folding them lazily,
one value at a time, tells recognition what they are without running the model. Arrays that come from shapes may be
partly known: object arrays of numbers, dimensions (str), Ratios of them, and None for what depends on an input.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from explorer.model.dims import multiply
from explorer.model.folds import FOLDS, MAX_ELEMENTS, Arrays, Fold, attribute, cast, tidy
from explorer.model.types import TensorType

__all__ = ["Folder", "attribute", "is_overridable"]

_ONNX_DOMAINS = ("", "ai.onnx")
# Every initializer had to be listed as an input before.
_IR_VERSION_OF_DEFAULTS = 4
# Whole numbers up to here are exact in float64, and in what they are cast to on the way to a scale.
_LARGEST_WHOLE = 1 << 24

# No array has more dimensions.
_LARGEST_SHAPE = 16

_FOLD_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError)


def is_overridable(value: ir.Value, ir_version: int) -> bool:
    """True if `value` is an initializer that is only the default of an input."""
    return value.is_graph_input() and ir_version >= _IR_VERSION_OF_DEFAULTS


class Folder:
    """Folds values of one model; results are remembered, and read-only.

    With `exact`, floats computed from whole numbers are kept in float64 and not rounded to the type that the model
    computes them in; what is computed from other floats is then not constant.
    """

    def __init__(
        self, type_of: Callable[[ir.Value], TensorType | None], ir_version: int, *, exact: bool = False
    ) -> None:
        self._type_of = type_of
        self._ir_version = ir_version
        self._exact = exact
        self._known: dict[int, np.ndarray | None] = {}

    def array(self, value: ir.Value, max_elements: int) -> np.ndarray | None:
        """The constant array of `value`, or None if it is not constant, not fully known, or too large."""
        tensor = self._tensor(value)
        if tensor is not None and not self._exact:
            return _read_only(tensor.numpy()) if tensor.size <= max_elements else None
        array = self.elements(value)
        return None if array is None or array.dtype == object or array.size > max_elements else array

    def partial(self, value: ir.Value) -> np.ndarray | None:
        """Like `array`, for a small value some of whose elements may be dimensions that are expressions (str)."""
        array = self.elements(value)
        if array is None or array.dtype != object:
            return array
        return array if all(isinstance(element, int | str) for element in array.flat) else None

    def elements(self, value: ir.Value) -> np.ndarray | None:
        """Like `partial`, with None for each element that is not known."""
        known = self._known
        if id(value) not in known:
            pending, opened = [value], set[int]()
            with np.errstate(all="ignore"):
                while pending:
                    item = pending[-1]
                    sources = [] if id(item) in known else self._step(item)
                    if sources and opened.isdisjoint(map(id, sources)):
                        opened.add(id(item))
                        pending += sources
                    else:  # folded, or it cannot be, or it waits for itself
                        known.setdefault(id(item), None)
                        pending.pop()
        return known[id(value)]

    def _step(self, value: ir.Value) -> list[ir.Value]:
        """Fold `value` if what it is made of is known; else, what has to be folded before."""
        node = value.producer()
        if node is None or node.domain not in _ONNX_DOMAINS or node.op_type == "Constant":
            tensor = self._tensor(value)
            self._known[id(value)] = None if tensor is None else self._leaf(tensor)
            return []
        op_type = node.op_type
        if op_type in ("Shape", "Size"):
            self._known[id(value)] = self._shape(node)
            return []
        if op_type == "If":
            return self._branch(node)
        sources = node.inputs
        if op_type == "CastLike":
            fold, sources = self._cast_like(node), sources[:1]
        else:
            fold = FOLDS.get(op_type)
        if fold is None:
            return []
        inputs: list[np.ndarray | None] = []
        missing: list[ir.Value] = []
        for item in sources:
            if item is None:
                inputs.append(None)
            elif id(item) not in self._known:
                missing.append(item)
            elif (array := self._known[id(item)]) is not None:
                inputs.append(array)
            elif op_type == "Concat" and (unknown := self._unknown(item)) is not None:
                inputs.append(unknown)
            else:
                return []
        if not missing:
            self._fold(fold, node, inputs)
        return missing

    def _cast_like(self, node: ir.Node) -> Fold | None:
        """A cast to the type of another value, whatever that holds."""
        like = node.inputs[1]
        known = None if like is None else self._type_of(like)
        if known is None or known.dtype is None:
            return None
        dtype = known.dtype.numpy()
        return lambda _, inputs: [cast(array, dtype) for array in inputs if array is not None]

    def _unknown(self, value: ir.Value) -> np.ndarray | None:
        """A small array of integers none of which is known: what is put together with it may be."""
        known = self._type_of(value)
        if known is None or known.shape is None or known.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            return None
        sizes = [dim for dim in known.shape if isinstance(dim, int) and dim <= _LARGEST_SHAPE]
        return np.full(sizes, None, dtype=object) if len(sizes) == len(known.shape) <= 1 else None

    def _fold(self, fold: Fold, node: ir.Node, inputs: Arrays) -> None:
        try:
            results = fold(node, inputs)
        except _FOLD_ERRORS:
            return  # arithmetic on what is not known, or an ill-typed graph: not a constant
        for output, result in zip(node.outputs, results, strict=False):
            array = tidy(result)
            if result.dtype == object and array.dtype != object:
                array = self._declared(output, array)
            if self._exact and _is_float(array):
                unrounded = inputs[0] if node.op_type in ("Cast", "CastLike") else array
                array = np.asarray(unrounded, dtype=np.float64)
            self._known[id(output)] = _read_only(array)

    def _declared(self, value: ir.Value, array: np.ndarray) -> np.ndarray:
        """Numbers that were dimensions, in the type that the model has them in."""
        known = self._type_of(value)
        return array if known is None or known.dtype is None else array.astype(known.dtype.numpy())

    def _branch(self, node: ir.Node) -> list[ir.Value]:
        """Take an If's outputs from the branch that it always takes; else, what has to be folded before."""
        condition = node.inputs[0]
        if condition is None or id(condition) not in self._known:
            return [] if condition is None else [condition]
        array = self._known[id(condition)]
        if array is None or array.size != 1 or array.dtype != np.bool_:
            return []
        taken = node.attributes["then_branch" if array.item() else "else_branch"].as_graph().outputs
        missing = [output for output in taken if id(output) not in self._known]
        if not missing:
            for output, inner in zip(node.outputs, taken, strict=False):
                self._known[id(output)] = self._known[id(inner)]
        return missing

    def _shape(self, node: ir.Node) -> np.ndarray | None:
        source = node.inputs[0]
        known = None if source is None else self._type_of(source)
        if known is None or known.shape is None:
            return None
        if node.op_type == "Size":
            return _read_only(tidy(np.array(multiply(*known.shape), dtype=object)))
        dims = known.shape[attribute(node, "start", 0) : attribute(node, "end", None)]
        return _read_only(tidy(np.array(dims, dtype=object)))

    def _leaf(self, tensor: ir.TensorProtocol) -> np.ndarray | None:
        if tensor.size > MAX_ELEMENTS:
            return None
        array = tensor.numpy()
        if self._exact and _is_float(array):
            array = array.astype(np.float64)
            if not np.all(np.isfinite(array) & (array == np.floor(array)) & (abs(array) <= _LARGEST_WHOLE)):
                return None
        return _read_only(array)

    def _tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The tensor that a value is bound to: an initializer that no input overrides, or a Constant's."""
        if value.const_value is not None:
            return None if is_overridable(value, self._ir_version) else value.const_value
        node = value.producer()
        if node is None or node.op_type != "Constant" or node.domain not in _ONNX_DOMAINS:
            return None
        for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            if (found := attribute(node, name, None)) is not None:
                if name == "value":
                    is_tensor = node.attributes[name].type == ir.AttributeType.TENSOR
                    tensor: ir.TensorProtocol | None = found if is_tensor else None
                    return tensor
                return ir.tensor(np.array(found, dtype=np.float32 if "float" in name else np.int64))
        return None


def _is_float(array: np.ndarray | None) -> bool:
    return (
        array is not None
        and array.dtype != object
        and not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_)
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view
