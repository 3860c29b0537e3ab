"""Conditions on positions are truth tables, and are called the same only if they are."""

from __future__ import annotations

from functools import reduce
from itertools import product
from operator import and_

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.attention.mask_predicates import (
    FALSE,
    TRUE,
    Affine,
    AtLeastZero,
    Condition,
    TooComplex,
    Unknown,
    at_least_zero,
    atom,
    equivalent,
)

SIZES = {"i": 4, "j": 4}
ROW, COL = Affine.variable("i"), Affine.variable("j")


def holds(condition: Condition, i: int, j: int, known: frozenset[str]) -> bool:
    row = 0
    for place, item in enumerate(condition.atoms):
        if isinstance(item, AtLeastZero):
            amount = sum(int(factor) * {"i": i, "j": j}[name] for name, factor in item.form.terms)
            truth = amount + int(item.form.offset) >= 0
        else:
            truth = item.key in known
        row |= truth << place
    return bool(condition.rows >> row & 1)


WORLDS = [
    (i, j, frozenset(known)) for i, j in product(range(4), repeat=2) for known in ((), ("a",), ("b",), ("a", "b"))
]


def comparisons() -> st.SearchStrategy[Condition]:
    numbers = st.integers(-2, 2)
    forms = st.builds(lambda a, b, c: ROW.times(a) + COL.times(b) + Affine(offset=c), numbers, numbers, numbers)
    return st.builds(at_least_zero, forms, st.just(SIZES)) | st.sampled_from([atom(Unknown("a")), atom(Unknown("b"))])


@given(left=comparisons(), right=comparisons())
def test_logic_is_that_of_the_positions(left, right) -> None:
    for world in WORLDS:
        a, b = holds(left, *world), holds(right, *world)
        assert holds(left & right, *world) == (a and b)
        assert holds(left | right, *world) == (a or b)
        assert holds(left ^ right, *world) == (a != b)
        assert holds(~left, *world) != a


@given(st.data())
def test_equivalent_conditions_agree_everywhere(data) -> None:
    left, right = ((data.draw(comparisons()) & data.draw(comparisons())) | data.draw(comparisons()) for _ in range(2))
    if equivalent(left, right, SIZES):
        assert all(holds(left, *world) == holds(right, *world) for world in WORLDS)


@pytest.mark.parametrize("far", [1, 2, 5])
def test_what_follows_from_a_comparison_is_known(far) -> None:
    near = at_least_zero(ROW - COL, SIZES)
    wide = at_least_zero(ROW - COL + Affine(offset=far), SIZES)
    assert equivalent(near & wide, near, SIZES)
    assert equivalent(near | wide, wide, SIZES)
    assert equivalent(near, wide, SIZES) is False


def test_sizes_decide_comparisons() -> None:
    sizes = {"i": "seq", "j": "seq"}
    assert at_least_zero(ROW, sizes) == TRUE
    assert at_least_zero(Affine(offset="seq") - ROW, sizes) == TRUE
    assert at_least_zero(ROW - Affine(offset="seq"), sizes) == FALSE
    assert at_least_zero(COL - ROW, sizes) == ~at_least_zero(ROW - COL + Affine(offset=-1), sizes)


def test_division_by_a_size_takes_positions_apart() -> None:
    sizes = {"i": "rows", "j": "cols"}
    flat = ROW.times("cols") + COL
    assert flat.split("cols", sizes) == (ROW, COL)
    assert flat.split("rows", sizes) is None
    assert (flat + Affine(offset=1)).split("cols", sizes) is None


def test_a_condition_on_too_much_is_refused() -> None:
    atoms = [atom(Unknown(str(at))) for at in range(20)]
    with pytest.raises(TooComplex):
        reduce(and_, atoms)
