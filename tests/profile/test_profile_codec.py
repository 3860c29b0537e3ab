from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_values import PROFILE, large_trace, measurement, point, profile

from explorer.errors import InputError
from explorer.profile import codec
from explorer.profile.values import Profile


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    kind: Literal["a", "b"]
    time_us: float
    count: int
    sure: bool
    places: tuple[int, ...]
    words: tuple[str, ...]
    pair: tuple[str, int]
    maybe: float | None


@dataclass(frozen=True, slots=True)
class Part:
    title: str
    time_ms: float
    rows: tuple[Row, ...]
    nested: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Whole:
    part: Part | None
    parts: tuple[Part, ...]
    label: str


nanoseconds = st.integers(-(10**12), 10**12)
rows = st.builds(
    Row,
    name=st.text(max_size=3),
    kind=st.sampled_from(["a", "b"]),
    time_us=nanoseconds.map(lambda ns: round(ns / 1000, 3)),
    count=st.integers(),
    sure=st.booleans(),
    places=st.lists(st.integers(), max_size=3).map(tuple),
    words=st.lists(st.text(max_size=2), max_size=3).map(tuple),
    pair=st.tuples(st.text(max_size=2), st.integers()),
    maybe=st.none() | nanoseconds.map(lambda ns: round(ns / 1e6, 6)),
)
parts = st.builds(
    Part,
    title=st.text(max_size=3),
    time_ms=nanoseconds.map(lambda ns: round(ns / 1e6, 6)),
    rows=st.lists(rows, max_size=4).map(tuple),
    nested=st.lists(st.tuples(st.text(max_size=2), st.lists(st.integers(), max_size=2).map(tuple)), max_size=2).map(
        tuple
    ),
)
wholes = st.builds(Whole, part=st.none() | parts, parts=st.lists(parts, max_size=2).map(tuple), label=st.text())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wholes)
def test_what_is_written_is_read(whole):
    document = json.loads(json.dumps(codec.to_json(whole), allow_nan=False))
    assert codec.from_json(Whole, document) == whole


def part(*rows: Row) -> Part:
    return Part("t", 1.0, rows, ())


ROW = Row("n", "a", 1.5, 2, True, (1,), ("n", "w"), ("p", 3), None)


def test_rows_are_columns_and_the_most_frequent_string_is_the_first():
    other = Row("n", "b", 2.0, 2, False, (), (), ("n", 3), 0.5)
    assert codec.to_json(part(ROW, other)) == {
        "title": "t",
        "time_ms": 1,
        "rows": {
            "name": [0, 0],
            "kind": [1, 2],
            "time_us": [1.5, 2],
            "count": [2, 2],
            "sure": [True, False],
            "places": [[1], []],
            "words": [[0, 3], []],
            "pair": [[4, 3], [0, 3]],
            "maybe": [None, 0.5],
        },
        "nested": [],
        "strings": ["n", "a", "b", "w", "p"],
    }


def test_times_are_written_to_the_nanosecond():
    written = codec.to_json(Part("t", 1.23456789, (Row(**{**as_dict(ROW), "time_us": 2.00049}),), ()))
    assert (written["time_ms"], written["rows"]["time_us"]) == (1.234568, [2])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_and_not_read(number):
    written = codec.to_json(Part("t", number, (), ()))
    assert written["time_ms"] is None
    for value in (None, number, 10**400):
        with pytest.raises(ValueError, match=r"Part\.time_ms should be a finite number"):
            codec.from_json(Part, written | {"time_ms": value})


def as_dict(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


def column(name: str, value: Any) -> dict[str, Any]:
    written = codec.to_json(part(ROW, ROW))
    return written | {"rows": written["rows"] | {name: value}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "Part has no list 'strings'"),
        ({"strings": [1]}, "Part has no list 'strings'"),
        ({"strings": []}, "Part has no 'title'"),
        (codec.to_json(part()) | {"title": 1}, r"Part\.title should be str, found '1'"),
        (codec.to_json(part()) | {"time_ms": True}, r"Part\.time_ms should be a finite number, found 'True'"),
        (codec.to_json(part()) | {"rows": []}, r"Part\.rows should be an object"),
        (codec.to_json(part()) | {"nested": {}}, r"Part\.nested should be a list"),
        (codec.to_json(part()) | {"nested": [["a"]]}, r"Part\.nested\[0\] should be 2 items, found '1'"),
        (column("count", [1]), r"Part\.rows\.count should be 2 items, found '1'"),
        (column("count", {}), r"Part\.rows\.count should be a list"),
        (column("count", [1, True]), r"Part\.rows\.count\[1\] should be int, found 'True'"),
        (column("count", [1, 1.5]), r"Part\.rows\.count\[1\] should be int"),
        (column("name", [0, -1]), r"Part\.rows\.name\[1\] should be a place in the list of 4 strings, found '-1'"),
        (column("name", [0, 4]), r"Part\.rows\.name\[1\] should be a place"),
        (column("name", ["n", "n"]), r"Part\.rows\.name\[0\] should be a place"),
        (column("kind", [1, 0]), r"Part\.rows\.kind\[1\] should be 'a' or 'b', found 'n'"),
        (column("time_us", [1, math.nan]), r"Part\.rows\.time_us\[1\] should be a finite number"),
        (column("time_us", [1, 10**400]), r"Part\.rows\.time_us\[1\] should be a finite number"),
        (column("words", [[0], [99]]), r"Part\.rows\.words\[1\] should be a place"),
        (column("words", [[0], 0]), r"Part\.rows\.words\[1\] should be a list"),
        (column("pair", [[0, 1], [0, "x" * 99]]), r"Part\.rows\.pair\[1\]\[1\] should be int, found 'x{40}'"),
    ],
)
def test_what_is_damaged_is_said_with_its_place(document, message):
    with pytest.raises(ValueError, match=message):
        codec.from_json(Part, document)


def paths(document: Any, path: tuple[Any, ...] = ()):
    """Where something stands in a document, itself included."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from paths(value, (*path, key))


PLACES = [path for path in paths(PROFILE.to_json()) if path]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), json_values)
def test_whatever_stands_anywhere_a_profile_is_read_or_refused_in_words(path, value):
    document = json.loads(json.dumps(PROFILE.to_json()))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    try:
        found = Profile.from_json(document)
    except InputError as error:
        found, words = PROFILE, str(error)
    else:
        words = ""
    assert Profile.from_json(found.to_json()) == found
    assert len(words) < 300


def test_a_large_profile_stays_small():
    names = ("original", "fused", "other", "fourth")
    lengths = (256, 512, 1024, 2048, 4096, 8192)
    large = profile(
        *(
            point(
                *(measurement(name, trace=large_trace(1000, length)) for name in names),
                shapes=(("x", (2, length, 100)),),
            )
            for length in lengths
        )
    )
    document = large.to_json()
    text = json.dumps(document, separators=(",", ":"))
    assert len(text) < 3_000_000
    read = Profile.from_json(json.loads(text))
    assert read.points[5].measurements[3].trace.timeline[1999].duration_us == pytest.approx(
        large.points[5].measurements[3].trace.timeline[1999].duration_us, abs=0.0006
    )
    assert read.to_json() == document
