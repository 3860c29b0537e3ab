"""Between any two layouts: the steps move the data rightly, and there are no more of them than it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.fusion.relayout import Price, feasible, price, steps

SIZES = {"A": 2, "B": 3, "C": 1, "D": 4, "E": 5}


@st.composite
def layouts(draw, letters):
    """Letters in any order, on any number of axes, some of them empty."""
    order = "".join(draw(st.permutations(letters)))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=4)))
    return tuple(order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True))


@st.composite
def pairs(draw):
    """A layout, and one that may have more letters."""
    letters = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True, min_size=1))
    fewer = draw(st.lists(st.sampled_from(letters), unique=True)) if draw(st.booleans()) else letters
    return draw(layouts(fewer)), draw(layouts(letters))


def carried_out(array, before, after):
    """What the steps make of an array, and that each is what it is called."""
    for step in steps(before, after):
        shape = tuple(math.prod(SIZES[letter] for letter in group) for group in step.layout)
        if step.op_type == "Transpose":
            array = array.transpose(step.perm)
            assert array.shape == shape
        else:
            array = np.broadcast_to(array, shape) if step.op_type == "Expand" else array.reshape(shape)
    return array


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(pairs())
def test_the_steps_move_the_data_rightly(pair):
    before, after = pair
    have, wanted = "".join(before), "".join(after)
    flat = np.arange(math.prod(SIZES[x] for x in have)).reshape([SIZES[x] for x in have])
    array = flat.reshape([math.prod(SIZES[x] for x in group) for group in before])
    missing = [x for x in wanted if x not in have]
    full = np.broadcast_to(flat[(..., *[None] * len(missing))], [SIZES[x] for x in have + "".join(missing)])
    truth = full.transpose([(have + "".join(missing)).index(x) for x in wanted])
    truth = truth.reshape([math.prod(SIZES[x] for x in group) for group in after])
    np.testing.assert_array_equal(carried_out(array, before, after), truth)
    found = price(before, after)
    assert found.nodes == len(steps(before, after)) <= (5 if missing else 3)
    assert found.moves <= (2 if missing else 1)
    assert feasible(before, after, SIZES)


@pytest.mark.parametrize(
    ("before", "after", "ops"),
    [
        (("B", "NH"), ("B", "NH"), []),
        (("B", "S", "NH"), ("B", "S", "N", "H"), ["Reshape"]),
        (("B", "S", "N", "H"), ("B", "N", "S", "H"), ["Transpose"]),
        (("B", "S", "NH"), ("B", "N", "S", "H"), ["Reshape", "Transpose"]),
        (("BW", "GR", "S", "H"), ("BW", "S", "GRH"), ["Transpose", "Reshape"]),  # what stays together is not split
        (("B", "", "H", "T"), ("B", "", "T", "H"), ["Transpose"]),  # an axis of one entry neither
        (("T",), ("", "", "S", "T"), ["Expand"]),  # which adds axes in front
        (("B", "", "", "T"), ("B", "", "S", "T"), ["Expand"]),
        (("B", "G", "T", "H"), ("B", "GR", "T", "H"), ["Reshape", "Expand", "Reshape"]),
        (("T", "B", "H"), ("B", "N", "T", "H"), ["Transpose", "Reshape", "Expand"]),  # moved before it is repeated
    ],
)
def test_the_fewest_nodes(before, after, ops):
    assert [step.op_type for step in steps(before, after)] == ops


def test_of_sizes_that_are_not_numbers_one_may_be_left_open():
    sizes = {"B": "batch", "S": "rows", "N": 2, "H": 8}
    assert feasible(("B", "S", "NH"), ("B", "N", "S", "H"), sizes)
    assert feasible(("BN", "S", "H"), ("B", "N", "S", "H"), sizes)
    assert not feasible(("BS", "NH"), ("B", "S", "NH"), sizes)


def test_what_is_repeated_is_a_number_or_can_be_read_somewhere():
    sizes = {"B": "batch", "W": 4, "X": "windows", "T": "keys"}
    before, after = ("W", "T"), ("BW", "T")
    assert not feasible(before, after, sizes)
    assert feasible(before, after, sizes, ruler=("BW",))
    assert not feasible(("X", "T"), ("BX", "T"), sizes, ruler=("BX",))


def test_prices_are_compared_by_the_data_that_is_moved_first():
    assert Price(1, 1) > Price(0, 9)
    assert Price(1, 1) + Price(0, 2) == Price(1, 3)
