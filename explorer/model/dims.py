"""Sizes of dimensions as exact integer expressions over symbols, so that equality can be proved without running.

A dimension is an int or a str: an expression in canonical form, e.g. "2*batch*seq + 1". Equal strings are provably
equal sizes; different strings may or may not be. A symbol whose name starts with "?" is a size nobody knows; every
other symbol is a name that the model gives to a size of at least 1. An expression too large to keep becomes a "?" of
its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, reduce
from hashlib import blake2b

from explorer.model import polynomials as algebra
from explorer.model.polynomials import NAME, Atom, Poly, TooLargeError

Dim = int | str
"""The size of a dimension: a number, or a canonical expression over symbols ("?…": one that nobody knows)."""

_cached = lru_cache(maxsize=1 << 15)

_MAX_POWER = 12
_MANY_TO_ONE = re.compile(r"//|%|min|max")
# Longer texts are names.
_LONGEST = 1000
_QUOTED = r"'(?:[^'\\]|\\.)*'"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+)(?![\w.:'?])|(?P<symbol>\??(?:{NAME}|{_QUOTED})|\?\d+)|(?P<sign>\*\*|//|[-+*/%(),]))"
)
_ONE_SYMBOL = re.compile(rf"\??(?:{NAME}|{_QUOTED})|\?\d+")
_HYPHENATED = re.compile(rf"(?:[^']|{_QUOTED})*?[^\W\d]-[^\W\d]")


class _NoExpressionError(ValueError):
    """A text that is no arithmetic expression."""


def normal(text: str) -> Dim:
    """Canonical form of a dimension's text as found in a file: "past + 1", "((s0 - 1)//2) + 1", "batch size", "64".

    Understood are + - * / // % **, min, max, Mod and FloorDiv, with / for a quotient that is exact. Any other text is
    one symbol.
    """
    text = text.strip()
    try:
        if _ONE_SYMBOL.fullmatch(text):
            return text
        if len(text) <= _LONGEST and not _HYPHENATED.match(text):
            return _dim(_parse(text))
    except (_NoExpressionError, TooLargeError, RecursionError):
        pass
    return symbol(text)


def symbol(name: str) -> str:
    """The symbol called `name`, whatever characters are in that: quoted where it would not read as one name."""
    if re.fullmatch(NAME, name):
        return name
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


@_cached
def add(a: Dim, b: Dim) -> Dim:
    """a + b."""
    return _kept(lambda: algebra.plus(_poly(a), _poly(b)), f"{a} + {b}")


@_cached
def subtract(a: Dim, b: Dim) -> Dim:
    """a − b, which may be negative."""
    return _kept(lambda: algebra.plus(_poly(a), _poly(b), -1), f"{a} - {b}")


def multiply(*dims: Dim) -> Dim:
    """The product of all `dims`; 1 if there are none."""
    total: Dim = 1
    for dim in dims:
        total = _multiply(total, dim)
    return total


@_cached
def _multiply(a: Dim, b: Dim) -> Dim:
    return _kept(lambda: algebra.product(_poly(a), _poly(b)), f"{a} * {b}")


@_cached
def divide(a: Dim, b: Dim) -> Dim | None:
    """The exact quotient a / b, None unless it is provably a whole number for all sizes. `b` is taken not to be 0."""
    try:
        quotient = algebra.quotient(_poly(a), _poly(b))
    except TooLargeError:
        return None
    return None if quotient is None else _dim(quotient)


@_cached
def floor_divide(a: Dim, b: Dim) -> Dim:
    """a / b rounded down: the exact quotient where there is one, else with //. ZeroDivisionError if b is 0."""
    if b == 0:
        raise ZeroDivisionError
    return _kept(lambda: algebra.floor(_poly(a), _poly(b)), f"{a} // {b}")


def ceil_divide(a: Dim, b: Dim) -> Dim:
    """a / b rounded up, for b of at least 1."""
    return floor_divide(subtract(add(a, b), 1), b)


def modulo(a: Dim, b: Dim) -> Dim:
    """a mod b with the sign of b, as a − b·(a // b)."""
    return subtract(a, multiply(b, floor_divide(a, b)))


@_cached
def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller one: itself where that is provable, else an expression with min."""
    return _kept(lambda: algebra.extreme("min", _poly(a), _poly(b)), f"min {a}, {b}")


@_cached
def maximum(a: Dim, b: Dim) -> Dim:
    """The larger one: itself where that is provable, else an expression with max."""
    return _kept(lambda: algebra.extreme("max", _poly(a), _poly(b)), f"max {a}, {b}")


@_cached
def at_least(dim: Dim, n: int) -> bool:
    """True if `dim` ≥ n is provable, with every symbol at least 1 (at least 0 for one that nobody knows)."""
    if isinstance(dim, int):
        return dim >= n
    try:
        return algebra.at_least(_poly(dim), n)
    except TooLargeError:
        return False


def is_known(dim: Dim) -> bool:
    """False if `dim` depends on a size that nobody knows."""
    return isinstance(dim, int) or "?" not in dim or not any(name.startswith("?") for name in symbols(dim))


@_cached
def symbols(dim: Dim) -> frozenset[str]:
    """All symbols in `dim`."""
    return frozenset(_names(_poly(dim)))


def _names(poly: Poly) -> Iterator[str]:
    for atom in algebra.atoms(poly):
        if not atom.kind:
            yield atom.text
        for operand in atom.operands:
            yield from _names(operand)


def substitute(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    """`dim` with the symbols in `sizes` replaced."""
    if isinstance(dim, int) or sizes.keys().isdisjoint(symbols(dim)):
        return dim
    polys = {name: _poly(size) for name, size in sizes.items()}

    def value(atom: Atom) -> Poly | None:
        if not atom.kind:
            return polys.get(atom.text)
        return reduce(_FUNCTIONS[atom.kind], (algebra.replace(operand, value) for operand in atom.operands))

    return _kept(lambda: algebra.replace(_poly(dim), value), f"{dim} with {sorted(sizes.items())}")


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The number that `dim` is for these sizes of its symbols; KeyError if one is missing."""
    result = substitute(dim, sizes)
    if isinstance(result, str):
        raise KeyError(min(symbols(result)))
    return result


