"""From the terms of a mask to one attention_bias: 4-D [1|B, 1|N, S, T], in the element type of the query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from explorer.attention import MaskTerm
from explorer.fusion.emit import Emitter
from explorer.model import Dim, TensorType, dtype_name

# The most negative number of a type: a mask that was added in a wider type is clamped to it before it is cast.
_LOWEST = {"float16": -65504.0, "bfloat16": -3.3895313892515355e38, "float32": -3.4028234663852886e38}

BiasCache = dict[tuple[object, ...], ir.Value]
"""Biases already written, by what they were made of: layers that share a mask share its bias."""


def build_bias(
    emit: Emitter,
    terms: tuple[MaskTerm, ...],
    value: Callable[[str], ir.Value],
    query: ir.Value,
    query_shape: tuple[Dim, Dim, Dim],
    dtype: ir.DataType,
    cache: BiasCache,
) -> ir.Value:
    """Write the nodes that turn `terms` into one bias for a query of layout BSD and shape `query_shape`."""
    rows = query_shape[1]
    key = (terms, dtype, rows if rows is not None else query)
    if key not in cache:
        parts = [_rank_4(emit, _addend(emit, term, value(term.value), dtype), term.shape, dtype) for term in terms]
        bias, shape = parts[0]
        for other, other_shape in parts[1:]:
            shape = tuple(b if a == 1 else a for a, b in zip(shape, other_shape, strict=True))
            bias = emit.node("Add", [bias, other], TensorType(dtype, shape))
        if len(parts) > 1 and dtype == ir.DataType.FLOAT16:
            bias = _clamp(emit, bias, TensorType(dtype, shape), "float16")  # two fp16 minima add up to −inf
        if shape[2] == 1 and rows != 1:
            bias = _expand_rows(emit, bias, shape, query, rows, dtype)
        cache[key] = bias
    return cache[key]


def _addend(emit: Emitter, term: MaskTerm, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The term as numbers to add, in `dtype`, in its own shape."""
    kind = TensorType(dtype, term.shape)
    name = dtype_name(dtype)
    if term.kind != "additive":
        hide = max(term.fill, _LOWEST[name]) if np.isfinite(term.fill) else term.fill
        keep = emit.constant(_scalar(0.0, dtype), "keep")
        fill = emit.constant(_scalar(hide, dtype), "hide")
        return emit.node("Where", [value, *((keep, fill) if term.keep_when else (fill, keep))], kind)
    own = ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE"}.get(term.dtype, term.dtype.upper())]
    if term.coefficient != 1.0:
        factor = emit.constant(_scalar(term.coefficient, own), "factor")
        value = emit.node("Mul", [value, factor], TensorType(own, term.shape))
    if own == dtype:
        return value
    if _LOWEST.get(term.dtype, -np.inf) < _LOWEST[name]:
        value = _clamp(emit, value, TensorType(own, term.shape), name)
    return emit.node("Cast", [value], kind, {"to": dtype})


def _clamp(emit: Emitter, value: ir.Value, type_: TensorType, name: str) -> ir.Value:
    """Bound `value` by what the type called `name` can hold."""
    assert type_.dtype is not None
    low, high = (emit.constant(_scalar(sign * _LOWEST[name], type_.dtype), "bound") for sign in (1, -1))
    return emit.node("Clip", [value, low, high], type_)


def _rank_4(
    emit: Emitter, value: ir.Value, shape: tuple[Dim, ...], dtype: ir.DataType
) -> tuple[ir.Value, tuple[Dim, ...]]:
    missing = list(range(4 - len(shape)))
    if not missing:
        return value, shape
    full = (*(1 for _ in missing), *shape)
    if emit.opset < 13:
        return emit.node("Unsqueeze", [value], TensorType(dtype, full), {"axes": missing}), full
    axes = emit.constant(np.array(missing, np.int64), "axes")
    return emit.node("Unsqueeze", [value, axes], TensorType(dtype, full)), full


def _expand_rows(
    emit: Emitter, bias: ir.Value, shape: tuple[Dim, ...], query: ir.Value, rows: Dim, dtype: ir.DataType
) -> ir.Value:
    """Repeat one row for every query position: the operator does not broadcast rows."""
    if isinstance(rows, int):
        target = emit.constant(np.array([1, 1, rows, 1], np.int64), "rows")
    else:
        int64 = ir.DataType.INT64
        one = emit.constant(np.array([1], np.int64), "one")
        two = emit.constant(np.array([2], np.int64), "two")
        dims = emit.node("Shape", [query], TensorType(int64, (3,)))
        length = emit.node("Slice", [dims, one, two], TensorType(int64, (1,)))
        target = emit.node("Concat", [one, one, length, one], TensorType(int64, (4,)), {"axis": 0})
    return emit.node("Expand", [bias, target], TensorType(dtype, (*shape[:2], rows, shape[3])))


def _scalar(number: float, dtype: ir.DataType) -> np.ndarray:
    return np.array(number, dtype=dtype.numpy())
