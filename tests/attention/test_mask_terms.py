"""What is added to logits or put in their place, and what of it changes nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from explorer.attention.block import MaskTerm
from explorer.attention.mask import additive_term, boolean_term, is_zero
from explorer.model import Model, load

LAYOUT = ("B", "N", "S", "T")
SIGNATURE = "(float[batch, 4, seq, seq] x, bool[batch, 1, 1, seq] keep, float[batch, 1, seq, seq] bias)"
CONSTANTS = """float low = {-1e9}, float inf = {-inf}, float zero = {0}, float one = {1}, float small = {-100},
float[1, 1] table = {-1e9}, double wide = {-65504}, bool[1, 1, 1, 1] yes = {1}, int64[4] ones4 = {1, 1, 1, 1},
float[2] noughts = {0, 0}, bool[2] mixed = {1, 0}, float[1] tiny = {1e-30}, int64[1] flat = {-1}"""


def model(text: str, path: Path) -> Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]> g {SIGNATURE} => (float y) <{CONSTANTS}> {{ {text} }}'
    )
    file = path / "mask.onnx"
    file.write_bytes(proto.SerializeToString())
    return load(file)


@pytest.mark.parametrize(
    ("fill", "number"),
    [
        ("value = Identity(low)", -1e9),
        ("value = Identity(inf)", float("-inf")),
        ("value = Cast<to = 1>(wide)", -65504.0),
        ("value = CastLike(wide, x)", -65504.0),
        ("half = Cast<to = 10>(low)  value = Cast<to = 1>(half)", float("-inf")),
        ("shape = Shape(x)  value = Expand(table, shape)", -1e9),
        ("shape = Shape(x)  up = ConstantOfShape<value = float[1] {20000}>(shape)  value = Neg(up)", -2e4),
        ("value = Identity(small)", None),
        ("value = Identity(bias)", None),
        ("value = Where(keep, low, small)", None),
    ],
)
def test_a_fill_is_a_number_that_vanishes(tmp_path, fill, number) -> None:
    loaded = model(f"{fill}  y = Where(keep, x, value)", tmp_path)
    term = boolean_term(loaded, loaded.nodes[-1], loaded.value("x"), 1.0, LAYOUT)
    assert (None if term is None else term.fill) == number


def where(text: str, path: Path, coefficient: float = 1.0) -> MaskTerm | None:
    loaded = model(text, path)
    (node,) = (node for node in loaded.nodes if node.op_type == "Where")
    return boolean_term(loaded, node, loaded.value("x"), coefficient, LAYOUT)


def test_a_boolean_term_says_which_side_is_kept(tmp_path) -> None:
    kept = where("y = Where(keep, x, low)", tmp_path)
    assert kept == MaskTerm("boolean", "keep", ("batch", 1, 1, "seq"), LAYOUT, "bool", fill=-1e9)
    hidden = where("y = Where(keep, low, x)", tmp_path, coefficient=0.5)
    assert hidden is not None
    assert (hidden.keep_when, hidden.fill) == (False, -5e8)
    assert where("y = Where(keep, x, low)", tmp_path, coefficient=-1.0) is None


def test_an_additive_term_keeps_its_coefficient(tmp_path) -> None:
    loaded = model("y = Sub(x, bias)", tmp_path)
    term = additive_term(loaded, loaded.value("bias"), -1.0, LAYOUT, loaded.value("x"))
    assert term == MaskTerm("additive", "bias", ("batch", 1, "seq", "seq"), LAYOUT, "float32", coefficient=-1.0)


NONE_HIDDEN = "shape = Shape(x)  all = Expand(yes, shape)  flag = Cast<to = 1>(all)  no = Sub(one, flag)"


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("mask = Identity(zero)", True),
        ("mask = Identity(noughts)", True),
        ("shape = Shape(x)  mask = ConstantOfShape(shape)", True),
        ("shape = Shape(x)  mask = Expand(zero, shape)", True),
        (
            "shape = Shape(x)  full = ConstantOfShape(shape)  half1 = Cast<to = 10>(full)  mask = Reshape(half1, flat)",
            True,
        ),
        ("shape = Shape(x)  full = ConstantOfShape(shape)  mask = Mul(full, low)", True),
        ("shape = Shape(x)  all = Expand(yes, shape)  mask = Where(all, zero, inf)", True),
        (f"{NONE_HIDDEN}  mask = Mul(no, low)", True),
        (f"{NONE_HIDDEN}  mask = Mul(no, inf)", False),  # 0·inf is no number
        ("shape = Shape(x)  full = ConstantOfShape(shape)  mask = Add(full, tiny)", False),
        ("mask = Where(mixed, zero, inf)", False),
        ("mask = Where(keep, zero, inf)", False),
        ("mask = Mul(bias, zero)", False),  # the bias may be infinite
        ("mask = Sub(bias, bias)", False),
        ("mask = MatMul(x, x)", False),
    ],
)
def test_zero_is_what_provably_adds_nothing(tmp_path, text, zero) -> None:
    loaded = model(text + "  y = Add(x, mask)", tmp_path)
    assert is_zero(loaded, loaded.value("mask")) is zero
