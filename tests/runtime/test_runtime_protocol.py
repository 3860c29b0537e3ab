from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.errors import WorkerError
from explorer.runtime.protocol import Call, Failure, Progress, Result, Usage, decode, encode

ids = st.integers(min_value=0, max_value=2**40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
sizes = st.integers(min_value=0, max_value=2**50)
usages = st.builds(Usage, st.floats(0, 1e6), sizes, sizes, st.none() | sizes)
messages = (
    st.builds(Call, ids, st.text(), st.dictionaries(st.text(), json_values))
    | st.builds(Progress, ids, st.floats(0, 1), st.text())
    | st.builds(Result, ids, json_values, usages, st.booleans())
    | st.builds(Failure, ids, st.text(), st.text(), usages, st.booleans())
)


@given(messages)
def test_a_message_survives_the_wire_as_one_line(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


def test_the_documented_form_is_what_is_sent():
    assert json.loads(encode(Call(7, "explorer.x:f", {"a": 1}))) == {
        "v": 2,
        "id": 7,
        "call": "explorer.x:f",
        "args": {"a": 1},
    }
    assert json.loads(encode(Progress(7, 0.25, "Warming up"))) == {
        "v": 2,
        "id": 7,
        "event": "progress",
        "fraction": 0.25,
        "text": "Warming up",
    }
    usage = {"wall_s": 3.2, "rss_bytes": 8, "peak_rss_bytes": 9, "gpu_bytes": None}
    assert json.loads(encode(Result(7, [1], Usage(3.2, 8, 9, None), False))) == {
        "v": 2,
        "id": 7,
        "event": "result",
        "value": [1],
        "usage": usage,
        "last": False,
    }
    assert json.loads(encode(Failure(7, "SessionError", "no", Usage(3.2, 8, 9, 10), True))) == {
        "v": 2,
        "id": 7,
        "event": "error",
        "kind": "SessionError",
        "message": "no",
        "usage": usage | {"gpu_bytes": 10},
        "last": True,
    }


USAGE = b'{"wall_s": 1, "rss_bytes": 1, "peak_rss_bytes": 1, "gpu_bytes": null}'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"Segmentation fault\n", "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"id": 1, "event": "progress", "fraction": 1, "text": ""}', "not this version"),
        (b'{"v": 1, "id": 1, "event": "progress", "fraction": 1, "text": ""}', "not this version"),
        (b'{"v": 2, "id": 1, "event": "finished", "value": 1}', "'finished' is no event"),
        (b'{"v": 2, "id": 1, "event": ["result"], "value": 1}', "is no event"),
        (b'{"v": 2, "id": 1, "event": "result"}', "the fields of a Result are id, value, usage, last"),
        (
            b'{"v": 2, "id": 1, "event": "progress", "fraction": 1, "text": "", "more": 2}',
            "the fields of a Progress are",
        ),
        (b'{"v": 2, "id": "1", "event": "progress", "fraction": 1, "text": ""}', "'id' has the wrong type"),
        (b'{"v": 2, "id": 1, "event": "progress", "fraction": true, "text": ""}', "'fraction' has the wrong type"),
        (b'{"v": 2, "id": 1, "call": "f", "args": []}', "'args' has the wrong type"),
        (b'{"v": 2, "id": 1, "event": "result", "value": 1, "usage": 1, "last": false}', "'usage' has the wrong type"),
        (b'{"v": 2, "id": 1, "event": "result", "value": 1, "usage": {}, "last": false}', "the fields of a Usage are"),
        (
            b'{"v": 2, "id": 1, "event": "result", "value": 1, "last": false, "usage": '
            + USAGE.replace(b"null", b"1.5")
            + b"}",
            "'gpu_bytes' has the wrong type",
        ),
        (
            b'{"v": 2, "id": 1, "event": "result", "value": 1, "last": 0, "usage": ' + USAGE + b"}",
            "'last' has the wrong type",
        ),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_garbage_is_refused_with_what_was_found(line, why):
    with pytest.raises(WorkerError, match="Expected a message of worker protocol 2, found") as caught:
        decode(line)
    assert why in str(caught.value)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_worker_error(line):
    try:
        decode(line)
    except WorkerError as error:
        assert "\n" not in str(error)  # noqa: PT017 - random bytes may, in principle, be a message


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_what_is_not_json_cannot_be_sent(value):
    with pytest.raises(WorkerError, match="plain JSON"):
        encode(Result(1, value, Usage(0.0, 0, 0, None), False))
