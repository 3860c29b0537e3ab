"""What a proof is tried on: an ordinary case, another seed, and the awkward ones as far as the inputs leave room."""

from __future__ import annotations

import numpy as np
import pytest

from explorer.errors import InputError
from explorer.verify import cases as module
from explorer.verify import default_cases, given_case

MASKED = """g (int64[batch, seq] ids, int64[batch, seq] attention_mask) => (int64[batch, seq] y)
            { y = Mul (ids, attention_mask) }"""
STATIC = "g (float[2, 8] x) => (float[2, 8] y) { y = Neg (x) }"


def words(cases) -> list[str]:
    return [case.words for case in cases]


def test_the_default_cases(opened):
    cases = {case.words: case for case in default_cases(opened(MASKED))}
    assert list(cases) == ["seed 0", "seed 1", "a fully padded row", "batch 1", "length 1", "length 7"]
    shapes = {name: dict(case.shapes)["ids"] for name, case in cases.items()}
    assert shapes == {
        "seed 0": (2, 32), "seed 1": (2, 32), "a fully padded row": (2, 32),
        "batch 1": (1, 32), "length 1": (2, 1), "length 7": (2, 7),
    }  # fmt: skip
    assert {case.seed for case in cases.values()} == {0, 1}
    assert not np.array_equal(cases["seed 0"].feeds["ids"], cases["seed 1"].feeds["ids"])


def test_a_fully_padded_row_is_the_last_and_the_first_has_padding_too(opened):
    mask = default_cases(opened(MASKED))[2].feeds["attention_mask"]
    assert mask[0].tolist() == [1] * 24 + [0] * 8
    assert mask[1].tolist() == [0] * 32


def test_the_seed_counts_from_the_one_given(opened):
    assert words(default_cases(opened(STATIC), seed=5)) == ["seed 5", "seed 6"]


def test_shapes_that_are_given_are_kept(opened):
    cases = default_cases(opened(MASKED), {"ids": (3, 5)})
    assert words(cases) == ["seed 0", "seed 1", "a fully padded row"]
    assert {dict(case.shapes)["ids"] for case in cases} == {(3, 5)}


def test_nothing_is_tried_twice(opened):
    assert words(default_cases(opened(STATIC))) == ["seed 0", "seed 1"]
    no_batch = opened("g (float[2, seq] x) => (float[2, seq] y) { y = Neg (x) }")
    assert words(default_cases(no_batch)) == ["seed 0", "seed 1", "length 1", "length 7"]
    assert words(default_cases(no_batch, length=7)) == ["seed 0", "seed 1", "length 1", "length 5"]
    assert words(default_cases(no_batch, length=1)) == ["seed 0", "seed 1"]
    assert words(default_cases(opened(MASKED), batch=1, length=2)) == [
        "seed 0", "seed 1", "a fully padded row", "length 1",
    ]  # fmt: skip


def test_a_mask_that_nobody_reads_has_no_padded_row(opened):
    model = opened("g (float[b, s] x, int64[b, s] mask) => (float[b, s] y) { y = Neg (x) }")
    assert "a fully padded row" not in words(default_cases(model))


def test_sizes_that_leave_nothing_are_left_out(opened):
    model = opened("g (float[b, s] x) => (float[b, s] y) { y = Neg (x) }")
    model.types = {**model.types, "x": type(model.types["x"])(model.types["x"].dtype, ("b", "s - 1"))}
    assert words(default_cases(model)) == ["seed 0", "seed 1", "batch 1", "length 7"]
    with pytest.raises(InputError, match=r"expected sizes that fit input 'x' of b×s - 1, found 2×0 with b = 2, s = 1"):
        default_cases(model, length=1)


def test_a_large_model_has_fewer(opened, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 3)
    model = opened("g (float[b, s, 4] x) => (float[b, s, 4] y) <float[4] w = {1, 2, 3, 4}> { y = Mul (x, w) }")
    assert words(default_cases(model)) == ["seed 0", "batch 1", "length 1"]


def test_the_users_inputs_are_a_case_without_a_seed(opened, tmp_path):
    np.savez(tmp_path / "feeds.npz", x=np.ones((2, 8), np.float32))
    case = given_case(opened(STATIC), tmp_path / "feeds.npz")
    assert (case.words, case.seed, case.shapes) == ("your inputs", None, (("x", (2, 8)),))