def root(difference: Dim, name: str) -> Dim | None:
    """The one size of symbol `name` for which `difference` is 0; None unless it is linear in it and that size above 0.

    The size is an expression if the difference has other symbols.
    """
    if _MANY_TO_ONE.search(str(difference)):
        return None  # several sizes may have one quotient, or one minimum
    at_zero, at_one, at_two = (substitute(difference, {name: size}) for size in (0, 1, 2))
    slope = subtract(at_one, at_zero)
    if slope == 0 or subtract(at_two, at_one) != slope:
        return None
    size = divide(subtract(0, at_zero), slope)
    return None if isinstance(size, int) and size <= 0 else size


def _kept(compute: Callable[[], Poly], otherwise: str) -> Dim:
    """What is computed, or an unknown of its own, the same for the same operands, if that is too large."""
    try:
        return _dim(compute())
    except TooLargeError:
        return "?x" + blake2b(otherwise.encode(), digest_size=8).hexdigest()


def _dim(poly: Poly) -> Dim:
    text = algebra.text(poly)
    return poly.get((), 0) if poly.keys() <= {()} else text


@_cached
def _poly(dim: Dim) -> Poly:
    return algebra.constant(dim) if isinstance(dim, int) else _parse(dim)


def _parse(text: str) -> Poly:
    if _ONE_SYMBOL.fullmatch(text):
        return algebra.variable(text)
    tokens = [*_tokens(text)][::-1]
    result = _sum(tokens)
    if tokens != [""]:
        raise _NoExpressionError
    return result


def _tokens(text: str) -> Iterator[str]:
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NoExpressionError
        yield match[0].strip()
        position = match.end()
    yield ""


def _sum(tokens: list[str]) -> Poly:
    total = _product(tokens)
    while tokens[-1] in ("+", "-"):
        sign = 1 if tokens.pop() == "+" else -1
        total = algebra.plus(total, _product(tokens), sign)
    return total


def _product(tokens: list[str]) -> Poly:
    total = _power(tokens)
    while tokens[-1] in _FACTORS:
        total = _FACTORS[tokens.pop()](total, _power(tokens))
    return total


def _power(tokens: list[str]) -> Poly:
    if tokens[-1] == "-":
        tokens.pop()
        return algebra.plus({}, _power(tokens), -1)
    base = _operand(tokens)
    if tokens[-1] != "**":
        return base
    tokens.pop()
    power = tokens.pop()
    if not power.isdecimal() or int(power) > _MAX_POWER:
        raise _NoExpressionError
    return reduce(algebra.product, [base] * int(power), algebra.constant(1))


def _operand(tokens: list[str]) -> Poly:
    token = tokens.pop()
    if token.isdecimal():
        return algebra.constant(int(token))
    if token == "(":
        return _closed(_sum(tokens), tokens)
    if not token or token[0] in "+-*/%(),":
        raise _NoExpressionError
    if tokens[-1] != "(":
        return algebra.variable(token)
    function = _FUNCTIONS.get(token.lower())
    tokens.pop()
    operands = [_sum(tokens)]
    while tokens[-1] == ",":
        tokens.pop()
        operands.append(_sum(tokens))
    if function is None or len(operands) < 2:
        raise _NoExpressionError
    return _closed(reduce(function, operands), tokens)


def _closed(inner: Poly, tokens: list[str]) -> Poly:
    if tokens.pop() != ")":
        raise _NoExpressionError
    return inner


def _floor(p: Poly, q: Poly) -> Poly:
    if not q:
        raise _NoExpressionError
    return algebra.floor(p, q)


def _modulo(p: Poly, q: Poly) -> Poly:
    return algebra.plus(p, algebra.product(q, _floor(p, q)), -1)


_FACTORS: Mapping[str, Callable[[Poly, Poly], Poly]] = {
    "*": algebra.product,
    "/": _floor,
    "//": _floor,
    "%": _modulo,
}
_FUNCTIONS: Mapping[str, Callable[[Poly, Poly], Poly]] = {
    "//": _floor,
    "floordiv": _floor,
    "mod": _modulo,
    "min": lambda p, q: algebra.extreme("min", p, q),
    "max": lambda p, q: algebra.extreme("max", p, q),
}
