"""How each operator folds arrays of numbers, and of what is computed from dimensions (see `element_folds`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.model.element_folds import ELEMENTWISE, add, maximum, minimum, multiply
from explorer.model.ratios import Ratio, truncate

# What is folded on the way; weights never are.
MAX_ELEMENTS = 1 << 16

Arrays = Sequence["np.ndarray | None"]
Fold = Callable[[ir.Node, Arrays], Sequence[np.ndarray]]
"""Folded outputs of a node. Any error of arithmetic or of types means: not constant."""


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default` if it is not there."""
    attributes = node.attributes
    return attributes[name].value if name in attributes else default


def tidy(array: np.ndarray) -> np.ndarray:
    """An object array that holds only integers, only truth values or only floats, as an array of those."""
    if array.dtype != object:
        return array
    kinds = {type(element) for element in array.ravel().tolist()}
    if kinds == {bool}:
        return array.astype(np.bool_)
    if kinds <= {int}:
        return array.astype(np.int64)
    if kinds == {Ratio} and all(isinstance(element.numerator, int) for element in array.flat):
        numbers = [element.numerator / element.denominator for element in array.flat]
        return np.array(numbers, np.float32).reshape(array.shape)
    return array


def _given(inputs: Arrays) -> list[np.ndarray]:
    return [array for array in inputs if array is not None]


def _numbers(node: ir.Node, name: str, inputs: Arrays, position: int = 1) -> list[int] | None:
    """A list of integers: an attribute in older operator sets, an input in newer ones."""
    found = attribute(node, name, None)
    if found is None and position < len(inputs) and (array := inputs[position]) is not None:
        found = array
    return None if found is None else [int(number) for number in found]


