"""What can be said of positions: linear forms in index variables, and conditions that compare them.

A mask keeps or hides (query i, key j) by comparing numbers made of i, j and sizes. Here such a number is an `Affine`
(2·i − j + seq − 1), a comparison is an `AtLeastZero` of one, and a `Condition` is a truth table over comparisons and
over elements that are `Unknown`. `equivalent` never errs towards True.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from explorer.model import Dim, dims

# A truth table has 2ⁿ rows. Masks compare a handful of positions; what compares more is no plain mask.
_MAX_ATOMS = 6

Sizes = Mapping[str, Dim]
"""Size of the axis that each index variable runs over: the variable v is one of 0 … sizes[v] − 1."""


@dataclass(frozen=True, slots=True)
class Affine:
    """The integer Σ coefficient·variable + offset; `terms` is sorted by variable and without zeros."""

    terms: tuple[tuple[str, Dim], ...] = ()
    offset: Dim = 0

    @staticmethod
    def variable(name: str) -> Affine:
        """The index variable called `name`."""
        return Affine(((name, 1),))

    def __add__(self, other: Affine) -> Affine:
        total = dict(self.terms)
        for name, coefficient in other.terms:
            total[name] = dims.add(total.get(name, 0), coefficient)
        kept = tuple(sorted((name, coefficient) for name, coefficient in total.items() if coefficient != 0))
        return Affine(kept, dims.add(self.offset, other.offset))

    def __sub__(self, other: Affine) -> Affine:
        return self + other.times(-1)

    def times(self, factor: Dim) -> Affine:
        """This form multiplied by a size."""
        terms = tuple((name, dims.multiply(coefficient, factor)) for name, coefficient in self.terms)
        return Affine(() if factor == 0 else terms, dims.multiply(self.offset, factor))

    def split(self, stride: Dim, sizes: Sizes) -> tuple[Affine, Affine] | None:
        """Quotient and remainder of a division by `stride` (both natural); None if they are no such forms."""
        whole = Affine()
        for name, coefficient in self.terms:
            if (quotient := dims.divide(coefficient, stride)) is not None:
                whole = whole + Affine(((name, quotient),))
        if (quotient := dims.divide(self.offset, stride)) is not None:
            whole = whole + Affine(offset=quotient)
        rest = self - whole.times(stride)
        room = Affine(offset=stride) - rest + Affine(offset=-1)
        return (whole, rest) if all(form.is_natural(sizes) for form in (whole, rest, room)) else None

    @property
    def number(self) -> int | None:
        """The number that this form is, or None if it depends on a position or on a size."""
        return None if self.terms or isinstance(self.offset, str) else self.offset

    def minimum(self, sizes: Sizes) -> Dim | None:
        """A lower bound that is reached; None if a variable counts downwards and has no known size, or either way."""
        low = self.offset
        for name, coefficient in self.terms:
            if not dims.at_least(coefficient, 0):
                if name not in sizes or not dims.at_least(dims.multiply(coefficient, -1), 0):
                    return None
                low = dims.add(low, dims.multiply(dims.subtract(sizes[name], 1), coefficient))
        return low

    def is_natural(self, sizes: Sizes) -> bool:
        """True if this form is provably never negative."""
        low = self.minimum(sizes)
        return low is not None and dims.at_least(low, 0)


@dataclass(frozen=True, slots=True)
class AtLeastZero:
    """The atom `form` ≥ 0. Made by `at_least_zero` alone: a comparison and its opposite share one atom."""

    form: Affine


@dataclass(frozen=True, slots=True)
class Unknown:
    """One element of a tensor that nothing is known about: equal keys and indices are the same element."""

    key: str
    index: tuple[Affine, ...] = ()


Atom = AtLeastZero | Unknown


class TooComplex(Exception):
    """A condition depends on more atoms than a truth table should have."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A truth table. Bit r of `rows` says whether it holds where atom k is true exactly if bit k of r is set.

    Every atom matters: conditions that depend on the same atoms in the same way are equal.
    """

    atoms: tuple[Atom, ...]
    rows: int

    def __and__(self, other: Condition) -> Condition:
        return self._combined(other, lambda a, b: a & b)

    def __or__(self, other: Condition) -> Condition:
        return self._combined(other, lambda a, b: a | b)

    def __xor__(self, other: Condition) -> Condition:
        return self._combined(other, lambda a, b: a ^ b)

    def __invert__(self) -> Condition:
        return Condition(self.atoms, self.rows ^ ((1 << (1 << len(self.atoms))) - 1))

    def _combined(self, other: Condition, combine: Callable[[int, int], int]) -> Condition:
        atoms = tuple(sorted({*self.atoms, *other.atoms}, key=repr))
        if len(atoms) > _MAX_ATOMS:
            raise TooComplex
        return _reduced(atoms, combine(self.over(atoms), other.over(atoms)))

    def over(self, atoms: tuple[Atom, ...]) -> int:
        """The rows of this condition as one over `atoms`, which are its own and others."""
        places = [atoms.index(atom) for atom in self.atoms]
        rows = 0
        for row in range(1 << len(atoms)):
            own = sum((row >> place & 1) << at for at, place in enumerate(places))
            rows |= (self.rows >> own & 1) << row
        return rows


TRUE = Condition((), 1)
FALSE = Condition((), 0)


def atom(of: Atom) -> Condition:
    """The condition that is true where this atom is."""
    return Condition((of,), 0b10)


def at_least_zero(form: Affine, sizes: Sizes) -> Condition:
    """The condition form ≥ 0: decided where the sizes decide it."""
    if form.is_natural(sizes):
        return TRUE
    opposite = form.times(-1) + Affine(offset=-1)
    if opposite.is_natural(sizes):
        return FALSE
    # form ≥ 0 and −form − 1 ≥ 0 are opposites: the one with the smaller text is the atom
    return atom(AtLeastZero(form)) if repr(form) <= repr(opposite) else ~atom(AtLeastZero(opposite))


def equivalent(left: Condition, right: Condition, sizes: Sizes) -> bool:
    """True if the two provably agree at all positions, whatever the unknown elements are."""
    try:
        differing = left ^ right
    except TooComplex:
        return False
    forms = [(at, item.form) for at, item in enumerate(differing.atoms) if isinstance(item, AtLeastZero)]
    # Pairs of which one holds only where the other does: i − j − 1 ≥ 0 only where i − j ≥ 0
    implied = [(a, b) for a, f in forms for b, g in forms if a != b and (g - f).is_natural(sizes)]
    return all(
        any(row >> cause & 1 and not row >> effect & 1 for cause, effect in implied)  # no position is like this
        for row in range(1 << len(differing.atoms))
        if differing.rows >> row & 1
    )


def _reduced(atoms: tuple[Atom, ...], rows: int) -> Condition:
    """Leave out the atoms that do not matter."""
    for at in reversed(range(len(atoms))):
        low = [row for row in range(1 << len(atoms)) if not row >> at & 1]
        if all(rows >> row & 1 == rows >> (row | 1 << at) & 1 for row in low):
            atoms = (*atoms[:at], *atoms[at + 1 :])
            rows = sum((rows >> row & 1) << place for place, row in enumerate(low))
    return Condition(atoms, rows)
