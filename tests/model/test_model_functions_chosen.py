"""Which functions are written out, which stay, and which models with functions are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from function_models import ATTENTION, HEADER, TWICE, X, functions, op_types, parsed, proven
from onnx import TensorProto, helper

from explorer.errors import ModelError
from explorer.model import load
from explorer.model.save import serialize


class TestWhichOnes:
    def test_functions_without_attention_stay(self, write):
        model = proven(
            write,
            parsed(
                "g (float[B, S, 4] x) => (float[B, S, 4] y) { h = my.Twice (x) i = my.Attend (h) y = my.Twice (i) }"
                + TWICE
                + ATTENTION
            ),
            x=X,
        )
        assert op_types(model).count("Twice") == 2
        assert functions(model) == {"Twice"}

    def test_a_model_without_attention_in_functions_is_left_as_it_is(self, write):
        proto = parsed("g (float[B, S, 4] x) => (float[B, S, 4] y) { h = my.Twice (x) y = Softmax (h) }" + TWICE)
        model = load(write(proto))
        assert op_types(model) == ["Twice", "Softmax"]
        assert model.notes == ()

    def test_a_function_that_calls_one_with_attention(self, write):
        model = proven(
            write,
            parsed(
                "g (float[B, S, 4] x) => (float[B, S, 4] y) { [layer] y = my.Layer (x) }"
                + TWICE
                + ATTENTION
                + """<domain: "my", opset_import: ["": 17, "my": 1]> Layer (a) => (c) {
                       [attention] b = my.Attend (a)
                       [mlp] d = my.Twice (b)
                       c = Add (a, d)
                     }"""
            ),
            x=X,
        )
        assert op_types(model)[-2:] == ["Twice", "Add"]
        assert model.has_node("layer/attention/softmax")
        assert model.has_node("layer/mlp")

    @pytest.mark.parametrize(
        ("softmax", "inlined"),
        [
            ("l = LogSoftmax <axis = -1> (a) b = Exp (l)", True),
            ("e = Exp (a) s = ReduceSum (e) b = Div (e, s)", True),
            ("e = Exp (a) b = Sqrt (e)", False),
            ("b = LogSoftmax <axis = -1> (a)", False),
        ],
    )
    def test_a_softmax_in_another_spelling(self, write, softmax, inlined):
        text = f'<domain: "my", opset_import: ["": 17]> F (a) => (b) {{ {softmax} }}'
        model = load(write(parsed("g (float[B, S, 4] x) => (float[B, S, 4] y) { y = my.F (x) }" + text)))
        assert functions(model) == (set() if inlined else {"F"})

    def test_a_fused_operator_in_a_function(self, write):
        model = load(
            write(
                """g (float[B, S, 64] x) => (float[B, S, 64] y) { y = my.F (x) }
                   <domain: "my", opset_import: ["": 17, "com.microsoft": 1]> F (a) => (b) {
                     b = com.microsoft.MultiHeadAttention <num_heads = 4> (a, a, a)
                   }""",
                header=HEADER,
            )
        )
        assert op_types(model) == ["MultiHeadAttention"]
        assert model.ir.opset_imports["com.microsoft"] == 1, "the graph now uses a domain that only the function did"

    def test_functions_between_a_softmax_and_its_products(self, write):
        """Softmax and products in functions of their own, as some exporters write every operator."""
        model = proven(
            write,
            parsed(
                """g (float[B, S, 4] x) => (float[B, S, 4] y) {
                     h = my.Twice (x)
                     k = Transpose <perm = [0, 2, 1]> (h)
                     l = my.Product (h, k)
                     s = my.Twice (l)
                     p = my.Normal (s)
                     o = my.Product (p, h)
                     y = my.Half (o)
                   }"""
                + TWICE
                + '<domain: "my", opset_import: ["": 17]> Product (a, b) => (c) { c = MatMul (a, b) }'
                + '<domain: "my", opset_import: ["": 17]> Normal (a) => (b) { b = Softmax <axis = -1> (a) }'
                + '<domain: "my", opset_import: ["": 17]> Half (a) => (b) { b = Sqrt (a) c = Abs (b) }'.replace(
                    "b = Sqrt (a) c = Abs (b)", "c = Abs (a) b = Sqrt (c)"
                )
            ),
            x=X,
        )
        assert op_types(model) == ["Add", "Transpose", "MatMul", "Add", "Softmax", "MatMul", "Half"]

    def test_helpers_of_an_attention_function(self, write):
        """What prepares Q inside is read with it; the projections stay a function."""
        model = proven(
            write,
            parsed(
                "g (float[B, S, 4] x, float[4, 4] w) => (float[B, S, 4] y) { y = my.Whole (x, w) }"
                + TWICE
                + '<domain: "my", opset_import: ["": 17]> Linear (a, w) => (b) { b = MatMul (a, w) }'
                + """<domain: "my", opset_import: ["": 17, "my": 1]> Whole (a, w) => (b) {
                       q = my.Linear (a, w)
                       r = my.Twice (q)
                       k = Transpose <perm = [0, 2, 1]> (a)
                       l = MatMul (r, k)
                       p = Softmax <axis = -1> (l)
                       o = MatMul (p, a)
                       b = my.Linear (o, w)
                     }"""
            ),
            x=X,
            w=X[0, :1].repeat(4, 0),
        )
        assert op_types(model) == ["Linear", "Add", "Transpose", "MatMul", "Softmax", "MatMul", "Linear"]

    def test_a_function_that_nobody_calls(self, write):
        model = load(write(parsed("g (float[B, S, 4] x) => (float[B, S, 4] y) { y = Neg (x) }" + ATTENTION)))
        assert op_types(model) == ["Neg"]
        assert functions(model) == {"Attend"}
        assert model.notes == ()

    def test_another_version_of_the_operator_set(self, write):
        """The operators may mean something else: it stays, with those that call it, and a note says so."""
        model = load(
            write(
                parsed(
                    "g (float[B, S, 4] x) => (float[B, S, 4] y) { h = my.Attend (x) y = my.Layer (h) }"
                    + ATTENTION.replace("17", "12")
                    + '<domain: "my", opset_import: ["": 17, "my": 1]> Layer (a) => (b) { b = my.Attend (a) }'
                )
            )
        )
        assert op_types(model) == ["Attend", "Layer"]
        assert functions(model) == {"Attend", "Layer"}
        (note,) = model.notes
        assert "my.Attend" in note
        assert "12" in note
        assert "17" in note

    def test_one_that_stays_keeps_what_it_calls(self, write):
        model = load(
            write(
                parsed(
                    "g (float[B, S, 4] x) => (float[B, S, 4] y) { h = my.Attend (x) y = my.Old (h) }"
                    + ATTENTION
                    + """<domain: "my", opset_import: ["": 12, "my": 1]> Old (a) => (b) {
                           c = my.Attend (a)
                           b = Neg (c)
                         }"""
                )
            )
        )
        assert op_types(model).count("Softmax") == 1
        assert functions(model) == {"Attend", "Old"}

    def test_weights_in_other_files_are_not_touched(self, write, tmp_path):
        (tmp_path / "w.bin").write_bytes(np.ones(1, np.float32).tobytes())
        proto = parsed("g (float[B, S, 4] x) => (float[B, S, 4] y) { y = my.Attend (x) }" + ATTENTION)
        constant = proto.functions[0].node[2]
        tensor = TensorProto(name="g", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        del constant.attribute[:]
        constant.attribute.append(helper.make_attribute("value", tensor))
        model = load(write(proto))
        (node,) = (node for node in model.nodes if node.op_type == "Constant")
        assert model.scalar(node.outputs[0]) == 1.0
        written = onnx.load_from_string(serialize(model.ir))
        (kept,) = (node.attribute[0].t for node in written.graph.node if node.op_type == "Constant")
        assert {entry.key: entry.value for entry in kept.external_data} == {"location": "w.bin"}


class TestRefusals:
    def refusal(self, write, text: str) -> str:
        with pytest.raises(ModelError) as caught:
            load(write(parsed(text)))
        assert caught.value.__cause__ is None
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert "export the model" in sentence
        return sentence

    @pytest.mark.parametrize("called", ["A", "B"])
    def test_functions_in_a_circle(self, write, called):
        sentence = self.refusal(
            write,
            f"g (float[N] x) => (float[N] y) {{ y = my.{called} (x) }}"
            '<domain: "my", opset_import: ["": 17, "my": 1]> A (a) => (b) { c = Softmax (a) b = my.B (c) }'
            '<domain: "my", opset_import: ["": 17, "my": 1]> B (a) => (b) { b = my.A (a) }',
        )
        assert "circle" in sentence
        assert "my.A → my.B → my.A" in sentence or "my.B → my.A → my.B" in sentence

    def test_a_function_that_calls_itself(self, write):
        assert "my.A → my.A" in self.refusal(
            write,
            "g (float[N] x) => (float[N] y) { y = my.A (x) }"
            '<domain: "my", opset_import: ["": 17, "my": 1]> A (a) => (b) { b = my.A (a) }',
        )

    @pytest.mark.parametrize("call", ["my.Lost (x)", "my.Attend:other (x)"])
    def test_a_function_that_is_not_there(self, write, call):
        sentence = self.refusal(write, f"g (float[B, S, 4] x) => (float[B, S, 4] y) {{ y = {call} }}" + ATTENTION)
        assert "missing" in sentence
        assert call.split()[0] in sentence

    def test_more_inputs_than_the_function_has(self, write):
        text = "g (float[B, S, 4] x) => (float[B, S, 4] y) { [call] y = my.Attend (x, x) }"
        sentence = self.refusal(write, text + ATTENTION)
        assert "'call'" in sentence
        assert "'Attend'" in sentence

    def test_an_attribute_of_another_type_than_the_function_asks_for(self, write):
        text = 'g (float[B, S, 4] x) => (float[B, S, 4] y) { [call] y = my.Attend <gain = "much"> (x) }'
        sentence = self.refusal(write, text + ATTENTION)
        assert "'gain'" in sentence
        assert "'call'" in sentence

    def test_functions_that_grow_without_bounds(self, write):
        doubling = "".join(
            f'<domain: "my", opset_import: ["": 17, "my": 1]> F{i} (a) => (b) {{ c = {call} (a) b = {call} (c) }}'
            for i, call in enumerate(f"my.F{j}" for j in range(1, 41))
        )
        last = '<domain: "my", opset_import: ["": 17]> F40 (a) => (b) { b = Softmax (a) }'
        text = "g (float[N] x) => (float[N] y) { y = my.F0 (x) }"
        assert str(2**40) in self.refusal(write, text + doubling + last)

    def test_a_value_from_nowhere_inside_a_function(self, write):
        text = "g (float[B, S, 4] x) => (float[B, S, 4] y) { y = my.Attend (x) }"
        assert "'lost'" in self.refusal(write, text + ATTENTION.replace("MatMul (p, a)", "MatMul (p, lost)"))

    def test_an_output_that_the_function_does_not_compute(self, write):
        text = "g (float[B, S, 4] x) => (float[B, S, 4] y) { y = my.Attend (x) }"
        assert "'b'" in self.refusal(write, text + ATTENTION.replace("b = MatMul", "c = MatMul"))