def cast(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """`x` in another type; TypeError if that may round what dimensions are part of."""
    if x.dtype != object:
        return x.astype(dtype)
    if dtype == np.bool_:
        return ELEMENTWISE["Not"](ELEMENTWISE["Equal"](x, np.array(0)))
    if np.issubdtype(dtype, np.integer):
        elements = [truncate(element) if isinstance(element, Ratio) else element for element in x.flat]
    elif dtype in (np.float32, np.float64):
        elements = [Ratio(element) if isinstance(element, int | str) else element for element in x.flat]
    else:
        raise TypeError("sizes would be rounded")
    result = np.empty(len(elements), dtype=object)
    result[:] = elements
    return result.reshape(x.shape)


def _cast_to(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    (x,) = _given(inputs)
    return [cast(x, ir.DataType(attribute(node, "to", 1)).numpy())]


def _sized(dims: Sequence[int]) -> list[int]:
    """`dims`; ValueError if an array of that shape is too large to fold."""
    size = 1
    for dim in dims:
        size *= int(dim)
    if not 0 <= size <= MAX_ELEMENTS:
        raise ValueError("too large to fold")
    return [int(dim) for dim in dims]


def _gather(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data, indices = _given(inputs)
    axis = attribute(node, "axis", 0)
    _sized([*data.shape[:axis], *indices.shape, *data.shape[axis:][1:]])
    return [np.asarray(np.take(data, indices.astype(np.int64), axis=axis), dtype=data.dtype)]


def _gather_elements(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data, indices = _given(inputs)
    return [np.take_along_axis(data, indices.astype(np.int64), axis=attribute(node, "axis", 0))]


def _gather_nd(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data, indices = _given(inputs)
    if attribute(node, "batch_dims", 0):
        raise ValueError("batches are not folded")
    _sized([*indices.shape[:-1], *data.shape[indices.shape[-1] :]])
    return [np.asarray(data[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))])]


def _unsqueeze(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    return [np.expand_dims(_given(inputs)[0], tuple(_numbers(node, "axes", inputs) or ()))]


def _squeeze(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    axes = _numbers(node, "axes", inputs)
    return [np.squeeze(_given(inputs)[0], None if axes is None else tuple(axes))]


def _concat(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    arrays = _given(inputs)
    _sized([sum(array.size for array in arrays)])
    return [np.concatenate(arrays, axis=attribute(node, "axis", 0))]


def _slice(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data = _given(inputs)[0]
    starts, ends = _numbers(node, "starts", inputs, 1), _numbers(node, "ends", inputs, 2)
    if starts is None or ends is None:
        raise ValueError("no bounds")
    axes = _numbers(node, "axes", inputs, 3) or range(len(starts))
    steps = _numbers(node, "steps", inputs, 4) or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return [data[tuple(index)]]


def _split(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data, axis, parts = _given(inputs)[0], attribute(node, "axis", 0), len(node.outputs)
    sizes = _numbers(node, "split", inputs)
    if sizes is None:
        part = -(-data.shape[axis] // parts)
        sizes = [part] * parts
    return np.split(data, np.cumsum(sizes)[:-1], axis=axis)


def _reshape(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    x, shape = _given(inputs)
    dims = [x.shape[i] if d == 0 and not attribute(node, "allowzero", 0) else int(d) for i, d in enumerate(shape)]
    return [x.reshape(dims)]


def _flatten(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    (x,) = _given(inputs)
    axis = attribute(node, "axis", 1)
    return [x.reshape(int(np.prod(x.shape[: axis if axis >= 0 else axis + x.ndim], dtype=np.int64)), -1)]


def _transpose(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    return [np.transpose(_given(inputs)[0], attribute(node, "perm", None))]


def _constant_of_shape(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    (shape,) = _given(inputs)
    fill = attribute(node, "value", None)
    value = np.zeros(1, np.float32) if fill is None else fill.numpy()
    return [np.full(_sized(shape.tolist()), value.reshape(-1)[0], dtype=value.dtype)]


def _expand(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    x, shape = _given(inputs)
    return [np.broadcast_to(x, _sized(np.broadcast_shapes(x.shape, tuple(_sized(shape.tolist())))))]


def _tile(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    x, repeats = _given(inputs)
    _sized([size * count for size, count in zip(x.shape, repeats.tolist(), strict=True)])
    return [np.tile(x, repeats.tolist())]


def _range(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    start, limit, step = _given(inputs)
    numbers = [array.item() for array in (start, limit, step)]
    _sized([max(0, int(-((numbers[0] - numbers[1]) // numbers[2])))])
    return [np.arange(*numbers, dtype=start.dtype)]


def _one_hot(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    indices, depth, values = _given(inputs)
    (size,) = _sized([int(depth.item())])
    _sized([size, *indices.shape])
    index = np.where(indices < 0, indices + size, indices).astype(np.int64)
    hot = np.expand_dims(index, -1) == np.arange(size)
    return [np.moveaxis(np.where(hot, values[1], values[0]), -1, attribute(node, "axis", -1))]


def _scatter_elements(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data, indices, updates = _given(inputs)
    result = data.astype(np.result_type(data, updates))
    if attribute(node, "reduction", "none") != "none":
        raise ValueError("not folded")
    np.put_along_axis(result, indices.astype(np.int64), updates, axis=attribute(node, "axis", 0))
    return [result]


def _scatter_nd(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    data, indices, updates = _given(inputs)
    result = data.astype(np.result_type(data, updates))
    if attribute(node, "reduction", "none") != "none":
        raise ValueError("not folded")
    result[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))] = updates
    return [result]


def _trilu(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    x, *k = _given(inputs)
    take = np.triu if attribute(node, "upper", 1) else np.tril
    return [take(x, int(k[0].item()) if k else 0)]


def _cumulative(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    x, axis = _given(inputs)
    if attribute(node, "exclusive", 0) or attribute(node, "reverse", 0) or x.dtype == object:
        raise ValueError("not folded")
    return [np.cumsum(x, axis=int(axis.item()), dtype=x.dtype)]


def _reduce(
    step: Callable[[Any, Any], Any], numeric: Callable[..., Any], node: ir.Node, inputs: Arrays
) -> list[np.ndarray]:
    x = _given(inputs)[0]
    axes = _numbers(node, "axes", inputs)
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return [x]
    where = tuple(range(x.ndim)) if not axes else tuple(axis % x.ndim for axis in axes)
    keep = bool(attribute(node, "keepdims", 1))
    if x.dtype != object:
        return [np.asarray(numeric(x, axis=where, keepdims=keep)).astype(x.dtype)]
    rest = [axis for axis in range(x.ndim) if axis not in where]
    rows = np.transpose(x, [*rest, *where]).reshape(*(x.shape[axis] for axis in rest), -1)
    result = np.empty(rows.shape[:-1], dtype=object)
    for at in np.ndindex(result.shape):
        result[at] = reduce(step, rows[at])
    return [np.expand_dims(result, where) if keep else result]


def _elementwise(node: ir.Node, inputs: Arrays) -> list[np.ndarray]:
    function = ELEMENTWISE[node.op_type]
    if node.op_type == "Mod" and attribute(node, "fmod", 0):
        raise ValueError("the sign of another convention")
    arrays = _given(inputs)
    _sized(np.broadcast_shapes(*(array.shape for array in arrays)))
    return [function(*arrays)]


FOLDS: dict[str, Fold] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Identity": lambda node, inputs: _given(inputs),
    "Cast": _cast_to,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "CumSum": _cumulative,
    "ReduceProd": partial(_reduce, multiply, np.prod),
    "ReduceSum": partial(_reduce, add, np.sum),
    "ReduceMax": partial(_reduce, maximum, np.max),
    "ReduceMin": partial(_reduce, minimum, np.min),
}
