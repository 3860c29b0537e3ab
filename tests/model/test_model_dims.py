"""Dimensions: their arithmetic is that of the numbers they stand for, and equal expressions have one text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from explorer.model.dims import (
    Dim,
    add,
    at_least,
    ceil_divide,
    divide,
    evaluate,
    floor_divide,
    is_known,
    maximum,
    minimum,
    modulo,
    multiply,
    normal,
    substitute,
    subtract,
    symbol,
    symbols,
)

SYMBOLS = ("batch", "seq", "past", "?7", symbol("a name/with:signs"))


@dataclass(frozen=True)
class Case:
    """An expression built by the functions under test, and the same as a function of numbers."""

    dim: Dim
    number: Callable[[dict[str, int]], int]


def _leaf(name: str | int) -> Case:
    return Case(name, lambda sizes: sizes[name] if isinstance(name, str) else name)


def _step(pair: tuple[str, Case, Case]) -> Case:
    kind, a, b = pair
    symbolic, numeric = {
        "add": (add, lambda x, y: x + y),
        "subtract": (subtract, lambda x, y: x - y),
        "multiply": (multiply, lambda x, y: x * y),
        "minimum": (minimum, min),
        "maximum": (maximum, max),
        "floor": (floor_divide, lambda x, y: x // y),
        "ceil": (ceil_divide, lambda x, y: -(-x // y)),
        "modulo": (modulo, lambda x, y: x % y),
    }[kind]
    if kind in ("floor", "ceil", "modulo"):
        assume(at_least(b.dim, 1))
    return Case(symbolic(a.dim, b.dim), lambda sizes: numeric(a.number(sizes), b.number(sizes)))


KINDS = st.sampled_from(["add", "subtract", "multiply", "minimum", "maximum", "floor", "ceil", "modulo"])
cases = st.recursive(
    st.sampled_from([*SYMBOLS, *range(-3, 13)]).map(_leaf),
    lambda inner: st.tuples(KINDS, inner, inner).map(_step),
    max_leaves=8,
)
sizes_of = st.fixed_dictionaries({name: st.sampled_from([1, 2, 3, 7, 64, 513]) for name in SYMBOLS})
thorough = settings(max_examples=300, deadline=None, derandomize=True)


@thorough
@given(case=cases, sizes=sizes_of)
def test_an_expression_is_worth_what_it_was_made_of(case, sizes):
    assume(symbols(case.dim) <= set(SYMBOLS))  # not so large that it became an unknown
    assert evaluate(case.dim, sizes) == case.number(sizes)


@thorough
@given(case=cases)
def test_a_text_reads_as_itself(case):
    assert normal(str(case.dim)) == case.dim


@thorough
@given(case=cases, bound=st.integers(-5, 5), sizes=sizes_of)
def test_what_is_at_least_a_bound_never_falls_below_it(case, bound, sizes):
    assume(symbols(case.dim) <= set(SYMBOLS))
    if at_least(case.dim, bound):
        assert evaluate(case.dim, sizes) >= bound


@thorough
@given(a=cases, b=cases, sizes=sizes_of)
def test_an_exact_quotient_gives_back_what_was_divided(a, b, sizes):
    quotient = divide(a.dim, b.dim)
    if quotient is not None:
        assert multiply(quotient, b.dim) == a.dim
    if b.dim != 0 and is_known(product := multiply(a.dim, b.dim)) and symbols(product) <= set(SYMBOLS):
        assert divide(product, b.dim) == a.dim


@thorough
@given(case=cases, sizes=sizes_of)
def test_substituting_all_at_once_or_one_by_one(case, sizes):
    assume(symbols(case.dim) <= set(SYMBOLS))
    dim = case.dim
    for name, size in sizes.items():
        dim = substitute(dim, {name: size})
    assert dim == evaluate(case.dim, sizes)


@pytest.mark.parametrize(
    ("a", "b", "quotient"),
    [
        (multiply(12, "batch", "seq"), multiply(12, "batch"), "seq"),
        ("2*s + 2", 2, "s + 1"),
        (add(multiply("s", "a"), multiply("s", "b")), "s", "a + b"),
        (multiply(add("a", "b"), add("a", "c")), "a + c", "a + b"),
        ("a*a - b*b", "a - b", "a + b"),
        (multiply("batch", "seq"), "batch", "seq"),
        ("seq", 2, None),
        ("a + 1", "a", None),
        ("seq", 0, None),
        (0, "seq", 0),
        (64, 8, 8),
        (64, 7, None),
    ],
)
def test_exact_quotients(a, b, quotient):
    a, b = (normal(dim) if isinstance(dim, str) else dim for dim in (a, b))
    assert divide(a, b) == quotient


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        ("batch", "batch"),
        (" 64 ", 64),
        ("past + 1", "past + 1"),
        ("1+past", "past + 1"),
        ("((s0 - 1)//2) + 1", "(s0 + 1)//2"),
        ("2*s1*s0", "2*s0*s1"),
        ("s0**2", "s0**2"),
        ("s0*s0*s0", "s0**3"),
        ("s0/2", "s0//2"),
        ("4*s0/2", "2*s0"),
        ("Max(2, Min(s0, 512))", "max(2, min(512, s0))"),
        ("max(s0, 1)", "s0"),
        ("FloorDiv(s0, 8)", "s0//8"),
        ("s0//2//2", "s0//4"),
        ("(s0 + s1)//2 - s1", "(s0 + s1)//2 - s1"),
        ("-(s0//3) + s0", "s0 - s0//3"),
        ("Mod(s0, 8)", "s0 - 8*(s0//8)"),
        ("(2*s0 + 1) % 2", 1),
        ("input_ids.0", "input_ids.0"),
        ("onnx::Gather_0", "onnx::Gather_0"),
        ("?7", "?7"),
        ("batch size", "'batch size'"),
        ("batch-size", "'batch-size'"),
        ("batch + ", "'batch +'"),
        ("3x", "'3x'"),
        ("s0 // 0", "'s0 // 0'"),
        ("it's", "'it\\'s'"),
        ("'batch size' + 1", "'batch size' + 1"),
        ("'batch-size' + 1", "'batch-size' + 1"),
        ("(" * 500 + "s" + ")" * 500, symbol("(" * 500 + "s" + ")" * 500)),
        ("x**99999999", "'x**99999999'"),
        ("", "''"),
    ],
)
def test_texts_of_files(text, dim):
    assert normal(text) == dim
    assert normal(str(dim)) == dim


@pytest.mark.parametrize(
    ("dim", "bound", "expected"),
    [
        ("seq", 1, True),
        ("seq", 2, False),
        ("past + seq", 2, True),
        ("?7", 0, True),
        ("?7", 1, False),
        ("batch*seq - batch", 0, True),
        ("seq - past", 0, False),
        ("seq - min(512, seq)", 0, True),
        ("min(512, seq)", 1, True),
        ("min(512, past + seq) - min(512, past)", 0, True),
        ("seq - min(512, past + seq) + min(512, past)", 0, True),
        ("max(7, seq) - 7", 0, True),
        ("seq - 2*(seq//2)", 0, True),
        ("1 - seq + 2*(seq//2)", 0, True),
        ("2 - seq + 2*(seq//2)", 1, True),
        ("(seq + 7)//8", 1, True),
        ("(seq + 6)//8", 1, False),
        ("batch*(seq//2)", 0, True),
        ("-1*batch", 0, False),
        (-4, -4, True),
    ],
)
def test_bounds(dim, bound, expected):
    assert at_least(normal(dim) if isinstance(dim, str) else dim, bound) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (minimum(512, "seq"), "min(512, seq)"),
        (minimum("seq", minimum(512, "past")), "min(512, past, seq)"),
        (minimum(minimum("seq", 8), 512), "min(8, seq)"),
        (maximum("seq", minimum(512, "seq")), "seq"),
        (minimum("seq", add("past", "seq")), "seq"),
        (maximum(0, "seq"), "seq"),
        (maximum("?7", "seq"), "max(?7, seq)"),
    ],
)
def test_extremes(found, expected):
    assert found == expected


def test_what_is_known():
    assert is_known(3)
    assert is_known("batch*seq")
    assert is_known(symbol("what?"))
    assert not is_known("?7")
    assert not is_known(maximum("seq", floor_divide("?7", 2)))
    assert symbols("max(?7//2, seq) + batch") == {"?7", "seq", "batch"}


def test_a_missing_size_is_named():
    with pytest.raises(KeyError, match="seq"):
        evaluate("batch*seq", {"batch": 2})


def test_division_by_zero_is_an_error():
    with pytest.raises(ZeroDivisionError):
        floor_divide("seq", 0)


class TestHostile:
    def test_a_power_tower_becomes_one_unknown(self):
        dim: Dim = add("a", 1)
        for _ in range(60):
            dim = multiply(dim, dim)
        assert not is_known(dim)
        assert len(str(dim)) < 100

    def test_so_does_a_number_without_end(self):
        dim: Dim = 3
        for _ in range(40):
            dim = multiply(dim, dim)
        assert not is_known(dim)

    def test_equal_operands_give_the_same_unknown(self):
        many = math.prod(range(1, 20))
        dims = [multiply(many, many, "a"), multiply(many, many, "a"), multiply(many, many, "b")]
        assert dims[0] == dims[1] != dims[2]
        assert not is_known(dims[0])

    def test_many_nested_extremes_end_soon(self):
        start = time.perf_counter()
        dim: Dim = "s0"
        for at in range(1, 40):
            dim = minimum(add(dim, f"s{at}"), maximum(subtract(dim, at), f"t{at}"))
            at_least(dim, 1)
        assert time.perf_counter() - start < 20
