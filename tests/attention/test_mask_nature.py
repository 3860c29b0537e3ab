"""The word for a mask, whatever it is written with: what it hides is tried out."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from explorer.attention.block import Layout, MaskTerm
from explorer.attention.mask import summarize
from explorer.attention.mask_probe import Nature, nature
from explorer.model import Model, load

HEADER = '<ir_version: 9, opset_import: ["": 18, "test": 1]>'
BNST: Layout = ("B", "N", "S", "T")

PADDING = """ (int64[batch, seq] tokens) => (float[batch, 1, 1, seq] mask)
<int64[2] axes = {1, 2}, float one = {1}, float low = {-1e9}> {
  wide = Unsqueeze(tokens, axes)  keep = Cast<to = 1>(wide)  hide = Sub(one, keep)  mask = Mul(hide, low)
}"""
MARKED = """ (bool[batch, seq] pads) => (bool[batch, 1, 1, seq] mask)
<int64[2] axes = {1, 2}> { wide = Unsqueeze(pads, axes)  mask = Not(wide) }"""
PAD_NUMBER = """ (int64[batch, seq] input_ids) => (bool[batch, 1, 1, seq] mask)
<int64[2] axes = {1, 2}, int64 pad = {1}> {
  wide = Unsqueeze(input_ids, axes)  same = Equal(wide, pad)  mask = Not(same) }"""
POSITIONS = """
  shape = Shape(x)  rows = Gather(shape, one)  shape2 = Shape(tokens)  keys = Gather(shape2, one)
  past = Sub(keys, rows)  i = Range(past, keys, one)  j = Range(zero, keys, one)  i2 = Unsqueeze(i, one1)
