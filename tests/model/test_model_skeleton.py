"""A graph without its weights keeps its structure and its types, and passes what the whole would pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from external_models import external, stored
from onnx import TensorProto, helper, numpy_helper

from explorer.model import load
from explorer.model.save import serialize
from explorer.model.skeleton import skeleton, skeleton_of

BIG = 4096
"""Elements: more than is kept."""


def constants() -> onnx.ModelProto:
    """y = reshape(x + w + k, s): w stored, k and s Constants; w and k are weights."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], name="first"),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(BIG, np.float32))),
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([-1, 64], np.int64))),
        helper.make_node("Add", ["a", "k"], ["b"], name="second"),
        helper.make_node("Reshape", ["b", "s"], ["y"], name="reshape"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BIG])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [BIG // 64, 64])],
        [numpy_helper.from_array(np.ones(BIG, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def accepted(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)


@pytest.mark.parametrize("of", ["the protobuf", "the IR"])
def test_weights_are_inputs_wherever_they_stand(write, of):
    proto = constants()
    model = load(write(proto))
    bare = skeleton(proto) if of == "the protobuf" else skeleton_of(model.ir)
    accepted(bare)
    assert {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in bare.graph.input} == {
        "x": [BIG],
        "w": [BIG],
        "k": [BIG],
    }
    assert [node.op_type for node in bare.graph.node] == ["Add", "Constant", "Add", "Reshape"]
    assert bare.ByteSize() < 1000
    assert constants() == proto, "the model itself stays as it is"
    assert onnx.load_from_string(serialize(model.ir)).graph.node == proto.graph.node


def test_a_constant_that_is_given_out(write):
    proto = constants()
    proto.graph.output.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [BIG]))
    accepted(skeleton_of(load(write(proto)).ir))


@pytest.mark.parametrize("where", ["initializer", "Constant"])
def test_what_is_small_is_read_from_its_file(write, tmp_path, where):
    """Without the contents of a Reshape's target nobody can check what stands behind it."""
    (tmp_path / "s.bin").write_bytes(np.array([-1, 64], np.int64).tobytes())
    small = stored("s.bin", "s", length=16, dims=(2,), data_type=TensorProto.INT64)
    proto = constants()
    if where == "initializer":
        del proto.graph.node[2]
        proto.graph.initializer.append(small)
    else:
        proto.graph.node[2].attribute[0].CopyFrom(helper.make_attribute("value", small))
    model = load(write(proto))
    accepted(skeleton_of(model.ir))
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 63
    with pytest.raises(onnx.shape_inference.InferenceError, match=r"63.*64|64.*63"):
        accepted(skeleton_of(load(write(proto)).ir))


def test_what_is_large_is_not_read(write, tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(bytes(4 * BIG))
    model = load(write(external("w.bin", dims=(4, BIG // 4), length=None)))
    (tmp_path / "w.bin").unlink()
    bare = skeleton_of(model.ir)
    assert [info.name for info in bare.graph.input] == ["x", "w"]
    assert not bare.graph.initializer
