"""`describe`: the graph as frozen values, and nothing of it missing or made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from explorer.model import describe, load

GRAPH = """words (float[N, 4] x, float[N, 4] unused) => (float[N, 4] y, float[N, 4] a) <float[4] w = {1, 2, 3, 4}> {
    [scale] a = Mul (x, w)
    [half] c = Constant <value = float {0.5}> ()
    [less] d = Mul (a, c)
    [last] y = Add (d, a)
}"""


def test_the_whole_of_a_small_graph(opened):
    graph = describe(opened(GRAPH))
    assert graph.name == "words"
    assert graph.inputs == ("x", "unused")
    assert graph.outputs == ("y", "a")
    assert [(n.key, n.op_type, n.inputs, n.outputs) for n in graph.nodes] == [
        ("scale", "Mul", ("x", "w"), ("a",)),
        ("half", "Constant", (), ("c",)),
        ("less", "Mul", ("a", "c"), ("d",)),
        ("last", "Add", ("d", "a"), ("y",)),
    ]
    kinds = {name: tensor.kind for name, tensor in graph.tensors.items()}
    assert kinds == {
        "x": "input",
        "unused": "input",
        "w": "initializer",
        "a": "node",
        "c": "node",
        "d": "node",
        "y": "node",
    }
    assert graph.tensors["a"].consumers == ("less", "last")
    assert graph.tensors["unused"].consumers == ()
    assert {name for name, tensor in graph.tensors.items() if tensor.is_output} == {"y", "a"}
    assert {name: tensor.producer for name, tensor in graph.tensors.items()} == {
        "x": None,
        "unused": None,
        "w": None,
        "a": "scale",
        "c": "half",
        "d": "less",
        "y": "last",
    }
    assert graph.tensors["w"].type == "float32[4]"
    assert graph.tensors["d"].type == "float32[N, 4]"


@pytest.mark.parametrize(("ir_version", "inputs", "kind"), [(3, ("x",), "initializer"), (4, ("x", "w"), "input")])
def test_a_weight_that_is_listed_as_an_input(opened, ir_version, inputs, kind):
    """Up to IR version 3 all had to be; since then it means that a caller may replace it."""
    text = "g (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add (x, w) }"
    graph = describe(opened(text, header=f'<ir_version: {ir_version}, opset_import: ["": 8]>'))
    assert graph.inputs == inputs
    assert graph.tensors["w"].kind == kind


def test_a_node_that_reads_a_tensor_twice_is_one_consumer(opened):
    graph = describe(opened("g (float[N] x) => (float[N] y) { [twice] y = Mul (x, x) }"))
    assert graph.tensors["x"].consumers == ("twice",)
    assert graph.nodes[0].inputs == ("x", "x")


def test_values_are_frozen(opened):
    graph = describe(opened(GRAPH))
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes[0].op_type = "Other"


def test_optional_inputs_and_outputs_that_are_left_out(write):
    nodes = [
        helper.make_node("Clip", ["x", "", "top"], ["a"], name="clip"),
        helper.make_node("LayerNormalization", ["a", "top4"], ["y", "", "rest"], name="norm"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(np.array(1, np.float32), "top"),
            numpy_helper.from_array(np.ones(4, np.float32), "top4"),
        ],
    )
    info = describe(load(write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))))
    assert info.nodes[0].inputs == ("x", "", "top")
    assert info.nodes[1].outputs == ("y", "", "rest")
    assert info.tensors["top"].consumers == ("clip",)
    assert "" not in info.tensors or info.tensors[""].kind == "missing"


class TestConstant:
    def flags(self, graph) -> dict[str, bool]:
        return {node.key: node.constant for node in graph.nodes}

    def test_constants_and_what_is_computed_from_them(self, opened):
        graph = describe(opened(GRAPH))
        assert self.flags(graph) == {"scale": False, "half": True, "less": False, "last": False}

    def test_shape_arithmetic(self, opened):
        graph = describe(
            opened(
                """g (float[N, 4] x) => (float[N, 4] y) {
                     [s] s = Shape (x) [i] i = Constant <value = int64 {0}> () [d] d = Gather (s, i)
                     [f] f = Cast <to = 1> (d) [y] y = Mul (x, f)
                   }"""
            )
        )
        assert self.flags(graph) == {"s": True, "i": True, "d": True, "f": True, "y": False}

    def test_random_numbers_are_not_constant(self, opened):
        graph = describe(opened("g () => (float[2] y) { [r] r = RandomNormal <shape = [2]> () [y] y = Neg (r) }"))
        assert self.flags(graph) == {"r": False, "y": False}

    def test_an_initializer_that_an_input_overrides(self, write):
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[1] w) => (float[1] y) { [n] y = Neg (w) }'
        )
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
        graph = describe(load(write(proto)))
        assert graph.tensors["w"].kind == "input"
        assert self.flags(graph) == {"n": False}

    def test_a_body_reads_more_than_its_owner_s_inputs(self, opened):
        graph = describe(
            opened(
                """g (float[N] x) => (float[N] y) {
                     [c] c = Constant <value = bool {1}> ()
                     [choice] y = If (c) <then_branch = t () => (float[N] o) { o = Neg (x) },
                                          else_branch = e () => (float[N] p) { p = Abs (x) }>
                   }"""
            )
        )
        assert self.flags(graph) == {"c": True, "choice": False}


class TestAttributes:
    def text(self, opened, node: str) -> dict[str, str]:
        return dict(describe(opened(f"g (float[N, 4] x) => (float[N, 4] y) {{ {node} }}")).nodes[0].attributes)

    def test_numbers(self, opened):
        assert self.text(opened, "y = Softmax <axis = -1> (x)") == {"axis": "-1"}
        assert self.text(opened, "y = LeakyRelu <alpha = 0.5> (x)") == {"alpha": "0.5"}

    def test_a_float_as_it_was_written(self, opened):
        """A float32 attribute, not the 17 digits of its value as a double."""
        assert self.text(opened, "y = LeakyRelu <alpha = 0.1> (x)") == {"alpha": "0.1"}

    def test_lists(self, opened):
        assert self.text(opened, "y = Transpose <perm = [1, 0]> (x)") == {"perm": "[1, 0]"}
        long = self.text(opened, "y = Constant <value_ints = [1, 2, 3, 4, 5, 6, 7, 8, 9]> ()")
        assert long == {"value_ints": "[1, 2, 3, 4, 5, 6, 7, 8, …]"}

    def test_text(self, opened):
        assert self.text(opened, 'y = Einsum <equation = "ij->ji"> (x)') == {"equation": "ij->ji"}

    def test_small_and_large_tensors(self, opened):
        small = self.text(opened, "y = Constant <value = float[2] {1, 2}> ()")
        assert small == {"value": "float32[2] = [1.0, 2.0]"}
        numbers = ", ".join("1" * 9)
        assert self.text(opened, f"y = Constant <value = float[9] {{{numbers}}}> ()") == {"value": "float32[9]"}

    def test_graphs(self, opened):
        graph = describe(
            opened(
                """g (float[N] x, bool c) => (float[N] y) {
                     y = If (c) <then_branch = t () => (float[N] o) { o = Neg (x) },
                                 else_branch = e () => (float[N] p) { p = Abs (x) }>
                   }"""
            )
        )
        assert dict(graph.nodes[0].attributes) == {"then_branch": "a graph", "else_branch": "a graph"}


@pytest.mark.parametrize("sample", ["f5_dit_fp16", "bert_fp32", "gpt_fp32"])
def test_samples_are_described_completely(samples, sample):
    proto = onnx.load(samples / f"{sample}.onnx")
    graph = describe(load(samples / f"{sample}.onnx"))
    assert len(graph.nodes) == len(proto.graph.node)
    names = {name for node in proto.graph.node for name in (*node.input, *node.output) if name}
    assert names <= set(graph.tensors)
    produced = {name: node for node in graph.nodes for name in node.outputs}
    for node in graph.nodes:
        for name in node.inputs:
            if name:
                assert node.key in graph.tensors[name].consumers
                assert name in produced or graph.tensors[name].kind in ("input", "initializer")
