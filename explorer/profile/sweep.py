"""Several shapes in one profile: how they are written, which dimension varies, where two variants are equally fast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp, log

from explorer.errors import InputError
from explorer.profile.values import Profile

MAX_POINTS = 64

_DIGITS = "([0-9]{1,12})"
_SIZE = re.compile(rf"{_DIGITS}(?:\.\.{_DIGITS}(?:\+{_DIGITS})?)?")
_EXAMPLE = "write NAME=2x938x100, or with a range NAME=2x256..8192x100 (doubled) or NAME=2x128..1024+128x100 (in steps)"


def parse_shapes(texts: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """The shapes of each point that texts like "x=2x938x100" ask for; one point without shapes for no text.

    The same name given again is a further point. One size may be a range, a point each: "256..8192" doubles until the
    end, "128..1024+128" goes in steps. Inputs with as many points go together, one with a single point goes with all.
    InputError for anything else.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, found = _parse(text)
        shapes.setdefault(name, []).extend(found)
    count = max(map(len, shapes.values()), default=1)
    if count > MAX_POINTS:
        raise InputError(f"expected at most {MAX_POINTS} shapes, found {count}: give fewer or larger steps")
    for name, own in shapes.items():
        if len(own) not in (1, count):
            raise InputError(
                f"expected one shape or {count} for input {name!r}, as another input has, found {len(own)}: "
                "give each input as many"
            )
    return tuple({name: own[point % len(own)] for name, own in shapes.items()} for point in range(count))


def sweep_axis(profile: Profile) -> tuple[str, tuple[int, ...]] | None:
    """The dimension that varies, ("x[1]", its size at each point): the first of those that grow together.

    None with fewer than two points, if no dimension tells all points apart, if two vary each by itself, or if the only
    one is 0 somewhere, where no logarithmic axis leads.
    """
    shapes = [dict(point.shapes) for point in profile.points]
    if len(shapes) < 2 or any(_ranks(one) != _ranks(shapes[0]) for one in shapes):
        return None
    axes = {
        f"{name}[{axis}]": tuple(one[name][axis] for one in shapes)
        for name, shape in shapes[0].items()
        for axis in range(len(shape))
    }
    varying = [(axis, sizes) for axis, sizes in axes.items() if len(set(sizes)) > 1]
    order = {tuple(sorted(range(len(sizes)), key=sizes.__getitem__)) for _, sizes in varying}
    if len(order) != 1 or any(len(set(sizes)) < len(sizes) for _, sizes in varying):
        return None
    return next(((axis, sizes) for axis, sizes in varying if min(sizes) > 0), None)


def crossovers(profile: Profile, a: str, b: str) -> tuple[float, ...]:
    """Sizes of the varying dimension at which the latency curves of the variants named `a` and `b` cross.

    Between two points both curves are taken for straight lines on logarithmic axes. KeyError for an unknown variant.
    """
    axis = sweep_axis(profile)
    if axis is None:
        return ()
    found: list[float] = []
    last: tuple[float, float] | None = None  # log of the size, and log of how many times longer a takes than b
    level: float | None = None  # since then they are equally fast, from here on
    for size, point in sorted(zip(axis[1], profile.points, strict=True), key=lambda pair: pair[0]):
        one, other = point.of(a).latency, point.of(b).latency
        if one is None or other is None:
            continue
        at, gap = log(size), log(one.median_ms / other.median_ms)
        if gap == 0:
            level = at if level is None else level
            continue
        if last is not None and (gap < 0) != (last[1] < 0):
            found.append(exp(last[0] - last[1] * (at - last[0]) / (gap - last[1]) if level is None else level))
        last, level = (at, gap), None
    return tuple(found)


def _ranks(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: len(shape) for name, shape in shapes.items()}


def _parse(text: str) -> tuple[str, list[tuple[int, ...]]]:
    """The name in front of the last "=" and the shapes behind it."""
    name, separator, written = text.rpartition("=")
    if not separator or not name:
        raise InputError(f"expected the name of an input and a shape, found {text!r}: {_EXAMPLE}")
    sizes = [_sizes(part, text) for part in (written.replace("×", "x").split("x") if written else ())]
    counts = [len(own) for own in sizes if len(own) > 1]
    if len(counts) > 1:
        raise InputError(f"expected at most one range in a shape, found {text!r}: {_EXAMPLE}")
    return name, [tuple(own[point % len(own)] for own in sizes) for point in range(max(counts, default=1))]


def _sizes(part: str, text: str) -> list[int]:
    """The sizes that a number or a range stands for."""
    found = _SIZE.fullmatch(part)
    if found is None:
        raise InputError(f"expected sizes and ranges between the x, found {part!r} in {text!r}: {_EXAMPLE}")
    start = int(found[1])
    end = start if found[2] is None else int(found[2])
    step = None if found[3] is None else int(found[3])
    if start < 1 or step == 0 or (found[2] is not None and end <= start):
        raise InputError(f"expected sizes from 1 and ranges that grow, found {part!r} in {text!r}: {_EXAMPLE}")
    sizes = [start]
    while (size := 2 * sizes[-1] if step is None else sizes[-1] + step) <= end and len(sizes) <= MAX_POINTS:
        sizes.append(size)
    return sizes
