"""Sizes that a graph demands of its inputs are found, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import parser

from explorer.model import Model, load
from explorer.model.dims import add


def loaded(tmp_path: Path, signature: str, body: str) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}'
    path = tmp_path / "demanding.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return load(path)


def test_a_sum_with_a_number_of_rows_leaves_the_symbol_one_size(tmp_path):
    model = loaded(
        tmp_path,
        "(float[text, 4] a, float[36, 4] b, float[52, 4] c) => (float[rows, 4] y)",
        "both = Concat<axis = 0>(a, b)  y = Add(both, c)",
    )
    assert model.shape(model.value("a")) == (16, 4)
    assert model.shape(model.value("both")) == (52, 4)
    assert any("text = 16" in note for note in model.notes)


def test_one_size_leads_to_the_next(tmp_path):
    """[batch, text] reshaped to [2, -1] and added to 32 columns: known once text is."""
    model = loaded(
        tmp_path,
        "(float[batch, text] a, float[16, 3] b, float[2, 32] c) => (float[2, 32] y, float[batch, 3] z)",
        "shape = Constant<value_ints = [2, -1]>()  folded = Reshape(a, shape)  z = MatMul(a, b)  y = Add(folded, c)",
    )
    assert model.shape(model.value("a")) == (4, 16)


def test_of_two_symbols_one_is_what_the_other_leaves(tmp_path):
    model = loaded(
        tmp_path,
        "(float[words, 4] a, float[tokens, 4] b, float[13, 4] c) => (float[13, 4] y)",
        "both = Concat<axis = 0>(a, b)  y = Add(both, c)",
    )
    (words, _), (tokens, _) = (model.shape(model.value(name)) or () for name in ("a", "b"))
    assert add(words, tokens) == 13
    assert model.shape(model.value("both")) == (13, 4)


def test_sizes_that_must_be_equal_share_a_name_without_a_word(tmp_path):
    model = loaded(tmp_path, "(float[s, t] a, float[u, 4] b) => (float[s, 4] y)", "y = MatMul(a, b)")
    assert (model.shape(model.value("a")) or ())[1] == (model.shape(model.value("b")) or ())[0]
    assert model.notes == ()


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        # one row is broadcast: batch may be 1 as well as 8
        ("(float[batch, 4] a, float[8, 4] b) => (float[n, 4] y)", "y = Add(a, b)"),
        # every length from 64 on is cut to 64
        (
            "(float[seq, 4] a, float[64, 4] b) => (float[n, 4] y)",
            "zero = Constant<value_ints = [0]>()  end = Constant<value_ints = [64]>()"
            " cut = Slice(a, zero, end, zero)  y = Add(cut, b)",
        ),
    ],
)
def test_what_leaves_a_choice_is_left_open(tmp_path, signature, body):
    model = loaded(tmp_path, signature, body)
    assert all(isinstance(dim, str) for dim in (model.shape(model.value("a")) or ())[:1])
    assert model.notes == ()
