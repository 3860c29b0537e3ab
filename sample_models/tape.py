"""A tape that writes ONNX graphs with the spelling and the names of PyTorch's TorchScript exporter.

Builders compute with `Value`s as if with arrays, and every operation appends its node:

    with tape.scope("attn"):
        logits = q @ k          # node "/attn/MatMul", output "/attn/MatMul_output_0"

A value knows its shape while the graph is written, so value_info comes from the builder and no version of ONNX's shape
inference decides the bytes of a sample. A dimension is a number or the name of a dynamic one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

PRODUCER = "onnx-attention-explorer"
OPSET = 17
IR_VERSION = 8

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
    tape: Tape
    name: str
    dtype: np.dtype
    shape: Shape

    def __add__(self, other: Value | float) -> Value:
        return self.tape.op("Add", self, other)

    def __sub__(self, other: Value) -> Value:
        return self.tape.op("Sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return self.tape.op("Sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return self.tape.op("Mul", self, other)

    def __truediv__(self, other: float) -> Value:
        return self.tape.op("Div", self, other)

    def __neg__(self) -> Value:
        return self.tape.op("Neg", self)

    def __matmul__(self, other: Value) -> Value:
        batch = broadcast(self.shape[:-2], other.shape[:-2])
        return self.tape.op("MatMul", self, other, shape=(*batch, self.shape[-2], other.shape[-1]))

    def cast(self, dtype: DTypeLike) -> Value:
        return self.tape.op("Cast", self, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def softmax(self) -> Value:
        return self.tape.op("Softmax", self, axis=-1)

    def transpose(self, *perm: int) -> Value:
        return self.tape.op("Transpose", self, shape=tuple(self.shape[axis] for axis in perm), perm=perm)

    def reshape(self, *shape: int | str) -> Value:
        """One dynamic dimension becomes -1; several stay where they are, each copied by a 0."""
        copied = -1 if sum(isinstance(dim, str) for dim in shape) == 1 else 0
        target = np.array([copied if isinstance(dim, str) else dim for dim in shape], np.int64)
        return self.tape.op("Reshape", self, self.tape.constant(target), shape=shape)

    def unsqueeze(self, axis: int) -> Value:
        shape = (*self.shape[:axis], 1, *self.shape[axis:])
        return self.tape.op("Unsqueeze", self, self.tape.constant(np.array([axis])), shape=shape)

    def split(self, parts: int, axis: int) -> tuple[Value, ...]:
        """Equal parts along `axis`, counted from the front."""
        size = self.shape[axis] // parts
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        sizes = self.tape.constant(np.full(parts, size, np.int64))
        return self.tape.node("Split", self, sizes, outputs=parts, shape=shape, axis=axis)

    def length(self, axis: int) -> Value:
        """The size of `axis` as a tensor [1], read from the Shape at run time."""
        sizes = self.tape.op("Shape", self, dtype=np.int64, shape=(len(self.shape),))
        return self.tape.op("Gather", sizes, self.tape.constant(np.array(axis)), shape=(), axis=0).unsqueeze(0)

    def first(self, length: Value, axis: int, dim: str) -> Value:
        """The leading `length` entries along `axis`; `dim` names how many that is."""
        start, axes = (self.tape.constant(np.array([number])) for number in (0, axis))
        shape = (*self.shape[:axis], dim, *self.shape[axis + 1 :])
        return self.tape.op("Slice", self, start, length, axes, shape=shape)


class Tape:
    """One graph in the making; weights and Python numbers take its `dtype`."""

    def __init__(self, dtype: DTypeLike, seed: int, opset: int = OPSET) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.model = helper.make_model(
            helper.make_graph([], "main_graph", [], []),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
        )
        self.graph = self.model.graph
        self._random = np.random.default_rng(seed)
        self._scopes: list[str] = []
        self._count: Counter[str] = Counter()
        self._values: list[Value] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def input(self, name: str, shape: Shape, dtype: DTypeLike | None = None) -> Value:
        value = Value(self, name, np.dtype(dtype or self.dtype), shape)
        self.graph.input.append(info(value))
        return value

    def weight(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Value:
        """A random parameter; drawn in float32, so that only one large array is ever held twice."""
        array = self._random.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
        return self.buffer(name, array.astype(self.dtype))

    def buffer(self, name: str, array: np.ndarray) -> Value:
        name = ".".join([*self._scopes, name])
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return Value(self, name, array.dtype, array.shape)

    def constant(self, array: np.ndarray) -> Value:
        return self.op("Constant", dtype=array.dtype, shape=array.shape, value=numpy_helper.from_array(array))

    def op(self, op_type: str, *inputs: Value | float, **options: Any) -> Value:
        (output,) = self.node(op_type, *inputs, **options)
        return output

    def node(
        self,
        op_type: str,
        *inputs: Value | float,
        outputs: int = 1,
        dtype: DTypeLike | None = None,
        shape: Shape | None = None,
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """Unless told otherwise the outputs have the first tensor's dtype and the inputs' broadcast shape.

        A Python number among the inputs becomes a Constant of the outputs' dtype.
        """
        dtype = np.dtype(dtype or next(value.dtype for value in inputs if isinstance(value, Value)))
        operands = [v if isinstance(v, Value) else self.constant(np.array(v, dtype)) for v in inputs]
        shape = broadcast(*(value.shape for value in operands)) if shape is None else shape

        name = "/" + "/".join([*self._scopes, op_type])
        self._count[name] += 1
        if self._count[name] > 1:
            name += f"_{self._count[name] - 1}"
        results = tuple(Value(self, f"{name}_output_{i}", dtype, shape) for i in range(outputs))
        self._values.extend(results)
        names = [[value.name for value in values] for values in (operands, results)]
        self.graph.node.append(helper.make_node(op_type, *names, name=name, **attributes))
        return results

    def finish(self, last: Value, name: str, value_info: bool) -> ModelProto:
        """`last`, what the last node computes, becomes the model's output `name`."""
        self.graph.node[-1].output[0] = name
        self.graph.output.append(info(replace(last, name=name)))
        if value_info:
            self.graph.value_info.extend(map(info, self._values[:-1]))
        return self.model


def info(value: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def broadcast(*shapes: Shape) -> Shape:
    """NumPy's rule; a dynamic dimension agrees with itself and with 1."""
    dims = []
    for column in zip_longest(*map(reversed, shapes), fillvalue=1):
        sizes = set(column) - {1}
        if len(sizes) > 1:
            raise ValueError(f"shapes do not broadcast: {shapes}")
        dims.append(sizes.pop() if sizes else 1)
    return tuple(reversed(dims))
