"""Input shapes given by the user: what they replace, what they make known, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from explorer.errors import ModelError
from explorer.model import load
from explorer.model.save import serialize

GRAPH = """g (float[batch, seq, 4] x, float[batch, heads, total] mask, float16 scalar) => (float[batch, seq, 4] y) {
    a = Neg (x) y = Abs (a)
}"""


@pytest.fixture
def path(write):
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>' + GRAPH)
    proto.graph.input[1].type.tensor_type.shape.dim[2].dim_param = "past + seq"
    return write(proto)


def test_they_are_declared_and_reach_every_value(path):
    model = load(path, shapes={"x": (2, 938, 4)})
    assert model.shape(model.value("x")) == (2, 938, 4)
    assert model.shape(model.value("a")) == (2, 938, 4)
    assert model.shape(model.value("mask")) == (2, "heads", "past + 938")
    written = onnx.load_from_string(serialize(model.ir)).graph
    dims = [
        [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in (*written.input, *written.output)
    ]
    assert dims == [[2, 938, 4], [2, "heads", "past + 938"], [], [2, 938, 4]]


def test_a_note_says_what_is_assumed(path):
    (note,) = load(path, shapes={"x": [2, 938, 4]}).notes
    assert "x [2, 938, 4] for [batch, seq, 4]" in note


def test_the_file_is_another_without_them(path):
    plain, two, three = load(path), load(path, {"x": (2, 8, 4)}), load(path, {"x": (3, 8, 4)})
    assert len({plain.digest, two.digest, three.digest}) == 3
    assert plain.digest == load(path, shapes={}).digest
    assert {plain.file_digest, two.file_digest, three.file_digest} == {plain.digest}  # that is one and the same
    assert plain.shape(plain.value("x")) == ("batch", "seq", 4)


def test_the_digest_is_of_the_sizes_not_of_their_spelling(path):
    shapes = {"x": (2, 8, 4), "mask": (2, 1, 8)}
    again = {"mask": [np.int64(2), 1, 8], "x": np.array([2, 8, 4])}
    assert load(path, shapes).digest == load(path, again).digest


def test_an_input_of_unknown_rank(write):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float x) => (float[N] y) { y = Neg (x) }'
    )
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    model = load(write(proto), shapes={"x": (7,)})
    assert model.shape(model.value("x")) == (7,)


def test_symbols_in_bodies(write):
    model = load(
        write(
            """g (float[N] x, bool c) => (float[N] y) {
                 y = If (c) <then_branch = t () => (float[N] p) { p = Exp (x) },
                             else_branch = e () => (float[N] q) { q = Neg (x) }>
               }"""
        ),
        shapes={"x": (5,)},
    )
    assert model.shape(model.value("p")) == (5,)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"z": (2, 8, 4)}, "'z'"),
        ({"y": (2, 8, 4)}, "'y'"),
        ({"x": (2, 8)}, "3 dimensions of 'x'"),
        ({"scalar": (1,)}, "0 dimensions of 'scalar'"),
        ({"x": (2, 0, 4)}, "positive"),
        ({"x": (2, -1, 4)}, "positive"),
        ({"x": (2, "seq", 4)}, "positive"),
        ({"x": (2, 8.0, 4)}, "positive"),
        ({"x": (2, 8, 5)}, "expected 4 for dimension 4 of 'x', found 5"),
        ({"x": (2, 8, 4), "mask": (3, 1, 9)}, "dimension batch"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_inputs_there_are(path, shapes, expected):
    with pytest.raises(ModelError) as caught:
        load(path, shapes=shapes)
    sentence = str(caught.value)
    assert expected in sentence
    assert f"inputs of {path} are x [batch, seq, 4], mask [batch, heads, past + seq], scalar []" in sentence
    assert "\n" not in sentence


def test_a_computed_size_that_does_not_follow(write):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n] x, float[m] z) => (float[n] y) { y = Neg (x) }'
    )
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "2*n"
    path = write(proto)
    model = load(path, {"x": (3,), "z": (6,)})
    assert model.shape(model.value("z")) == (6,)
    with pytest.raises(ModelError, match=r"expected 6 .* found 7"):
        load(path, {"x": (3,), "z": (7,)})


def test_a_weight_is_no_input(write):
    path = write("g (float[4] x, float[4] w = {1, 2, 3, 4}) => (float[4] y) { y = Add (x, w) }")
    with pytest.raises(ModelError, match="'w'"):
        load(path, shapes={"w": (4,)})
