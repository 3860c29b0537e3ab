"""Keys of nodes: unique, stable, and the file's own names where these will do."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest
from onnx import helper

from explorer.model import load

NEG = "g (float[N, 4] x) => (float[N, 4] y) { a = Neg (x) y = Abs (a) }"


def test_names_where_they_are_unique(opened):
    model = opened("g (float[N] x) => (float[N] y) { [one] a = Neg (x) [two] y = Neg (a) }")
    assert [model.key(node) for node in model.nodes] == ["one", "two"]


@pytest.mark.parametrize("name", ["", "same"])
def test_made_up_where_they_are_not(opened, name):
    label = f"[{name}] " if name else ""
    model = opened(f"g (float[N] x) => (float[N] y) {{ {label}a = Neg (x) {label}b = Abs (a) {label}y = Neg (b) }}")
    keys = [model.key(node) for node in model.nodes]
    assert len(set(keys)) == 3
    assert [model.node(key) for key in keys] == list(model.nodes)


def test_a_made_up_key_never_collides_with_a_name(write):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {NEG}')
    proto.graph.node[1].name = "Neg:a"  # what the nameless node before it would be called
    model = load(write(proto))
    keys = [model.key(node) for node in model.nodes]
    assert len(set(keys)) == 2
    assert keys[1] == "Neg:a", "a node with a unique name of its own keeps it"


def test_the_same_on_every_load(write):
    path = write("g (float[N] x) => (float[N] y) { a = Neg (x) [n] b = Neg (a) [n] c = Neg (b) y = Abs (c) }")
    first, second = load(path), load(path)
    assert [first.key(n) for n in first.nodes] == [second.key(n) for n in second.nodes]


def test_nodes_without_any_output(write):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "o": 1]> {NEG}')
    for _ in range(2):
        proto.graph.node.append(helper.make_node("Print", ["a"], [], domain="o"))
    model = load(write(proto))
    assert len({model.key(node) for node in model.nodes}) == 4


def test_bodies_follow_their_owner(opened):
    model = opened(
        """g (float[N] x, bool c) => (float[N] y) {
             [first] a = Exp (x)
             [choice] b = If (c) <then_branch = t () => (float[N] o) { [inner] o = Neg (a) },
                                   else_branch = e () => (float[N] p) { [inner] p = Abs (a) }>
             [last] y = Sqrt (b)
           }"""
    )
    assert [node.op_type for node in model.nodes] == ["Exp", "If", "Neg", "Abs", "Sqrt"]
    assert model.op_counts() == {"Exp": 1, "If": 1, "Neg": 1, "Abs": 1, "Sqrt": 1}
    assert len({model.key(node) for node in model.nodes}) == 5
    assert model.has_value("o")
    assert not model.has_node("absent")


def test_op_counts_most_frequent_first(opened):
    model = opened("g (float[N] x) => (float[N] y) { a = Neg (x) b = Abs (a) c = Abs (b) y = Exp (c) }")
    assert next(iter(model.op_counts().items())) == ("Abs", 2)
