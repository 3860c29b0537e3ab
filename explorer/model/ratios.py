"""Floats that a model computes from dimensions: a size divided by a number, as in floor(height / 14).

A model computes them in float32, so only what comes out the same there is kept: sums and products of sizes and of parts
of them by powers of two are exact below 2²⁴, and a division that is rounded once still rounds down to the right number.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from explorer.model import dims
from explorer.model.dims import Dim, at_least

# Parts of a size finer than this would not be exact in float32.
_FINEST = 1 << 10


@dataclass(frozen=True, slots=True)
class Ratio:
    """The float `numerator / denominator`."""

    numerator: Dim
    denominator: int = 1

    @property
    def is_exact(self) -> bool:
        """True if float32 holds it exactly."""
        return self.denominator <= _FINEST and self.denominator & (self.denominator - 1) == 0

    def whole(self) -> Dim | None:
        """The dimension that this is, None if it is a part of one."""
        return self.numerator if self.denominator == 1 else None


def ratio(number: object) -> Ratio | None:
    """A float or a Ratio as an exact Ratio; None if it is not one."""
    if isinstance(number, Ratio):
        return number if number.is_exact else None
    if not isinstance(number, float) or number in (float("inf"), -float("inf")) or number != number:
        return None
    exact = Fraction(number)
    found = Ratio(exact.numerator, exact.denominator)
    return found if found.is_exact else None


def _reduced(numerator: Dim, denominator: int) -> Ratio:
    while denominator > 1 and (half := dims.divide(numerator, 2)) is not None and denominator % 2 == 0:
        numerator, denominator = half, denominator // 2
    whole = dims.divide(numerator, denominator)
    return Ratio(numerator, denominator) if whole is None else Ratio(whole)


def add(a: object, b: object, sign: int = 1) -> Ratio | None:
    """a + sign·b."""
    p, q = ratio(a), ratio(b)
    if p is None or q is None:
        return None
    left = dims.multiply(p.numerator, q.denominator)
    right = dims.multiply(q.numerator, p.denominator, sign)
    return _reduced(dims.add(left, right), p.denominator * q.denominator)


def multiply(a: object, b: object) -> Ratio | None:
    """a · b."""
    p, q = ratio(a), ratio(b)
    if p is None or q is None:
        return None
    return _reduced(dims.multiply(p.numerator, q.numerator), p.denominator * q.denominator)


def divide(a: object, b: object) -> Ratio | None:
    """a / b for b of a known, positive value, or where the quotient is exact."""
    p, q = ratio(a), ratio(b)
    if p is None or q is None:
        return None
    numerator = dims.multiply(p.numerator, q.denominator)
    if isinstance(q.numerator, int) and q.numerator > 0:
        return _reduced(numerator, p.denominator * q.numerator)
    exact = dims.divide(numerator, q.numerator)
    return None if exact is None else _reduced(exact, p.denominator)


def floor(a: Ratio) -> Ratio:
    """a rounded down."""
    return Ratio(dims.floor_divide(a.numerator, a.denominator))


def ceil(a: Ratio) -> Ratio:
    """a rounded up."""
    return Ratio(dims.ceil_divide(a.numerator, a.denominator))


def truncate(a: Ratio) -> Dim | None:
    """a as an integer, as a cast makes it; None where that may round up."""
    return dims.floor_divide(a.numerator, a.denominator) if at_least(a.numerator, 0) else a.whole()
