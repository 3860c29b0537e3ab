"""Folding arrays of dimensions: whatever is known of an array is true of it, at every size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from explorer.model import Model, load
from explorer.model.dims import evaluate

SHAPE = ("batch", "seq", 12)


@pytest.fixture
def folded(opened):
    """What is known of `y`, computed from `dims` = Shape (x) of x: float[batch, seq, 12]."""

    def fold(steps: str, dtype: str = "int64[n]") -> list[object] | None:
        model = opened(f"g (float[batch, seq, 12] x, int64 u) => ({dtype} y) {{ dims = Shape (x) {steps} }}")
        array = model.partial(model.value("y"))
        return None if array is None else array.tolist()

    return fold


def c(name: str, *numbers: float, kind: str = "int64") -> str:
    """A Constant of one axis."""
    return f"{name} = Constant <value = {kind}[{len(numbers)}] {{{', '.join(map(str, numbers))}}}> () "


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("y = Identity (dims)", ["batch", "seq", 12]),
        ("y = Shape <start = 1, end = 2> (x)", ["seq"]),
        ("y = Size (x)", "12*batch*seq"),
        (c("k", 2) + "y = Mul (dims, k)", ["2*batch", "2*seq", 24]),
        (c("k", 5) + "y = Div (dims, k)", ["batch//5", "seq//5", 2]),
        (c("k", 5) + "y = Mod (dims, k)", ["batch - 5*(batch//5)", "seq - 5*(seq//5)", 2]),
        (c("k", 5) + "y = Min (dims, k)", ["min(5, batch)", "min(5, seq)", 5]),
        (c("k", 1) + "y = Max (dims, k)", ["batch", "seq", 12]),
        (c("k", 2) + "y = Pow (dims, k)", ["batch**2", "seq**2", 144]),
        ("n = Neg (dims) y = Abs (n)", ["batch", "seq", 12]),
        (c("k", -1) + "y = Equal (dims, k)", [False, False, False]),
        (c("k", 1) + "y = GreaterOrEqual (dims, k)", [True, True, True]),
        (c("k", -3) + "l = Less (dims, k) y = Not (l)", [True, True, True]),
        (c("k", 7) + c("z", -1) + "l = Equal (dims, k) m = Equal (dims, z) y = And (l, m)", [False, False, False]),
        (c("k", -1) + c("o", 1, 2, 3) + "e = Equal (o, k) y = Where (e, o, dims)", ["batch", "seq", 12]),
        (c("k", -2) + c("e", 9) + "y = Slice (dims, k, e)", ["seq", 12]),
        (c("k", -1) + c("e", -9) + c("a", 0) + c("s", -1) + "y = Slice (dims, k, e, a, s)", [12, "seq", "batch"]),
        (c("k", 1, 2) + "p, y = Split (dims, k)", ["seq", 12]),
        (c("k", 1, 2) + "y, q = Split (dims, k)", ["batch"]),
        (c("k", 2) + "y = Tile (dims, k)", ["batch", "seq", 12] * 2),
        (c("k", 3, 1) + "r = Reshape (dims, k) y = Transpose (r)", [["batch", "seq", 12]]),
        (c("k", 2, 3) + "y = Expand (dims, k)", [["batch", "seq", 12]] * 2),
        ("y = ReduceProd <keepdims = 0> (dims)", "12*batch*seq"),
        ("y = ReduceMax <axes = [0]> (dims)", ["max(12, batch, seq)"]),
        (c("a", 0) + "y = ReduceSum <keepdims = 0> (dims, a)", "batch + seq + 12"),
        ("y = CastLike (dims, u)", ["batch", "seq", 12]),
        ("f = Cast <to = 1> (dims) y = Cast <to = 7> (f)", ["batch", "seq", 12]),
        (c("k", 5.0, kind="float") + "f = Cast <to = 1> (dims) d = Div (f, k) e = Floor (d) y = Cast <to = 7> (e)",
         ["batch//5", "seq//5", 2]),
        (c("k", 5.0, kind="float") + "f = Cast <to = 1> (dims) d = Div (f, k) e = Ceil (d) y = Cast <to = 7> (e)",
         ["(batch + 4)//5", "(seq + 4)//5", 3]),
        (c("k", 0.5, kind="float") + "f = Cast <to = 1> (dims) d = Mul (f, k) y = Cast <to = 7> (d)",
         ["batch//2", "seq//2", 6]),
        (c("i", 2) + "g = Gather (dims, i) f = Cast <to = 1> (g) y = Neg (f)", [-12.0]),
        (c("i", 0) + "k = Constant <value = int64 {4}> () h = Constant <value = int64[2] {0, 7}> ()"
         " y = OneHot <axis = -1> (i, k, h)", [[7, 0, 0, 0]]),
        (c("i", 1) + c("v", 9) + "y = ScatterElements (dims, i, v)", ["batch", 9, 12]),
        (c("k", 0) + "n = Unsqueeze (u, k) y = Concat <axis = 0> (dims, n)", None),
    ],
)  # fmt: skip
def test_operators_on_dimensions(folded, steps, expected):
    assert folded(steps) == expected


@pytest.mark.parametrize(
    "steps",
    [
        c("k", 3.0, kind="float") + "f = Cast <to = 1> (dims) d = Div (f, k) m = Mul (d, k) y = Cast <to = 7> (m)",
        c("k", 0.7, kind="float") + "f = Cast <to = 1> (dims) m = Mul (f, k) y = Cast <to = 7> (m)",
        "f = Cast <to = 10> (dims) y = Cast <to = 7> (f)",
        "f = Cast <to = 1> (dims) r = Sqrt (f) y = Cast <to = 7> (r)",
        c("k", 5) + "d = Sub (dims, k) y = Div (d, k)",
        c("k", 5) + "y = Less (dims, k)",
        "y = ConstantOfShape (dims)",
    ],
)
def test_what_cannot_be_said_is_not(folded, steps):
    """Floats that a model rounds, a quotient whose sign decides how it is rounded, an array of unknown size."""
    assert folded(steps) is None


def test_a_shape_whose_one_element_is_unknown_has_the_others(opened):
    model = opened(
        """g (float[batch, seq, 12] x, int64[1] n) => (float[a, b, c] y) {
             dims = Shape <start = 1, end = 2> (x) k = Constant <value = int64[1] {4}> ()
             target = Concat <axis = 0> (n, dims, k) y = Reshape (x, target) }"""
    )
    assert model.partial(model.value("target")) is None
    assert model.shape(model.value("y")) == ("3*batch", "seq", 4)


BINARY = ["Add", "Sub", "Mul", "Min", "Max"]
CHECKED = ["Div", "Mod"]  # divided by a constant
COMPARED = ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]
UNARY = ["Neg", "Abs", "half", "quarter", "first", "reversed", "product"]


@st.composite
def programs(draw: st.DrawFn) -> onnx.ModelProto:
    """Random arithmetic on the shape of x: each step takes earlier values of shape [3] and makes another one."""
    values, nodes, constants = ["dims"], [helper.make_node("Shape", ["x"], ["dims"])], {}

    def constant(array: np.ndarray) -> str:
        name = f"c{len(constants)}"
        constants[name] = array
        return name

    for at in range(draw(st.integers(1, 7))):
        op, y = draw(st.sampled_from([*BINARY, *CHECKED, *UNARY, "where"])), f"v{at}"
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        numbers = constant(np.array(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)), np.int64))
        if op in BINARY:
            nodes.append(helper.make_node(op, [a, draw(st.sampled_from([b, numbers]))], [y]))
        elif op in CHECKED:
            nodes.append(helper.make_node(op, [a, numbers], [y]))
        elif op == "where":
            compared = draw(st.sampled_from(COMPARED))
            nodes.append(helper.make_node(compared, [a, draw(st.sampled_from([b, numbers]))], [y + "c"]))
            nodes.append(helper.make_node("Where", [y + "c", numbers, b], [y]))
        elif op in ("half", "quarter"):
            divisor = constant(np.array(2 if op == "half" else 4, np.float32))
            rounded = draw(st.sampled_from(["Floor", "Ceil"]))
            nodes += [
                helper.make_node("Cast", [a], [y + "f"], to=TensorProto.FLOAT),
                helper.make_node("Div", [y + "f", divisor], [y + "d"]),
                helper.make_node(rounded, [y + "d"], [y + "r"]),
                helper.make_node("Cast", [y + "r"], [y], to=TensorProto.INT64),
            ]
        elif op == "first":
            nodes.append(helper.make_node("Gather", [a, constant(np.array([0, 0, 1], np.int64))], [y]))
        elif op == "reversed":
            bounds = [constant(np.array([number], np.int64)) for number in (-1, -9, 0, -1)]
            nodes.append(helper.make_node("Slice", [a, *bounds], [y]))
        elif op == "product":
            nodes.append(helper.make_node("ReduceProd", [a], [y + "p"], keepdims=1))
            nodes.append(helper.make_node("Concat", [y + "p"] * 3, [y], axis=0))
        else:
            nodes.append(helper.make_node(op, [a], [y]))
        values.append(y)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.INT64, [3]) for name in values],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(proto=programs(), sizes=st.fixed_dictionaries({"batch": st.integers(1, 9), "seq": st.integers(1, 70)}))
def test_what_is_known_of_a_random_program_is_what_it_computes(tmp_path_factory, proto, sizes):
    path = tmp_path_factory.mktemp("program") / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model: Model = load(path)
    names = [value.name for value in proto.graph.output]
    with np.errstate(all="ignore"):
        arrays = ReferenceEvaluator(proto).run(
            names, {"x": np.zeros([evaluate(dim, sizes) for dim in SHAPE], np.float32)}
        )
    for name, real in zip(names, arrays, strict=True):
        known = model.partial(model.value(name))
        if known is not None:
            assert [evaluate(element, sizes) for element in known.tolist()] == real.tolist(), name
