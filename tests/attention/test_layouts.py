"""Layouts through Reshape and Transpose, in numbers and symbols, checked against numpy on arrays of indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.attention.layouts import Axes


def axes(**sizes) -> tuple[Axes, dict[str, str]]:
    """Axes with one letter per name, and those letters by name."""
    made = Axes()
    return made, {name: made.new(size) for name, size in sizes.items()}


def regrouped(sizes, layout, dims, split=""):
    """The layout by names after a regroup, parts called by their size; None if it is not provable."""
    made, letters = axes(**sizes)
    allowed = {letters[x] for x in split}
    found = made.regroup(tuple("".join(letters[x] for x in group) for group in layout), dims, allowed.__contains__)
    names = {letter: name for name, letter in letters.items()}
    if found is None:
        return None
    return tuple("".join(names.get(x, f"<{made.sizes[x]}>") for x in group) for group in found)


BNSH = {"B": "batch", "N": 12, "S": "seq", "H": 64}


@pytest.mark.parametrize(
    ("layout", "dims", "expected"),
    [
        (("B", "S", "N", "H"), ("batch", "seq", 768), ("B", "S", "NH")),
        (("B", "S", "NH"), ("batch", "seq", 12, 64), ("B", "S", "N", "H")),
        (("B", "N", "S", "H"), ("12*batch", "seq", 64), ("BN", "S", "H")),
        (("B", "S", "NH"), ("batch*seq", 768), ("BS", "NH")),
        (("B", "S", "NH"), ("batch", 1, "seq", 768), ("B", "", "S", "NH")),
        (("B", "S", "NH"), ("batch", "seq", "?7", 64), ("B", "S", "N", "H")),  # the others leave it no choice
        (("B", "S", "NH"), ("batch", "?1", "?2", 64), None),
        (("B", "S", "NH"), ("seq", "batch", 768), None),
        (("B", "S", "NH"), ("batch", "seq", 24, 32), None),
    ],
)
def test_a_reshape_moves_the_boundaries_between_axes(layout, dims, expected):
    assert regrouped(BNSH, layout, dims) == expected


def test_a_size_nobody_knows_is_followed_as_long_as_it_is_the_same():
    assert regrouped(BNSH | {"S": "?3"}, ("B", "S", "NH"), ("batch", "?3", 12, 64)) == ("B", "S", "N", "H")
    assert regrouped(BNSH | {"S": "?3"}, ("B", "S", "NH"), ("?4", "?5", 12, 64)) is None


def test_a_boundary_inside_a_letter_splits_it_where_that_is_allowed():
    sizes = {"X": "12*batch", "S": "seq", "H": 64}
    assert regrouped(sizes, ("X", "S", "H"), ("batch", 12, "seq", 64), "X") == ("<batch>", "<12>", "S", "H")
    assert regrouped(sizes, ("S", "X", "H"), ("seq", "batch", 768), "X") == ("S", "<batch>", "<12>H")
    assert regrouped(sizes, ("X", "S", "H"), ("batch", 12, "seq", 64)) is None


def test_a_split_is_for_good_and_for_every_layout():
    made, letters = axes(X=24, S=5)
    x, s = letters["X"], letters["S"]
    assert made.regroup((x, s), (2, 12, 5), lambda letter: True) is not None
    assert [made.sizes[part] for part in made.now(x)] == [2, 12]
    assert len(made.current((x, s))[0]) == 2
    assert made.regroup(made.current((x, s)), (2, 3, 4, 5), lambda letter: True) is not None
    assert [made.sizes[part] for part in made.now(x)] == [2, 3, 4]
    assert made.size(made.now(x)) == 24


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), cuts=st.data())
def test_numbers_regroup_as_numpy_reshapes(sizes, cuts):
    """Whatever grouping is found, reshaping by it gives each letter the very index it had."""
    made = Axes()
    letters = [made.new(size) for size in sizes]
    bounds = sorted(cuts.draw(st.lists(st.integers(0, len(sizes)), max_size=3)))
    groups = [letters[a:b] for a, b in zip([0, *bounds], [*bounds, len(letters)], strict=True)]
    dims = tuple(int(np.prod([made.sizes[x] for x in group])) for group in groups)
    found = made.regroup(tuple(letters), dims, lambda letter: False)
    assert found is not None
    assert "".join(found) == "".join(letters)
    assert tuple(int(np.prod([made.sizes[x] for x in group])) for group in found) == dims
