"""Polynomials with integer coefficients over symbols, floor divisions, minima and maxima: the algebra behind `dims`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

# What no model needs but a hostile one may ask for is refused.
_MAX_DEGREE = 12
_MAX_TERMS = 64
_MAX_TEXT = 400
_MAX_NUMBER = 1 << 63
_MAX_OPERANDS = 8
# Proofs about sizes take a few steps; one that takes more is given up.
_MAX_STEPS = 200

NAME = r"[^\W\d][\w.:]*"
_ONE_NAME = re.compile(rf"\??{NAME}|\?\d+|\d+")


class TooLargeError(ValueError):
    """An expression beyond what is worth keeping."""


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """A factor that is not taken apart: a symbol (`kind` "", `text` its name), or //, min or max of polynomials.

    `text` is canonical, so atoms with equal texts are the same; it also orders them.
    """

    text: str
    kind: str = ""
    operands: tuple[Poly, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __lt__(self, other: Atom) -> bool:
        return self.text < other.text


Monomial = tuple[Atom, ...]
"""A product of atoms, sorted, repeated for powers; () is 1."""
Poly = Mapping[Monomial, int]
"""Coefficients, none of them 0; {} is 0."""


def constant(number: int) -> Poly:
    """A number as a polynomial."""
    return {(): number} if number else {}


def variable(name: str) -> Poly:
    """A symbol as a polynomial."""
    return {(Atom(name),): 1}


def plus(p: Poly, q: Poly, times: int = 1) -> Poly:
    """p + times·q."""
    total = dict(p)
    for monomial, coefficient in q.items():
        if left := total.get(monomial, 0) + times * coefficient:
            total[monomial] = left
        else:
            total.pop(monomial, None)
    return total


def product(p: Poly, q: Poly) -> Poly:
    """p·q; TooLargeError if it has too high a degree."""
    if _degree(p) + _degree(q) > _MAX_DEGREE or len(p) * len(q) > _MAX_TERMS**2:
        raise TooLargeError
    total: dict[Monomial, int] = {}
    for left, a in p.items():
        for right, b in q.items():
            monomial = tuple(sorted(left + right)) if left and right else left or right
            total[monomial] = total.get(monomial, 0) + a * b
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def _degree(p: Poly) -> int:
    return max(map(len, p), default=0)


def atoms(p: Poly) -> dict[Atom, None]:
    """All atoms of p, each once, in order of appearance."""
    return dict.fromkeys(atom for monomial in p for atom in monomial)


def replace(p: Poly, value_of: Callable[[Atom], Poly | None]) -> Poly:
    """p with atoms replaced by polynomials (None leaves one as it is)."""
    total: Poly = {}
    for monomial, coefficient in p.items():
        term: Poly = {(): coefficient}
        for atom in monomial:
            value = value_of(atom)
            term = product(term, {(atom,): 1} if value is None else value)
        total = plus(total, term)
    return total


def _rank(monomial: Monomial) -> tuple[int, Monomial]:
    """Order of terms, in texts and in division: higher degrees first, the constant last. Products keep it."""
    return -len(monomial), monomial


def _without(monomial: Monomial, part: Monomial) -> Monomial | None:
    """monomial / part, or None if that is no monomial."""
    left = list(monomial)
    for atom in part:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def quotient(p: Poly, q: Poly) -> Poly | None:
    """p / q by long division; None if a remainder is left or q is 0."""
    if not q:
        return None
    lead = min(q, key=_rank)
    result: Poly = {}
    for _ in range(_MAX_TERMS):
        if not p:
            return result
        top = min(p, key=_rank)
        monomial = _without(top, lead)
        if monomial is None or p[top] % q[lead]:
            return None
        term = {monomial: p[top] // q[lead]}
        result = plus(result, term)
        p = plus(p, product(term, q), -1)
    return None


def floor(p: Poly, q: Poly) -> Poly:
    """p / q rounded down, with q taken not to be 0: the quotient if it is exact, else an atom of lowest terms."""
    if (exact := quotient(p, q)) is not None:
        return exact
    if set(q) == {()} and q[()] > 0:
        return _floor_by_number(p, q[()])
    for atom in atoms(q):
        shared = [_divided(poly, atom) for poly in (p, q)]
        if shared[0] is not None and shared[1] is not None:
            return floor(shared[0], shared[1])
    factor = gcd(*p.values(), *q.values())
    return _floor_atom(*({monomial: c // factor for monomial, c in poly.items()} for poly in (p, q)))


def _divided(p: Poly, atom: Atom) -> Poly | None:
    """p / atom if every term has it as a factor."""
    parts = {_without(monomial, (atom,)): c for monomial, c in p.items()}
    return None if None in parts else {m: c for m, c in parts.items() if m is not None}


def _floor_by_number(p: Poly, divisor: int) -> Poly:
    """Whole multiples of the divisor leave; what is left is brought to lowest terms."""
    whole = {monomial: c // divisor for monomial, c in p.items() if c // divisor}
    rest = {monomial: c % divisor for monomial, c in p.items() if c % divisor}
    number = rest.pop((), 0)
    factor = gcd(divisor, *rest.values())
    if not rest or factor > 1:
        lowest = plus({monomial: c // factor for monomial, c in rest.items()}, constant(number // factor))
        return plus(whole, _floor_by_number(lowest, divisor // factor)) if rest else whole
    ((first, *_), *others) = rest
    if not others and rest == {(first,): 1} and first.kind == "//" and set(first.operands[1]) == {()}:
        above, below = first.operands[0], first.operands[1][()]  # (x//a + c) // b = (x + a*c) // (a*b)
        return plus(whole, _floor_by_number(plus(above, constant(below * number)), below * divisor))
    return plus(whole, _floor_atom(plus(rest, constant(number)), constant(divisor)))


def _floor_atom(p: Poly, q: Poly) -> Poly:
    parts = (text(p), text(q))
    return {(Atom("//".join(s if _ONE_NAME.fullmatch(s) else f"({s})" for s in parts), "//", (p, q)),): 1}


def extreme(kind: str, p: Poly, q: Poly) -> Poly:
    """The "min" or "max" of p and q, flattened, without operands that provably never win."""
    kept = {text(operand): operand for poly in (p, q) for operand in _operands(kind, poly)}
    if len(kept) > _MAX_OPERANDS:
        raise TooLargeError
    sign = 1 if kind == "min" else -1
    for name, one in list(kept.items()):
        if any(other != name and _never_negative(_scale(plus(one, poly, -1), sign)) for other, poly in kept.items()):
            del kept[name]
    ordered = sorted(kept, key=lambda name: (not name.lstrip("-").isdecimal(), name))
    if len(ordered) == 1:
        return kept[ordered[0]]
    return {(Atom(f"{kind}({', '.join(ordered)})", kind, tuple(kept[name] for name in ordered)),): 1}


def _operands(kind: str, p: Poly) -> tuple[Poly, ...]:
    for atom in atoms(p):
        if atom.kind == kind and p == {(atom,): 1}:
            return atom.operands
    return (p,)


def _scale(p: Poly, factor: int) -> Poly:
    return {monomial: coefficient * factor for monomial, coefficient in p.items()}


def at_least(p: Poly, n: int) -> bool:
    """True if p ≥ n is provable with every symbol at least 1, and those that begin with "?" at least 0."""
    return _never_negative(plus(p, constant(n), -1))


def _never_negative(p: Poly, steps: Iterator[int] | None = None) -> bool:
    """True if p ≥ 0 is provable in these steps, each of which puts something simpler in the place of an atom."""
    steps = iter(range(_MAX_STEPS)) if steps is None else steps
    composite = [atom for atom in atoms(p) if atom.kind]
    if not composite:
        # Each symbol is 1 + something that is not negative.
        shifted = replace(p, lambda atom: None if atom.text.startswith("?") else {(atom,): 1, (): 1})
        return all(coefficient >= 0 for coefficient in shifted.values())
    if next(steps, None) is None:
        return False
    # The operand that wins is one of them: p must be proved for all. Any one will do where it makes p only smaller.
    # Those come last, since what they need may depend on the others.
    composite.sort(key=lambda atom: _sign(p, atom) == _LOWERS_WITH_ANY.get(atom.kind))
    atom = composite[0]
    if atom.kind == "//":
        return any(_never_negative(case, steps) for case in _bounds(p, atom, steps))
    enough = any if _sign(p, atom) == _LOWERS_WITH_ANY[atom.kind] else all
    return enough(_never_negative(_put(p, atom, part), steps) for part in atom.operands)


_LOWERS_WITH_ANY = {"min": -1, "max": 1}


def _sign(p: Poly, atom: Atom) -> int:
    """1 if p provably grows with `atom`, −1 if it falls, 0 if neither is certain."""
    signs = set()
    for monomial, coefficient in p.items():
        if atom in monomial:
            simple = sum(bool(other.kind) for other in monomial) == 1
            signs.add((coefficient > 0) - (coefficient < 0) if simple else 0)
    return signs.pop() if len(signs) == 1 else 0


def _put(p: Poly, atom: Atom, value: Poly) -> Poly:
    return replace(p, lambda other: value if other == atom else None)


def _bounds(p: Poly, atom: Atom, steps: Iterator[int]) -> Iterator[Poly]:
    """Polynomials of which any proves p ≥ 0, from x // n ≥ (x − n + 1) / n and x // n ≤ x / n."""
    above, below = atom.operands
    n, sign = below.get((), 0), _sign(p, atom)
    if below != {(): n} or n < 1 or sign == 0:
        return
    if p.keys() >= {(atom,)} and not any(atom in monomial and len(monomial) > 1 for monomial in p):
        bound = above if sign < 0 else plus(above, constant(n - 1), -1)
        yield plus(_scale(_put(p, atom, {}), n), bound, p[(atom,)])
    for number in (1, 0) if sign > 0 else (-1, 0):
        # x // n ≥ number, or ≤ number, where x itself says so
        room = plus(above, constant(number * n), -1) if sign > 0 else plus(constant(number * n + n - 1), above, -1)
        if _never_negative(room, steps):
            yield _put(p, atom, constant(number))
            return


def text(p: Poly) -> str:
    """Canonical text: highest degree first, the constant last. TooLargeError if it is too long."""
    if any(abs(coefficient) >= _MAX_NUMBER for coefficient in p.values()) or len(p) > _MAX_TERMS:
        raise TooLargeError
    result = ""
    for monomial in sorted(p, key=_rank):
        sign = "-" if p[monomial] < 0 else "+"
        result += f" {sign} " if result else sign.removesuffix("+")
        result += _term(monomial, abs(p[monomial]), alone=result != "-")
    if len(result) > _MAX_TEXT:
        raise TooLargeError
    return result or "0"


@lru_cache(maxsize=1 << 14)
def _term(monomial: Monomial, coefficient: int, *, alone: bool) -> str:
    if len(monomial) == 1 and coefficient == 1 and alone:  # a leading minus would bind more closely than //
        return monomial[0].text
    factors = [] if coefficient == 1 and monomial else [str(coefficient)]
    for atom in dict.fromkeys(monomial):
        base = f"({atom.text})" if atom.kind == "//" else atom.text
        power = monomial.count(atom)
        factors.append(base if power == 1 else f"{base}**{power}")
    return "*".join(factors)
