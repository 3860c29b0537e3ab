"""Every rule against the truth: what ONNX's own tests of each operator compute, with their sizes made symbols."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from explorer.model import TensorType
from explorer.model.dims import Dim, evaluate, is_known, symbol
from explorer.model.shapes import infer
from explorer.model.shapes.table import RULES

# Inputs as small as these are constants in real models: axes, sizes, pads, a number of repetitions.
_SMALL = 64

# Without a test of their own: random ones have no expected output, one is ONNX Runtime's.
_UNTESTED = {"GlobalLpPool", "RandomNormal", "RandomNormalLike", "RandomUniform", "SimplifiedLayerNormalization"}


@pytest.fixture(scope="module")
def node_tests() -> list[Any]:
    """ONNX's tests of single operators, each a model with inputs and the outputs they give."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return [case for case in collect_testcases(None) if case.model is not None and _is_plain(case)]


def _is_plain(case: Any) -> bool:
    """True if inputs and outputs are tensors, not sequences or optional values."""
    values = (*case.model.graph.input, *case.model.graph.output)
    return all(value.type.HasField("tensor_type") for value in values) and len(case.data_sets) > 0


def _contradictions(case: Any, *, symbols: bool, constants: bool) -> Iterator[str]:
    """What the pass says of a test's outputs that is not so. It is told the types of the inputs, nothing else."""
    model = ir.from_proto(case.model)
    inputs, outputs = case.data_sets[0]
    known: dict[str, TensorType] = {}
    sizes: dict[str, int] = {}
    for position, (value, array) in enumerate(zip(list(model.graph.inputs), inputs, strict=True)):
        array, name = _array(array), value.name or ""
        if constants and position > 0 and array.size <= _SMALL and array.dtype.kind in "ifb":
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=name)
            model.graph.register_initializer(value)
            continue
        dims: list[Dim] = list(array.shape)
        for axis, size in enumerate(array.shape):
            if symbols and size > 0:  # a symbol stands for at least 1
                dims[axis] = symbol(f"{name}.{axis}")
                sizes[symbol(f"{name}.{axis}")] = size
        known[name] = TensorType(value.dtype, tuple(dims))
    types = infer(model, known)
    for value, array in zip(model.graph.outputs, outputs, strict=True):
        found = types.get(value.name or "", TensorType(None, None))
        real = _array(array)
        if found.dtype not in (None, value.dtype):
            yield f"{case.name}: {found} has elements of {value.dtype}"
        if found.shape is not None and not _holds(found.shape, real.shape, sizes):
            yield f"{case.name}: {found} is {real.shape}, where {sizes}"


def _array(found: Any) -> np.ndarray:
    """A test's data as an array; types that numpy lacks are stored as protos."""
    return numpy_helper.to_array(found) if isinstance(found, onnx.TensorProto) else np.asarray(found)


def _holds(shape: tuple[Dim, ...], real: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """True if `shape`, as far as it is known, is `real` at these sizes."""
    if len(shape) != len(real):
        return False
    return all(evaluate(dim, sizes) == size for dim, size in zip(shape, real, strict=True) if is_known(dim))


@pytest.mark.parametrize("symbols", [False, True])
@pytest.mark.parametrize("constants", [False, True])
def test_no_rule_contradicts_the_tests_of_its_operator(node_tests, symbols, constants):
    wrong = [line for case in node_tests for line in _contradictions(case, symbols=symbols, constants=constants)]
    assert not wrong


def test_no_operator_with_a_rule_goes_untested(node_tests):
    tested = {node.op_type for case in node_tests for node in case.model.graph.node}
    assert set(RULES[""]) - tested == _UNTESTED
