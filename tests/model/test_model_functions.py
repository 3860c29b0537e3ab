"""Functions with attention are written out where they are called, and compute what they did."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from function_models import ATTENTION, X, functions, op_types, parsed, proven, run
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from explorer.model import load
from explorer.model.save import serialize


class TestMeaning:
    def test_every_call_is_a_block_of_its_own(self, write):
        model = proven(
            write,
            parsed(
                "g (float[B, S, 4] x) => (float[B, S, 4] y) { [first] h = my.Attend (x) y = my.Attend (h) }" + ATTENTION
            ),
            x=X,
        )
        assert op_types(model) == ["Transpose", "MatMul", "Constant", "Mul", "Softmax", "MatMul"] * 2
        assert [model.key(node) for node in model.nodes if node.op_type == "Softmax"] == [
            "first/softmax",
            "Attend/softmax",
        ]
        assert model.has_value("first/l")
        assert model.has_value("h")
        assert functions(model) == set()
        (note,) = model.notes
        assert "my.Attend (2×)" in note
        assert "unchanged" in note

    def test_attributes_of_the_call_defaults_and_references(self, write):
        """An attribute under another name, handed on through two functions, given once and left out once."""
        model = proven(
            write,
            parsed(
                """g (float[B, S, 4] x) => (float[B, S, 4] y, float[B, S, 4] z) {
                     y = my.Outer <strength = 0.5> (x)
                     z = my.Outer (x)
                   }"""
                + ATTENTION
                + '<domain: "my", opset_import: ["": 17, "my": 1]> Outer <strength: float = 0.25> (a) => (b) '
                "{ b = my.Attend <gain: float = @strength> (a) }"
            ),
            x=X,
        )
        gains = [node.attributes["value_float"].value for node in model.nodes if node.op_type == "Constant"]
        assert gains == [0.5, 0.25]

    def test_an_attribute_that_nobody_gives(self, write):
        """Then the inner function's default holds, and an operator's own where there is none."""
        model = load(
            write(
                parsed(
                    "g (float[B, S, 4] x) => (float[B, S, 4] y) { y = my.Outer (x) }"
                    + ATTENTION.replace("<axis = -1>", "<axis: int = @axis>").replace("<gain:", "<axis, gain:")
                    + '<domain: "my", opset_import: ["": 17, "my": 1]> Outer <strength, axis> (a) => (b) '
                    "{ b = my.Attend <gain: float = @strength, axis: int = @axis> (a) }"
                )
            )
        )
        (gain,) = (node for node in model.nodes if node.op_type == "Constant")
        (softmax,) = (node for node in model.nodes if node.op_type == "Softmax")
        assert gain.attributes["value_float"].value == 2.0
        assert "axis" not in softmax.attributes

    @pytest.mark.parametrize("condition", [True, False])
    def test_calls_in_a_body_with_overloads(self, write, condition):
        proto = parsed(
            """g (float[B, S, 4] x, bool c) => (float[B, S, 4] y) {
                 y = If (c) <then_branch = t () => (float[B, S, 4] o) { [call] o = my.Attend (x) },
                             else_branch = e () => (float[B, S, 4] o) { [call] o = my.Attend (x) }>
               }"""
            + ATTENTION
        )
        other = proto.functions.add()
        other.CopyFrom(proto.functions[0])
        other.overload = "unscaled"
        other.attribute_proto[0].f = 1.0
        branch = next(a.g for a in proto.graph.node[0].attribute if a.name == "else_branch")
        branch.node[0].overload = "unscaled"
        model = proven(write, proto, x=X, c=np.array(condition))
        assert op_types(model).count("Softmax") == 2
        assert len({model.key(node) for node in model.nodes}) == len(model.nodes)
        (note,) = (note for note in model.notes if "written out" in note)
        assert "my.Attend (1×)" in note
        assert "my.Attend:unscaled (1×)" in note

    def test_optional_inputs_and_unused_outputs(self, write):
        model = proven(
            write,
            parsed(
                """g (float[B, S, 4] x) => (float[B, S, 4] y, float[B, S, S] w, float[B, S, S] v) {
                     y, w = my.Clipped (x)
                     , v = my.Clipped (x, , one)
                   }""".replace("{", "<float one = {1}> {", 1)
                + """<domain: "my", opset_import: ["": 17]> Clipped (a, low, high) => (b, p) {
                     k = Transpose <perm = [0, 2, 1]> (a)
                     l = MatMul (a, k)
                     s = Clip (l, low, high)
                     p = Softmax <axis = -1> (s)
                     b = MatMul (p, a)
                   }"""
            ),
            x=X,
        )
        assert op_types(model).count("Softmax") == 2
        clips = [[None if v is None else v.name for v in n.inputs] for n in model.nodes if n.op_type == "Clip"]
        assert clips == [["Clipped/l", None, None], ["Clipped_2/l", None, "one"]]

    def test_an_input_handed_on_as_output(self, write):
        """ONNX Runtime takes no such function, so only what comes of it is run."""
        text = "g (float[B, S, 4] x) => (float[B, S, 4] y, float[B, S, 4] z) { y, z = my.Attend (x) }"
        model = load(write(parsed(text + ATTENTION.replace("=> (b)", "=> (b, a)"))))
        y, z = run(onnx.load_from_string(serialize(model.ir)), {"x": X})
        np.testing.assert_array_equal(z, X)
        assert not np.array_equal(y, X)

    @pytest.mark.parametrize("condition", [True, False])
    def test_a_function_with_bodies(self, write, condition):
        """Names of its own stay apart for each call, and its symbols are not the graph's."""
        model = proven(
            write,
            parsed(
                """g (float[B, S, 4] x, bool c) => (float[B, S, 4] y) { h = my.Maybe (x, c) y = my.Maybe (h, c) }
                   <domain: "my", opset_import: ["": 17]> Maybe (a, c) => (b) {
                     k = Transpose <perm = [0, 2, 1]> (a)
                     l = MatMul (a, k)
                     s = If (c) <then_branch = t () => (float[S, B, N] r) { h = Neg (l) r = Exp (h) },
                                 else_branch = e () => (float[S, B, N] r) { h = Abs (l) r = Sqrt (h) }>
                     p = Softmax <axis = -1> (s)
                     b = MatMul (p, a)
                   }"""
            ),
            x=X,
            c=np.array(condition),
        )
        names = [value.name for node in model.nodes for value in node.outputs]
        assert len(set(names)) == len(names)
        bodies = [
            attribute.as_graph()
            for node in model.nodes
            for attribute in node.attributes.values()
            if node.op_type == "If"
        ]
        assert len(bodies) == 4
        assert all(dim.value is None for body in bodies for dim in body.outputs[0].shape)

    def test_a_body_given_by_the_caller(self, write):
        """It names values of the caller, not those of the function; used twice, its own stay apart."""

        def branch(operator: str) -> onnx.GraphProto:
            nodes = [helper.make_node(operator, ["k"], ["h"]), helper.make_node("Exp", ["h"], ["r"])]
            return helper.make_graph(nodes, operator, [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)])

        proto = parsed(
            """g (float[B, S, 4] x, bool c) => (float[B, S, 4] y) { k = Identity (x) y = my.Choose (x, c) }
               <domain: "my", opset_import: ["": 17]> Choose <then, else> (a, c) => (b) {
                 l = If (c) (c)
                 m = If (c) (c)
                 k = Transpose <perm = [0, 2, 1]> (l)
                 s = MatMul (m, k)
                 p = Softmax <axis = -1> (s)
                 b = MatMul (p, a)
               }""".replace("If (c) (c)", "If (c)")
        )
        proto.graph.node[1].attribute.append(helper.make_attribute("then", branch("Neg")))
        proto.graph.node[1].attribute.append(helper.make_attribute("else", branch("Abs")))
        for node in proto.functions[0].node[:2]:
            for name in ("then", "else"):
                node.attribute.append(
                    onnx.AttributeProto(name=f"{name}_branch", ref_attr_name=name, type=onnx.AttributeProto.GRAPH)
                )
        written = onnx.load_from_string(serialize(load(write(proto)).ir))
        (result,) = ReferenceEvaluator(written).run(None, {"x": X, "c": np.array(True)})
        q = np.exp(-X)
        logits = q @ q.transpose(0, 2, 1)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        np.testing.assert_allclose(result, weights / weights.sum(-1, keepdims=True) @ X, rtol=1e-4)

    def test_a_long_chain_of_calls(self, write):
        chain = "".join(
            f'<domain: "my", opset_import: ["": 17, "my": 1]> F{i} (a) => (b) {{ b = my.F{i + 1} (a) }}'
            for i in range(1500)
        )
        last = ATTENTION.replace("Attend <gain: float = 2.0>", "F1500").replace("float = @gain", "float = 1.0")
        model = load(write(parsed("g (float[B, S, 4] x) => (float[B, S, 4] y) { y = my.F0 (x) }" + chain + last)))
        assert op_types(model).count("Softmax") == 1

    def test_names_that_are_taken(self, write):
        model = proven(
            write,
            parsed(
                """g (float[B, S, 4] x) => (float[B, S, 4] y) {
                     [a] h = my.Attend (x)
                     ["a/softmax"] i = Neg (h)
                     y = Add (i, "a/p")
                   }""".replace('Add (i, "a/p")', "Add (i, h)")
                .replace("i =", '"a/p" =')
                .replace("(i,", '("a/p",')
                + ATTENTION
            ),
            x=X,
        )
        names = [value.name for node in model.nodes for value in node.outputs]
        assert len(set(names)) == len(names)
        assert model.has_node("a/softmax_2")
