"""Old and careless spellings of valid models: they open, mean what they meant, and run when written again."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from explorer.errors import ModelError
from explorer.model import Model, load
from explorer.model.save import serialize

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
X = np.arange(4, dtype=np.float32)


def run(model: Model, **feeds: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime makes of the model when it is written again."""
    written = onnx.load_from_string(serialize(model.ir))
    onnx.checker.check_model(written, full_check=True)
    return ort.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def add_constant(*, ir_version: int) -> onnx.ModelProto:
    """x + w, with w among the inputs."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.full(4, 3, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=ir_version)


class TestWeightsAmongInputs:
    def test_of_an_old_file_are_constants(self, write):
        """Until IR version 3 every weight had to be listed."""
        model = load(write(add_constant(ir_version=3)))
        assert [value.name for value in model.ir.graph.inputs] == ["x"]
        np.testing.assert_array_equal(model.constant(model.value("w")), [3, 3, 3, 3])
        (note,) = model.notes
        assert "IR version 3" in note
        np.testing.assert_array_equal(run(model, x=X)[0], X + 3)

    def test_of_a_newer_file_may_be_replaced(self, write):
        model = load(write(add_constant(ir_version=8)))
        assert [value.name for value in model.ir.graph.inputs] == ["x", "w"]
        assert model.constant(model.value("w")) is None
        (note,) = model.notes
        assert "1 of the weights" in note
        assert "keep_initializers_as_inputs" in note
        np.testing.assert_array_equal(run(model, x=X, w=X)[0], X + X)


class TestNames:
    def test_nodes_that_share_a_name(self, write):
        """ONNX Runtime refuses the file itself."""
        proto = onnx.parser.parse_model(
            HEADER + "g (float[4] x) => (float[4] y) { [n] a = Neg (x) [n] b = Abs (a) [m] y = Exp (b) }"
        )
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail):
            ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        model = load(write(proto))
        assert [model.key(node) for node in model.nodes] == ["Neg:a", "Abs:b", "m"]
        assert any("'n'" in note for note in model.notes)
        np.testing.assert_allclose(run(model, x=X)[0], np.exp(X))

    @pytest.mark.parametrize("condition", [True, False])
    def test_bodies_with_the_same_names(self, write, condition):
        """Each value is found under a name of its own, with its own type."""
        model = load(
            write(
                """g (float[4] x, bool c) => (float[N] y, float[4] z) {
                     o = Neg (x)
                     y = If (c) <then_branch = t () => (float[8] r) { h = Exp (x) r = Concat <axis = 0> (h, h) },
                                 else_branch = e () => (float[4] r) { h = Exp (o) r = Sqrt (h) }>
                     z = Abs (o)
                   }""",
                header=HEADER,
            )
        )
        names = [value.name for node in model.nodes for value in node.outputs]
        assert len(set(names)) == len(names)
        shapes = {model.shape(value) for node in model.nodes for value in node.outputs if value.name[0] == "r"}
        assert shapes == {(8,), (4,)}
        expected = np.tile(np.exp(X), 2) if condition else np.sqrt(np.exp(-X))
        np.testing.assert_allclose(run(model, x=X, c=np.array(condition))[0], expected, rtol=1e-6)

    @pytest.mark.parametrize("condition", [True, False])
    def test_a_body_that_hides_a_value_of_the_graph(self, write, condition):
        """What lies deeper in the body reads the one inside, what stands beside it the one outside."""
        model = load(
            write(
                """g (float[4] x, bool c) => (float[4] y) {
                     a = Neg (x)
                     h = If (c) <then_branch = t () => (float[4] r) {
                                   a = Exp (x)
                                   r = If (c) <then_branch = u () => (float[4] s) { s = Sqrt (a) },
                                               else_branch = v () => (float[4] s) { s = Abs (a) }> },
                                 else_branch = e () => (float[4] q) { q = Sin (a) }>
                     y = Add (h, a)
                   }""",
                header=HEADER,
            )
        )
        expected = (np.sqrt(np.exp(X)) if condition else np.sin(-X)) - X
        np.testing.assert_allclose(run(model, x=X, c=np.array(condition))[0], expected, rtol=1e-6)

    def test_names_that_are_unique_stay(self, write):
        text = """g (float[4] x, bool c) => (float[4] y) {
                    y = If (c) <then_branch = t () => (float[4] p) { p = Exp (x) },
                                else_branch = e () => (float[4] q) { q = Neg (x) }>
                  }"""
        model = load(write(text, header=HEADER))
        assert model.has_value("p")
        assert model.has_value("q")
        assert model.notes == ()

    def test_loop_bodies(self, write):
        """Their inputs are values of their own, too."""
        model = load(
            write(
                """g (float[4] x, int64 n, bool c) => (float[4] y) {
                     h = Loop (n, c, x) <body = b (int64 i, bool c, float[4] x) => (bool d, float[4] h) {
                           d = Identity (c) h = Add (x, x) }>
                     y = Neg (h)
                   }""",
                header=HEADER,
            )
        )
        feeds = {"x": X, "n": np.array(3, np.int64), "c": np.array(True)}
        np.testing.assert_array_equal(run(model, **feeds)[0], -8 * X)

    def test_names_from_tensorflow(self, write):
        proto = onnx.parser.parse_model(
            HEADER + 'g (float[4] "in:0") => (float[4] "Identity:0") '
            '{ ["a/b:c;d"] "s/x:0" = Neg ("in:0") ["p2o.Add.0"] "Identity:0" = Abs ("s/x:0") }'
        )
        model = load(write(proto))
        assert [model.key(node) for node in model.nodes] == ["a/b:c;d", "p2o.Add.0"]
        np.testing.assert_array_equal(run(model, **{"in:0": X})[0], X)


class TestSparse:
    @pytest.mark.parametrize("indices", [[1, 6], [[0, 1], [1, 2]]])
    def test_initializer(self, write, indices):
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[2, 4] y) { y = Add (x, x) }")
        proto.graph.node[0].input[1] = "w"
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                helper.make_tensor("w", TensorProto.FLOAT, [2], [5, 7]),
                numpy_helper.from_array(np.array(indices, np.int64), "w_indices"),
                [2, 4],
            )
        )
        model = load(write(proto))
        np.testing.assert_array_equal(model.constant(model.value("w")), [[0, 5, 0, 0], [0, 0, 7, 0]])
        assert any("sparse" in note for note in model.notes)
        np.testing.assert_array_equal(run(model, x=X)[0], np.add(X, [[0, 5, 0, 0], [0, 0, 7, 0]]))

    def test_constant(self, write):
        sparse = helper.make_sparse_tensor(
            helper.make_tensor("v", TensorProto.FLOAT, [1], [5]),
            helper.make_tensor("i", TensorProto.INT64, [1], [3]),
            [4],
        )
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[4] y) { y = Add (x, x) }")
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
        proto.graph.node[1].input[1] = "w"
        model = load(write(proto))
        np.testing.assert_array_equal(run(model, x=X)[0], np.add(X, [0, 0, 0, 5]))

    @pytest.mark.parametrize(
        ("values", "indices", "dims"), [([5], [9], [4]), ([5, 6], [1], [4]), ([5], [1], [1 << 20, 1 << 20])]
    )
    def test_that_does_not_hold_together(self, write, values, indices, dims):
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[4] y) { y = Neg (x) }")
        sparse = proto.graph.sparse_initializer.add(dims=dims)
        sparse.values.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [len(values)], values))
        sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [len(indices)], indices))
        with pytest.raises(ModelError, match=r"sparse tensor 'w'.*dense"):
            load(write(proto))


class TestTypes:
    def test_a_negative_size_is_an_unknown_one(self, write):
        """Paddle and TensorFlow write -1."""
        proto = onnx.parser.parse_model(HEADER + "g (float[N, 4] x) => (float[N, 4] y) { y = Neg (x) }")
        for info in (proto.graph.input[0], proto.graph.output[0]):
            info.type.tensor_type.shape.dim[0].dim_value = -1
        model = load(write(proto))
        first, second = model.shape(model.value("x"))
        assert isinstance(first, str)
        assert second == 4
        np.testing.assert_array_equal(run(model, x=X[None])[0], -X[None])

    def test_operators_of_onnx_runtime_without_their_domain(self, write):
        """ORT knows its own untold; the checker does not."""
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[4] y) { y = com.microsoft.Gelu (x) }")
        model = load(write(proto))
        assert model.ir.opset_imports["com.microsoft"] == 1
        assert model.notes == ()
        assert run(model, x=X)[0].shape == (4,)

    @pytest.mark.parametrize("data_type", [0, 99])
    @pytest.mark.parametrize("where", ["initializer", "constant", "body"])
    def test_a_tensor_of_no_type(self, write, data_type, where):
        tensor = TensorProto(name="w", data_type=data_type, dims=[4], raw_data=bytes(16))
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[4] y) { y = Neg (x) }")
        constant = helper.make_node("Constant", [], ["c"])
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        if where == "initializer":
            proto.graph.initializer.append(tensor)
        elif where == "constant":
            proto.graph.node.append(constant)
        else:
            body = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])])
            proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
        with pytest.raises(ModelError, match=rf"'w'.*found type {data_type}"):
            load(write(proto))

    @pytest.mark.parametrize(
        "tensor",
        [
            TensorProto(dims=[4], data_type=TensorProto.FLOAT, raw_data=bytes(12)),
            TensorProto(dims=[4], data_type=TensorProto.FLOAT, float_data=[1, 2, 3]),
            TensorProto(dims=[4], data_type=TensorProto.FLOAT),
            TensorProto(dims=[-4], data_type=TensorProto.FLOAT, raw_data=bytes(16)),
            TensorProto(dims=[1 << 10, 1 << 10], data_type=TensorProto.FLOAT, raw_data=bytes(1 << 21)),
            TensorProto(dims=[4], data_type=TensorProto.STRING, string_data=[b"a"]),
            TensorProto(dims=[5], data_type=TensorProto.INT4, raw_data=bytes(2)),
            TensorProto(dims=[2], data_type=TensorProto.COMPLEX64, float_data=[1, 2]),
        ],
    )
    def test_a_tensor_with_too_little_in_it(self, write, tensor):
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[4] y) { y = Neg (x) }")
        tensor.name = "w"
        proto.graph.initializer.append(tensor)
        with pytest.raises(ModelError, match=r"'w'.*damaged"):
            load(write(proto))

    @pytest.mark.parametrize(
        "tensor",
        [
            TensorProto(dims=[5], data_type=TensorProto.INT4, raw_data=bytes(3)),
            TensorProto(dims=[5], data_type=TensorProto.INT4, int32_data=[1, 2, 3]),
            TensorProto(dims=[2], data_type=TensorProto.COMPLEX64, float_data=[1, 2, 3, 4]),
            TensorProto(dims=[2], data_type=TensorProto.STRING, string_data=[b"a", b"b"]),
            TensorProto(dims=[0], data_type=TensorProto.FLOAT),
            TensorProto(dims=[], data_type=TensorProto.FLOAT16, int32_data=[15360]),
            TensorProto(dims=[1 << 10, 1 << 9], data_type=TensorProto.FLOAT, raw_data=bytes(1 << 21)),
        ],
    )
    def test_a_tensor_with_all_in_it(self, write, tensor):
        proto = onnx.parser.parse_model(HEADER + "g (float[4] x) => (float[4] y) { y = Neg (x) }")
        tensor.name = "w"
        proto.graph.initializer.append(tensor)
        assert load(write(proto)).has_value("w")
