from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_values import measurement, point, profile, refused

from explorer.errors import InputError
from explorer.profile.sweep import MAX_POINTS, crossovers, parse_shapes, sweep_axis


@pytest.mark.parametrize(
    ("texts", "points"),
    [
        ([], [{}]),
        (["x=2x938x100"], [{"x": (2, 938, 100)}]),
        (["x=2×938"], [{"x": (2, 938)}]),
        (["a=b=3", "n="], [{"a=b": (3,), "n": ()}]),
        (["x=2x8", "x=2x16"], [{"x": (2, 8)}, {"x": (2, 16)}]),
        (["x=2x3..20x5"], [{"x": (2, 3, 5)}, {"x": (2, 6, 5)}, {"x": (2, 12, 5)}]),
        (["x=128..512+128"], [{"x": (size,)} for size in (128, 256, 384, 512)]),
        (["x=5..11+4"], [{"x": (5,)}, {"x": (9,)}]),
        (["x=4", "x=8..16"], [{"x": (4,)}, {"x": (8,)}, {"x": (16,)}]),
        (["x=4..8", "m=1x5..9+4", "t=2"], [{"x": (4,), "m": (1, 5), "t": (2,)}, {"x": (8,), "m": (1, 9), "t": (2,)}]),
    ],
)
def test_shapes_are_read(texts, points):
    assert list(parse_shapes(texts)) == points


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"], "expected the name of an input and a shape, found 'x'"),
        (["=3"], "expected the name of an input"),
        (["x=a"], "found 'a' in 'x=a': write NAME=2x938x100"),
        (["x=-1"], "found '-1'"),
        (["x=٣"], "found '٣'"),
        (["x=9999999999999"], "found '9999999999999'"),
        (["x=1..2..3"], "found '1..2..3'"),
        (["x=0x2"], "expected sizes from 1 and ranges that grow, found '0'"),
        (["x=4..4"], "ranges that grow, found '4..4'"),
        (["x=8..4"], "ranges that grow"),
        (["x=4..8+0"], "ranges that grow"),
        (["x=2..4x2..4"], "at most one range in a shape"),
        (["x=1..999999999999+1"], f"at most {MAX_POINTS} shapes, found {MAX_POINTS + 1}"),
        (["x=1..64+1", "x=1..64+1"], f"at most {MAX_POINTS} shapes, found 128"),
        (["x=2..16", "m=1..4"], "expected one shape or 4 for input 'm', as another input has, found 3"),
    ],
)
def test_other_shapes_are_an_input_error(texts, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.").replace("+", r"\+")):
        parse_shapes(texts)


@settings(deadline=None)
@given(st.lists(st.text("xm=×0123456789.+-a ", max_size=12), max_size=3))
def test_any_text_is_shapes_or_an_input_error(texts):
    try:
        points = parse_shapes(texts)
    except InputError:
        points = parse_shapes([])
    assert 1 <= len(points) <= MAX_POINTS
    assert all(size >= 1 for shapes in points for shape in shapes.values() for size in shape)


def swept(*shapes, ms=None):
    latencies = ms or [(1.0, 1.0)] * len(shapes)
    points = []
    for own, (a, b) in zip(shapes, latencies, strict=True):
        items = [measurement(name, (time,)) if time else refused(name, "No.") for name, time in (("a", a), ("b", b))]
        points.append(point(*items, shapes=tuple(own.items())))
    return profile(*points)


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([{"x": (2, 8)}], None),
        ([{"x": (2, 8)}, {"x": (2, 8)}], None),
        ([{"x": (2, 8)}, {"x": (2, 16)}], ("x[1]", (8, 16))),
        ([{"x": (2, 16)}, {"x": (2, 8)}], ("x[1]", (16, 8))),
        ([{"m": (1,), "x": (2, 8), "y": (9,)}, {"m": (1,), "x": (2, 16), "y": (17,)}], ("x[1]", (8, 16))),
        ([{"x": (2, 8), "y": (17,)}, {"x": (2, 16), "y": (9,)}], None),  # one grows, one shrinks
        ([{"x": (1, 8)}, {"x": (1, 16)}, {"x": (2, 16)}], None),  # two vary, each by itself
        ([{"x": (2, 8)}, {"x": (2, 16)}, {"x": (2, 16)}], None),
        ([{"p": (0,), "x": (8,)}, {"p": (8,), "x": (16,)}], ("x[0]", (8, 16))),
        ([{"p": (0,)}, {"p": (8,)}], None),
        ([{"x": (8,)}, {"x": (8, 1)}], None),
        ([{"x": (8,)}, {"y": (16,)}], None),
    ],
)
def test_the_dimension_that_varies(shapes, axis):
    assert sweep_axis(swept(*shapes)) == axis


SIZES = [{"x": (size,)} for size in (100, 200, 400)]


@pytest.mark.parametrize(
    ("ms", "sizes"),
    [
        ([(1, 2), (2, 3), (4, 5)], []),
        ([(1, 2), (4, 2), (9, 3)], [141.4214]),  # as much slower before as faster after
        ([(1, 4), (4, 2), (9, 3)], [158.7401]),
        ([(1, 2), (4, 2), (2, 4)], [141.4214, 282.8427]),
        ([(1, 2), (2, 2), (4, 2)], [200.0]),
        ([(1, 2), (2, 2), (3, 4)], []),  # they touch
        ([(1, 2), (None, 2), (4, 2)], [200.0]),  # over a point at which one did not run
        ([(1, 2), (None, 2), (4, None)], []),
    ],
)
def test_where_two_curves_cross(ms, sizes):
    ordered = swept(*SIZES, ms=ms)
    assert crossovers(ordered, "a", "b") == pytest.approx(sizes)
    assert crossovers(ordered, "b", "a") == pytest.approx(sizes)
    assert crossovers(swept(*SIZES[::-1], ms=ms[::-1]), "a", "b") == pytest.approx(sizes)


def test_equal_latencies_at_a_point_are_crossed_there():
    assert crossovers(swept(*SIZES, ms=[(1, 2), (2, 2), (8, 2)]), "a", "b") == pytest.approx([200.0])


def test_without_a_dimension_that_varies_nothing_crosses():
    assert crossovers(swept({"x": (1,)}, ms=[(1, 2)]), "a", "b") == ()
