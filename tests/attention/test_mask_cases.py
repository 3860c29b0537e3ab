"""Numbers of a mask are what a tensor of their type can hold; constants are what the whole array says."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from explorer.attention.mask_cases import constant_element, held, number, plain
from explorer.attention.mask_predicates import Affine

ROW, COL = Affine.variable("i"), Affine.variable("j")
DTYPE = ir.DataType


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (-1e9, DTYPE.FLOAT, -1e9),
        (-1e9, DTYPE.FLOAT16, -math.inf),
        (0.1, DTYPE.FLOAT, float(np.float32(0.1))),
        (2049.0, DTYPE.FLOAT16, 2048.0),
        (200.0, DTYPE.UINT8, 200.0),
        (-1.0, DTYPE.UINT8, None),
        (-math.inf, DTYPE.INT64, None),
        (1.0, None, None),
    ],
)
def test_a_number_is_rounded_to_its_type(value, dtype, expected) -> None:
    leaf = held(number(value), dtype)
    assert (None if leaf is None else plain(leaf)) == expected


@pytest.mark.parametrize("dtype", [DTYPE.FLOAT16, DTYPE.BFLOAT16, DTYPE.INT8])
def test_a_type_that_is_too_short_holds_no_position(dtype) -> None:
    assert held(ROW, dtype) is None
    assert held(ROW, DTYPE.INT64) == ROW


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4) ** 2,
        np.array([[0, -np.inf], [np.nan, 0]], np.float32),
        np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool),
        np.zeros((0, 3)),
    ],
)
def test_an_array_without_a_rule_is_unknown(array) -> None:
    assert constant_element(array, (ROW, COL), {"i": "rows", "j": "cols"}) is None


def test_an_array_that_is_alike_along_an_axis_does_not_depend_on_it() -> None:
    sizes = {"b": 2, "i": 3, "j": 3}
    batch = np.broadcast_to(np.tri(3, dtype=bool), (2, 3, 3))
    one = constant_element(np.tri(3, dtype=bool), (ROW, COL), sizes)
    assert constant_element(batch, (Affine.variable("b"), ROW, COL), sizes) == one
    assert constant_element(batch, (Affine(offset=2), ROW, COL), sizes) is None  # there is no third one
