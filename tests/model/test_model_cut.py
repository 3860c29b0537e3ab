"""Parts of graphs as models of their own: they compute what they computed inside."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from explorer.errors import ModelError
from explorer.model import Model
from explorer.model.cut import Part, cut, surroundings
from explorer.model.save import serialize

CHAIN = """g (float[b, s, 4] x) => (float[b, s, 4] y, float[b, s, 4] z) <float[4] w = {1, 2, 3, 4}> {
    a = Mul (x, w)
    shape = Shape (a)
    flat_shape = Constant <value = int64[1] {-1}> ()
    flat = Reshape (a, flat_shape)
    twice = Add (flat, flat)
    y = Reshape (twice, shape)
    z = Neg (x)
}"""
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def run(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(serialize(model.ir), full_check=True)
    return ort.InferenceSession(serialize(model.ir), providers=["CPUExecutionProvider"]).run(None, feeds)


def names(values) -> list[str]:
    return [value.name for value in values]


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes]


class TestCut:
    def test_a_part_computes_what_it_did_inside(self, opened):
        part = cut(opened(CHAIN), ["flat", "shape"], ["y"])
        assert ops(part) == ["Add", "Reshape"]
        (y,) = run(part, {"flat": X.ravel(), "shape": np.array(X.shape)})
        np.testing.assert_array_equal(y, 2 * X)

    def test_inputs_are_typed_and_shaped_as_in_the_model(self, opened):
        part = cut(opened(CHAIN), ["a"], ["y"])
        (value,) = part.ir.graph.inputs
        assert value.dtype == ir.DataType.FLOAT
        assert list(value.shape) == [ir.SymbolicDim("b"), ir.SymbolicDim("s"), 4]
        assert part.shape(part.value("twice")) == opened(CHAIN).shape(opened(CHAIN).value("twice"))

    def test_what_is_not_needed_is_no_input(self, opened):
        part = cut(opened(CHAIN), ["z", "shape", "a"], ["flat"])
        assert names(part.ir.graph.inputs) == ["a"]
        assert names(cut(opened(CHAIN), ["shape", "flat"], ["y"]).ir.graph.inputs) == ["shape", "flat"]

    def test_constants_come_along_and_share_their_weights(self, opened):
        model = opened(CHAIN)
        part = cut(model, ["x"], ["y", "z"])
        assert part.ir.graph.initializers["w"].const_value is model.ir.graph.initializers["w"].const_value
        assert part.ir.graph.initializers["w"] is not model.ir.graph.initializers["w"]
        for found, expected in zip(run(part, {"x": X}), (2 * X * [1, 2, 3, 4], -X), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_an_initializer_may_be_an_input(self, opened):
        part = cut(opened(CHAIN), ["x", "w"], ["a"])
        (a,) = run(part, {"x": X, "w": np.full(4, 10, np.float32)})
        np.testing.assert_array_equal(a, 10 * X)

    def test_the_model_stays_as_it_is(self, opened):
        model = opened(CHAIN)
        before = serialize(model.ir)
        part = cut(model, ["flat", "shape"], ["y"])
        assert serialize(model.ir) == before
        assert part.digest != model.digest

    def test_a_missing_input_is_named(self, opened):
        with pytest.raises(ModelError, match="expected y to depend on nothing but flat, found 'x'"):
            cut(opened(CHAIN), ["flat"], ["y"])

    def test_an_output_is_computed(self, opened):
        with pytest.raises(ModelError, match="expected outputs that the part computes, found a among its inputs"):
            cut(opened(CHAIN), ["a", "shape"], ["y", "a"])

    def test_a_default_of_an_input_is_a_constant(self, opened):
        """Before version 4 of the format every initializer had to be an input, too."""
        graph = "g (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add (x, w) }"
        part = cut(opened(graph, header='<ir_version: 3, opset_import: ["" : 7]>'), ["x"], ["y"])
        assert names(part.ir.graph.inputs) == ["x"]
        (y,) = run(part, {"x": X[0, 0]})
        np.testing.assert_array_equal(y, X[0, 0] + [1, 2, 3, 4])


LOOP = """g (float[n, 4] x, int64 trips) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> {
    go = Constant <value = bool {1}> ()
    shift = Neg (x)
    y = Loop <body = body (int64 i, bool on, float[n, 4] carried) => (bool on_out, float[n, 4] out)
              <float[4] inner_w = {10, 20, 30, 40}> {
                  on_out = Identity (on)
                  scaled = Mul (carried, w)
                  moved = Add (scaled, shift)
                  out = Add (moved, inner_w)
              }> (trips, go, x)
}"""


class TestBodies:
    def test_nodes_of_a_body_are_lifted_out(self, opened):
        part = cut(opened(LOOP), ["carried", "shift"], ["out"])
        assert ops(part) == ["Mul", "Add", "Add"]
        carried, shift = X[0], -X[1]
        (out,) = run(part, {"carried": carried, "shift": shift})
        np.testing.assert_array_equal(out, carried * [1, 2, 3, 4] + shift + [10, 20, 30, 40])

    def test_what_is_around_a_body_can_be_taken_along(self, opened):
        part = cut(opened(LOOP), ["carried", "x"], ["moved"])
        assert ops(part) == ["Neg", "Mul", "Add"]

    def test_what_the_body_is_given_must_be_an_input(self, opened):
        with pytest.raises(ModelError, match="'carried'"):
            cut(opened(LOOP), ["x"], ["out"])

    def test_a_node_with_a_body_keeps_it_and_what_it_reads(self, opened):
        part = cut(opened(LOOP), ["x", "trips"], ["y"])
        assert {"Loop", "Neg"} <= set(ops(part))
        (y,) = run(part, {"x": X[0], "trips": np.array(1)})
        np.testing.assert_array_equal(y, X[0] * [1, 2, 3, 4] - X[0] + [10, 20, 30, 40])
        (y,) = run(cut(opened(LOOP), ["x", "shift", "trips"], ["y"]), {"x": X[0], "shift": X[1], "trips": np.array(1)})
        np.testing.assert_array_equal(y, X[0] * [1, 2, 3, 4] + X[1] + [10, 20, 30, 40])


def test_functions_that_are_called_come_along(opened):
    model = opened(
        "g (float[4] x) => (float[4] y) { a = Neg (x) y = local.Twice (a) }\n"
        '<domain: "local", opset_import: ["" : 17]> Twice (t) => (u) { u = Add (t, t) }',
        header='<ir_version: 8, opset_import: ["" : 17, "local" : 1]>',
    )
    (y,) = run(cut(model, ["a"], ["y"]), {"a": X[0, 0]})
    np.testing.assert_array_equal(y, 2 * X[0, 0])


class TestSurroundings:
    def test_sizes_from_elsewhere(self, opened):
        """The output's shape is that of x: neither constant nor computed from what the part takes."""
        model = opened(
            """g (float[b, s, 4] x) => (float[b, s, 4] y) {
                shape = Shape (x)
                flat = Flatten <axis = 2> (x)
                twice = Add (flat, flat)
                y = Reshape (twice, shape)
            }"""
        )
        assert surroundings(model, [Part(["flat"], "y"), Part(["flat"], "twice")]) == (("shape",), ())

    def test_what_follows_from_the_inputs_or_is_constant_is_inside(self, opened):
        assert surroundings(opened(CHAIN), [Part(["a"], "y")]) == ((),)
        assert surroundings(opened(CHAIN), [Part(["a", "x"], "y"), Part(["x"], "z")]) == ((), ())

    def test_behind_an_unknown_name_are_known_ones(self, opened):
        model = opened(CHAIN)
        assert surroundings(model, [Part(["flat"], "y")], lambda name: name != "shape") == (("a",),)
        assert surroundings(model, [Part(["flat"], "y")], lambda name: False) == (("x",),)

    def test_a_constant_needs_nothing(self, opened):
        assert surroundings(opened(CHAIN), [Part((), "flat_shape"), Part((), "w"), Part((), "shape")]) == (
            (),
            (),
            ("shape",),
        )

    def test_with_them_the_part_can_be_cut(self, opened):
        model = opened(LOOP)
        (more,) = surroundings(model, [Part(["scaled"], "out")])
        assert more == ("shift",)
        (out,) = run(cut(model, ["scaled", *more], ["out"]), {"scaled": X[0], "shift": X[1]})
        np.testing.assert_array_equal(out, X[0] + X[1] + [10, 20, 30, 40])

    def test_long_chains_are_no_recursion(self, opened):
        steps = "\n".join(f"a{i + 1} = Neg (a{i})" for i in range(3000))
        model = opened(f"g (float[4] x) => (float[4] y) {{ a0 = Abs (x) {steps} y = Add (a3000, a1) }}")
        assert surroundings(model, [Part(["a2"], "y")]) == (("a1",),)
        assert len(cut(model, ["a0"], ["y"]).nodes) == 3001
