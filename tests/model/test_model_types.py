"""Types and shapes: what the file says, what inference adds, and that neither reads a weight."""

from __future__ import annotations

import tracemalloc

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from explorer.model import TensorType, describe, dtype_name, load
from explorer.model.dims import is_known
from explorer.model.save import serialize

GB = 1 << 30
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def test_symbols_and_unknown_dimensions(opened):
    model = opened(
        "g (float[batch, seq, 8] x, float[batch, ?, 8] z) => (float y) { a = Relu (x) b = Relu (z) y = Size (a) }"
    )
    assert model.shape(model.value("a")) == ("batch", "seq", 8)
    assert model.shape(model.value("b")) == ("batch", "z.1", 8), "what an input leaves open is a symbol of its own"
    assert model.shape(model.value("y")) == ()


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("float[past + 1, 2*batch] x", ("past + 1", "2*batch")),
        ("float[batch size, ?] x", ("'batch size'", "x.1")),
    ],
)
def test_names_of_dimensions_are_read_as_expressions(write, text, shape):
    names = text[text.index("[") + 1 : text.index("]")].split(", ")
    proto = onnx.parser.parse_model(HEADER + "g (float[a, b] x) => (float[a, b] y) { y = Neg (x) }")
    for info in (proto.graph.input[0], proto.graph.output[0]):
        for dim, name in zip(info.type.tensor_type.shape.dim, names, strict=True):
            dim.dim_param = name
    model = load(write(proto))
    assert model.shape(model.value("x")) == model.shape(model.value("y")) == shape


@pytest.mark.parametrize(("size", "name", "shape"), [(-1, "", "x.0"), (None, "", "x.0"), (None, "5", 5), (7, "", 7)])
def test_sizes_that_files_leave_open(write, size, name, shape):
    proto = onnx.parser.parse_model(HEADER + "g (float[a] x) => (float[b] y) { y = Neg (x) }")
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.ClearField("value")
    if size is not None:
        dim.dim_value = size
    elif name:
        dim.dim_param = name
    model = load(write(proto))
    assert model.shape(model.value("x")) == model.shape(model.value("y")) == (shape,)


def test_names_that_an_exporter_made_up_are_unknown_but_the_same_everywhere(opened):
    model = opened(
        """g (float[N, 4] x) => (float[Magicy_dim_0, 4] y, float[Magicy_dim_0] z)
             <float[Magicy_dim_0, 4] a>
             { a = other.org.Magic (x) y = Neg (a) z = other.org.Sum (a) }""",
        header='<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>',
    )
    first, second = model.shape(model.value("y"))
    assert second == 4
    assert not is_known(first)
    assert (first,) == model.shape(model.value("z"))
    assert str(model.type(model.value("y"))) == "float32[?, 4]"


def test_inference_follows_shape_arithmetic(opened):
    """Reshape to (batch, seq, 2, 4), its target computed from Shape at run time, as exporters write it."""
    model = opened(
        """g (float[batch, seq, 8] x) => (float[batch, 2, seq, 4] y) {
             s = Shape (x) i0 = Constant <value = int64[1] {0}> () i1 = Constant <value = int64[1] {1}> ()
             b = Gather (s, i0) n = Gather (s, i1) t = Constant <value = int64[2] {2, 4}> ()
             target = Concat <axis = 0> (b, n, t) r = Reshape (x, target) y = Transpose <perm = [0, 2, 1, 3]> (r)
           }"""
    )
    assert model.shape(model.value("r")) == ("batch", "seq", 2, 4)


def test_what_is_found_is_not_written_back(opened):
    model = opened("g (float[N, 4] x) => (float[N, 4] y) { a = Neg (x) y = Abs (a) }")
    assert str(model.type(model.value("a"))) == "float32[N, 4]"
    assert list(onnx.load_from_string(serialize(model.ir)).graph.value_info) == []


@pytest.mark.parametrize(
    ("dtype", "name"), [("FLOAT", "float32"), ("DOUBLE", "float64"), ("FLOAT16", "float16"), ("BFLOAT16", "bfloat16"),
                        ("INT64", "int64"), ("BOOL", "bool")]
)  # fmt: skip
def test_names_of_element_types(dtype, name):
    assert dtype_name(ir.DataType[dtype]) == name
    assert str(TensorType(ir.DataType[dtype], (2, "n", "?7"))) == f"{name}[2, n, ?]"


def test_unknown_types_are_said_to_be_unknown(opened):
    model = opened(
        "g (float[N] x) => (float[N] y) { a = other.org.Magic (x) y = Neg (a) }",
        header='<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>',
    )
    assert model.shape(model.value("a")) is None
    assert model.dtype(model.value("a")) is None
    assert dtype_name(None) == ""
    assert describe(model).tensors["a"].type == "?"


def test_types_inside_a_body(opened):
    model = opened(
        """g (float[N, 4] x, bool c) => (float[N, 4] y) {
             y = If (c) <then_branch = t () => (float[N, 4] o) { h = Neg (x) o = Abs (h) },
                         else_branch = e () => (float[N, 4] p) { p = Neg (x) }>
           }"""
    )
    assert str(model.type(model.value("h"))) == "float32[N, 4]"


def test_weights_are_never_read(tmp_path):
    """A model of 3 GB (the file is sparse) is opened and described in a process that may not hold a third of that."""
    rows = 3 * GB // (4 * 1024)
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(3 * GB)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1024, rows], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(3 * GB))):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])],
        "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", rows])],
        [weight],
    )
    path = tmp_path / "huge.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )

    tracemalloc.start()
    try:
        model = load(path)
        shape = model.shape(model.value("a"))
        constant = model.constant(model.value("w"))
        describe(model)
        written = serialize(model.ir)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shape == ("N", rows)
    assert constant is None, "too large to be a constant that recognition asks for"
    assert len(written) < 10_000
    assert peak < 100_000_000