"""
CONSTANTS = "int64 zero = {0}, int64 one = {1}, int64[1] one1 = {1}, int64[2] axes = {1, 2}, int64 window = {3}"
INPUTS = "(int64[batch, total] tokens, float[batch, seq, 8] x)"
CAUSAL = f" {INPUTS} => (bool[seq, total] mask) <{CONSTANTS}> {{ {POSITIONS} mask = LessOrEqual(j, i2) }}"
PAST = f""" (float[batch, past, 8] cache, float[batch, seq, 8] x) => (bool[seq, total] mask) <{CONSTANTS}> {{
  shape = Shape(x)  rows = Gather(shape, one)  shape2 = Shape(cache)  past_rows = Gather(shape2, one)
  keys = Add(past_rows, rows)  i = Range(past_rows, keys, one)  j = Range(zero, keys, one)  i2 = Unsqueeze(i, one1)
  mask = LessOrEqual(j, i2) }}"""
BOTH = f""" {INPUTS} => (bool[batch, 1, seq, total] mask) <{CONSTANTS}> {{ {POSITIONS}
  seen = LessOrEqual(j, i2)  wide = Unsqueeze(tokens, axes)  real = Cast<to = 9>(wide)  mask = And(seen, real) }}"""
WINDOW = f""" {INPUTS} => (bool[seq, total] mask) <{CONSTANTS}> {{ {POSITIONS}
  seen = LessOrEqual(j, i2)  back = Sub(i2, j)  near = Less(back, window)  mask = And(seen, near) }}"""
NEAR = f""" {INPUTS} => (bool[seq, total] mask) <{CONSTANTS}> {{ {POSITIONS}
  back = Sub(i2, j)  far = Abs(back)  mask = Less(far, window) }}"""
LATER = f" {INPUTS} => (bool[seq, total] mask) <{CONSTANTS}> {{ {POSITIONS} mask = GreaterOrEqual(j, i2) }}"
ALIBI = f""" {INPUTS} => (float[seq, total] mask) <{CONSTANTS}> {{ {POSITIONS}
  back = Sub(j, i2)  mask = Cast<to = 1>(back) }}"""
SEGMENTS = """ (int64[batch, seq] segments) => (bool[batch, 1, seq, seq] mask)
<int64[2] rows = {1, 3}, int64[2] cols = {1, 2}> {
  i = Unsqueeze(segments, rows)  j = Unsqueeze(segments, cols)  mask = Equal(i, j) }"""
OUTER = """ (int64[batch, seq] tokens) => (bool[batch, 1, seq, seq] mask)
<int64[2] rows = {1, 3}, int64[2] cols = {1, 2}> {
  i = Unsqueeze(tokens, rows)  j = Unsqueeze(tokens, cols)  both = Mul(i, j)  mask = Cast<to = 9>(both) }"""
GIVEN = " (bool[batch, 1, seq, seq] given) => (bool[batch, 1, seq, seq] mask) { mask = Identity(given) }"
NUMBERS = " (float[batch, 1, 1, seq] given) => (float[batch, 1, 1, seq] mask) { mask = Identity(given) }"
TABLE = """ (float[batch, 4, 8] x) => (float[4, 4] mask)
<float[4] table = {0.5, -1.0, 2.0, 0.25}, int64[4, 4] at = {0, 1, 2, 3, 1, 0, 1, 2, 2, 1, 0, 1, 3, 2, 1, 0}> {
  mask = Gather(table, at) }"""
SHIFTED = """ (float[batch, 4, 8] x) => (float[4, 4] mask)
<float[4, 4] mask = {0, 0, -100, -100, 0, 0, -100, -100, -100, -100, 0, 0, -100, -100, 0, 0}> { y = Identity(x) }"""
CUT_OFF = SHIFTED.replace("-100", "-1e9")
NOTHING = """ (float[batch, 3, 8] x) => (bool[3, 3] mask)
<bool[3, 3] all = {1, 1, 1, 1, 1, 1, 1, 1, 1}> { none = Not(all)  mask = Not(none) }"""
COMPUTED = """ (float[batch, seq, seq] x) => (bool[batch, seq, seq] mask)
<float zero = {0}> { soft = Softmax(x)  mask = Greater(soft, zero) }"""
FOREIGN = " (int64[batch, seq] tokens) => (bool[batch, 1, 1, seq] mask) { mask = test.Masked(tokens) }"
SLICES = f""" {INPUTS} => (float[batch, 1, seq, total] mask)
<{CONSTANTS}, float low = {{-3.4e38}}, float zero32 = {{0}}, int64[1] all = {{-1}}> {{ {POSITIONS}
  later = Greater(j, i2)  full = Where(later, low, zero32)  four = Unsqueeze(full, front)
  wide = Unsqueeze(tokens, axes)  pad = Equal(wide, zero)  shape3 = Concat<axis = 0>(batch, one1, shape4)
  front = Constant<value = int64[2] {{0, 1}}>()
  shape4 = Shape(full)  batch = Shape<start = 0, end = 1>(x)
  spread = Expand(four, shape3)  padded = Where(pad, low, spread)
  flat = Reshape(padded, all)  at = Range(zero, count, one)  count = Size(flat)  at2 = Unsqueeze(at, one1)
  again = ScatterND(flat, at2, flat)  mask = Reshape(again, shape3) }}"""


def term(text: str, path: Path, coefficient: float = 1.0, keep_when: bool = True) -> tuple[Model, MaskTerm]:
    model = onnx.parser.parse_model(f"{HEADER} g {text}")
    file = path / "mask.onnx"
    file.write_bytes(model.SerializeToString())
    loaded = load(file)
    value = loaded.value("mask")
    boolean = "(bool" in text.split("=>")[1]
    shape = loaded.shape(value) or ()
    return loaded, MaskTerm(
        kind="boolean" if boolean else "additive",
        value="mask",
        shape=shape,
        layout=BNST,
        dtype="bool" if boolean else "float32",
        coefficient=coefficient,
        fill=-1e9 if boolean else 0.0,
        keep_when=keep_when,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PADDING, Nature(padding=True)),
        (MARKED, Nature(padding=True)),
        (PAD_NUMBER, Nature(padding=True)),
        (OUTER, Nature(padding=True)),
        (CAUSAL, Nature(causal=True)),
        (PAST, Nature(causal=True)),
        (BOTH, Nature(causal=True, padding=True)),
        (SLICES, Nature(causal=True, padding=True)),
        (WINDOW, Nature(causal=True, hides=True)),
        (NEAR, Nature(hides=True)),
        (LATER, Nature(hides=True)),
        (SEGMENTS, Nature(hides=True)),
        (GIVEN, Nature(hides=True)),
        (ALIBI, Nature(bias=True)),
        (NUMBERS, Nature(bias=True)),
        (TABLE, Nature(bias=True)),
        (SHIFTED, Nature(bias=True)),
        (CUT_OFF, Nature(hides=True)),
        (NOTHING, Nature()),
        (COMPUTED, Nature(hides=True)),
        (FOREIGN, Nature(hides=True)),
    ],
)
def test_the_nature_of_a_mask(tmp_path, text, expected) -> None:
    assert nature(*term(text, tmp_path)) == expected


def test_the_sign_and_the_side_of_a_term_count(tmp_path) -> None:
    assert nature(*term(PADDING, tmp_path, coefficient=-1.0)).bias
    assert nature(*term(CAUSAL, tmp_path, keep_when=False)) == Nature(hides=True)
    assert nature(*term(MARKED, tmp_path, keep_when=False)) == Nature(padding=True)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ((), "none"),
        ((CAUSAL,), "causal"),
        ((PADDING,), "padding"),
        ((BOTH,), "causal+padding"),
        ((WINDOW,), "boolean"),
        ((ALIBI,), "additive"),
        ((NOTHING,), "none"),
    ],
)
def test_the_word_for_a_mask(tmp_path, texts, kind) -> None:
    found = [term(text, tmp_path) for text in texts]
    terms = tuple(item for _, item in found)
    model = found[0][0] if found else term(CAUSAL, tmp_path)[0]
    mask = summarize(model, terms)
    assert (mask.kind, mask.terms) == (kind, terms)
