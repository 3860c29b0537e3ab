from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.errors import WorkerError
from explorer.runtime.protocol import Call, Failure, Progress, Result, decode, encode

ids = st.integers(min_value=0, max_value=2**40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
messages = (
    st.builds(Call, ids, st.text(), st.dictionaries(st.text(), json_values))
    | st.builds(Progress, ids, st.floats(0, 1), st.text())
    | st.builds(Result, ids, json_values)
    | st.builds(Failure, ids, st.text(), st.text())
)


@given(messages)
def test_a_message_survives_the_wire_as_one_line(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


def test_the_documented_form_is_what_is_sent():
    assert json.loads(encode(Call(7, "explorer.x:f", {"a": 1}))) == {
        "v": 1,
        "id": 7,
        "call": "explorer.x:f",
        "args": {"a": 1},
    }
    assert json.loads(encode(Progress(7, 0.25, "Warming up"))) == {
        "v": 1,
        "id": 7,
        "event": "progress",
        "fraction": 0.25,
        "text": "Warming up",
    }
    assert json.loads(encode(Result(7, [1]))) == {"v": 1, "id": 7, "event": "result", "value": [1]}
    assert json.loads(encode(Failure(7, "SessionError", "no"))) == {
        "v": 1,
        "id": 7,
        "event": "error",
        "kind": "SessionError",
        "message": "no",
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"Segmentation fault\n", "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"id": 1, "event": "result", "value": 1}', "not this version"),
        (b'{"v": 2, "id": 1, "event": "result", "value": 1}', "not this version"),
        (b'{"v": 1, "id": 1, "event": "finished", "value": 1}', "'finished' is no event"),
        (b'{"v": 1, "id": 1, "event": ["result"], "value": 1}', "is no event"),
        (b'{"v": 1, "id": 1, "event": "result"}', "the fields of such a message are id, value"),
        (b'{"v": 1, "id": 1, "event": "result", "value": 1, "more": 2}', "the fields of such a message are id, value"),
        (b'{"v": 1, "id": "1", "event": "result", "value": 1}', "'id' has the wrong type"),
        (b'{"v": 1, "id": 1, "event": "progress", "fraction": true, "text": ""}', "'fraction' has the wrong type"),
        (b'{"v": 1, "id": 1, "call": "f", "args": []}', "'args' has the wrong type"),
    ],
)
def test_garbage_is_refused_with_what_was_found(line, why):
    with pytest.raises(WorkerError, match="Expected a message of worker protocol 1, found") as caught:
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
        encode(Result(1, value))
