"""Weights in files of their own: what is read, what is refused, and what links may do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from explorer.errors import ExportError, ModelError
from explorer.model import load, save
from explorer.model.save import data_folder, serialize

ONES = np.ones(16, np.float32).tobytes()


def external(location: str, *, offset: object = 0, length: object = 64, dims: tuple[int, ...] = (4, 4)):
    """A model whose weight is in the file `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refusal(path: Path | str) -> str:
    """The sentence with which `load` refuses the file."""
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.__cause__ is None
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_is_left_where_it_is(write, tmp_path):
    (tmp_path / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    model = load(write(external("w.bin")))
    np.testing.assert_array_equal(model.constant(model.value("w")), np.arange(16).reshape(4, 4))


def test_missing(write):
    text = refusal(write(external("w.bin")))
    assert "'w.bin'" in text
    assert "found none" in text
    assert "copy it there" in text


def test_too_short(write, tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(60))
    text = refusal(write(external("w.bin")))
    assert "at least 64 bytes" in text
    assert "found 60" in text
    assert "copy it again" in text


def test_too_short_without_a_length(write, tmp_path):
    """`length` may be left out: then the type and the dimensions say how much there must be."""
    (tmp_path / "w.bin").write_bytes(bytes(60))
    text = refusal(write(external("w.bin", length=None)))
    assert "found 60" in text


def test_too_short_behind_the_offset(write, tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(64))
    assert "at least 80 bytes" in refusal(write(external("w.bin", offset=16)))


@pytest.mark.parametrize(("offset", "length"), [("many", 64), (0, "some"), (-16, 64), (0, -1), ("1e3", 64), ("", 64)])
def test_nonsense_offsets(write, tmp_path, offset, length):
    (tmp_path / "w.bin").write_bytes(bytes(128))
    text = refusal(write(external("w.bin", offset=offset, length=length)))
    assert "'w'" in text


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", ""])
def test_outside_the_folder(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.onnx"
    path.write_bytes(external(location).SerializeToString())
    text = refusal(path)
    assert "inside" in text
    assert repr(location) in text
    assert "refused" in text


def test_through_a_link_to_the_outside(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    (folder / "model.onnx").write_bytes(external("w.bin").SerializeToString())
    assert "refused" in refusal(folder / "model.onnx")


def test_in_a_subfolder(write, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.ones(16, np.float32).tobytes())
    model = load(write(external("data/w.bin")))
    assert model.constant(model.value("w")).sum() == 16


def test_found_from_another_working_directory(write, tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(np.ones(16, np.float32).tobytes())
    write(external("w.bin"))
    monkeypatch.chdir(tmp_path)
    model = load("model.onnx")
    monkeypatch.chdir("/")
    assert model.constant(model.value("w")).sum() == 16


def test_in_a_constant_of_a_body(write):
    tensor = external("w.bin").graph.initializer[0]
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4, 4])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
    )
    assert "'w.bin'" in refusal(write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))


@pytest.mark.parametrize("location", ["loop", "a" * 300, "a\0b", "."])
def test_no_file_at_all(write, tmp_path, location):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "found none" in refusal(write(external(location)))


def test_hard_links(write, tmp_path):
    """onnx and onnx_ir refuse to read such a file: better said at once than in the middle of something."""
    (tmp_path / "w.bin").write_bytes(ONES)
    (tmp_path / "other.bin").hardlink_to(tmp_path / "w.bin")
    text = refusal(write(external("w.bin")))
    assert "hard links" in text
    assert "copy" in text


def test_in_a_function_that_stays(write, tmp_path):
    (tmp_path / "w.bin").write_bytes(ONES)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "my": 1]> g (float[4, 4] x) => (float[4, 4] y) { y = my.F (x) }'
        '<domain: "my", opset_import: ["": 17]> F (a) => (b) { c = Constant <value_int = 1> () b = Add (a, c) }'
    )
    constant = proto.functions[0].node[0]
    constant.attribute[0].CopyFrom(helper.make_attribute("value", external("w.bin").graph.initializer[0]))
    assert len(load(write(proto)).nodes) == 1
    (tmp_path / "w.bin").unlink()
    assert "'w.bin'" in refusal(write(proto))


class TestLinks:
    @pytest.fixture
    def hub(self, tmp_path) -> Path:
        """A model as huggingface_hub keeps it: links in a snapshot lead to blobs."""
        blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "3f" / "onnx"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        (blobs / "0a1b").write_bytes(external("model.onnx_data").SerializeToString())
        (blobs / "2c3d").write_bytes(ONES)
        for name, blob in (("model.onnx", "0a1b"), ("model.onnx_data", "2c3d")):
            (snapshot / name).symlink_to(Path("../../../blobs") / blob)
        return snapshot / "model.onnx"

    def test_a_hub_cache(self, hub):
        model = load(hub)
        assert model.path == hub
        assert model.constant(model.value("w")).sum() == 16

    def test_a_copy_of_it_runs_with_the_data_in_place(self, hub):
        model = load(hub)
        folder = data_folder(model.ir)
        assert folder == hub.parents[3] / "blobs"
        options = ort.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        session = ort.InferenceSession(serialize(model.ir), options, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {"x": np.ones((1, 4), np.float32)})
        np.testing.assert_array_equal(result, [[4, 4, 4, 4]])

    def test_nothing_is_exported_from_it_but_beside_the_data(self, hub):
        model = load(hub)
        with pytest.raises(ExportError, match="blobs"):
            save(model.ir, hub.parent / "copy.onnx")
        copy = load(save(model.ir, hub.parents[3] / "blobs" / "copy.onnx"))
        assert copy.constant(copy.value("w")).sum() == 16

    def test_a_link_to_the_model_alone(self, write, tmp_path):
        (tmp_path / "w.bin").write_bytes(ONES)
        write(external("w.bin"))
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere" / "link.onnx"
        link.symlink_to(tmp_path / "model.onnx")
        model = load(link)
        assert model.path == link
        assert data_folder(model.ir) == tmp_path
        assert model.constant(model.value("w")).sum() == 16

    def test_beside_the_link_comes_first(self, hub):
        (hub.parents[3] / "blobs" / "model.onnx_data").write_bytes(bytes(64))
        model = load(hub)
        assert model.constant(model.value("w")).sum() == 16

    def test_a_linked_folder(self, write, tmp_path):
        (tmp_path / "w.bin").write_bytes(ONES)
        write(external("w.bin"))
        other = tmp_path.with_name(tmp_path.name + "_link")
        other.symlink_to(tmp_path)
        model = load(other / "model.onnx")
        assert model.constant(model.value("w")).sum() == 16

    def test_data_linked_out_of_both_folders(self, hub, tmp_path):
        (tmp_path / "secret").write_bytes(ONES)
        data = hub.with_name("model.onnx_data")
        data.unlink()
        data.symlink_to(tmp_path / "secret")
        assert "refused" in refusal(hub)

    def test_a_location_that_climbs_into_the_blobs(self, hub):
        os.truncate(hub, 0)
        hub.write_bytes(external("../../../blobs/2c3d").SerializeToString())
        assert "refused" in refusal(hub)

    def test_data_in_two_folders(self, hub):
        """Sessions look into one folder only."""
        proto = external("model.onnx_data")
        second = proto.graph.initializer.add()
        second.CopyFrom(external("here.bin").graph.initializer[0])
        second.name = "v"
        hub.write_bytes(proto.SerializeToString())
        hub.with_name("here.bin").write_bytes(ONES)
        assert "'here.bin'" in refusal(hub)
