"""Nodes that do not fit their operator are refused before anyone trips over them; unknown operators may be anything."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest
from onnx import helper

from explorer.errors import ModelError
from explorer.model import load
from explorer.model.signatures import Signatures

HEADER = '<ir_version: 8, opset_import: ["": 17, "my": 1]>'


@pytest.mark.parametrize(
    ("node", "flaw"),
    [
        ("z = MatMul (x)", "1 inputs"),
        ("z = Shape ()", "0 inputs"),
        ("z = Cast (x)", "not all attributes of ['to']"),
        ('z = Softmax <axis = "last"> (x)', "'axis' of another type"),
        ("z = Transpose <perm = 0> (x)", "'perm' of another type"),
        ("z = ai.onnx.ml.Scaler <scale = 1> (x)", "'scale' of another type"),
    ],
)
def test_refused(write, node, flaw):
    header = HEADER.replace('"my"', '"ai.onnx.ml": 3, "my"')
    with pytest.raises(ModelError) as caught:
        load(write(f"g (float[N] x) => (float[N] y) {{ [bad] {node} y = Neg (x) }}", header=header))
    sentence = str(caught.value)
    assert flaw in sentence
    assert "'bad'" in sentence
    assert "\n" not in sentence


def test_a_node_without_outputs(write):
    proto = onnx.parser.parse_model(HEADER + "g (float[N] x) => (float[N] y) { y = Neg (x) }")
    proto.graph.node.append(helper.make_node("Neg", ["x"], [], name="bad"))
    with pytest.raises(ModelError, match=r"'bad'.*0 outputs"):
        load(write(proto))


@pytest.mark.parametrize(
    "node",
    [
        "z = my.MatMul (x)",
        "z = com.microsoft.FusedMatMul <axis = 1> (x)",
        "z = Unheard <axis = 1.0> ()",
        "z = Softmax <unheard = 1.0> (x)",
        "z = Clip (x, , )",
        "z = Squeeze <axes = [0]> (x)",
    ],
)
def test_open_to_what_is_not_known(write, node):
    assert len(load(write(f"g (float[N] x) => (float[N] y) {{ {node} y = Neg (x) }}", header=HEADER)).nodes) == 2


@pytest.mark.parametrize(("opset", "fits"), [(11, True), (13, False)])
def test_the_version_that_the_graph_imports(write, opset, fits):
    """Unsqueeze had its axes as an attribute until opset 12."""
    path = write(
        "g (float[N] x) => (float[1, N] y) { y = Unsqueeze <axes = [0]> (x) }",
        header=f'<ir_version: 8, opset_import: ["ai.onnx": {opset}]>',
    )
    if fits:
        assert len(load(path).nodes) == 1
    else:
        with pytest.raises(ModelError, match="1 inputs"):
            load(path)


def test_a_function_has_versions_of_its_own(write):
    text = (
        HEADER + "g (float[N] x) => (float[1, N] y) { y = my.Unsqueeze (x) }"
        '<domain: "my", opset_import: ["": 11]> Unsqueeze (a) => (b) { b = Unsqueeze <axes = [0]> (a) }'
    )
    assert len(load(write(onnx.parser.parse_model(text))).nodes) == 1


def test_a_function_in_the_place_of_an_operator():
    signatures = Signatures([helper.make_opsetid("", 17)], {("", "MatMul", "")})
    assert signatures.of(("", "MatMul", "")).inputs == 0
    assert signatures.of(("", "Gemm", "")).inputs == 2
