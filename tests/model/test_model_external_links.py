"""External data behind links: what ONNX Runtime follows, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from external_models import ONES, external, write_data

from explorer.errors import ExportError, ModelError
from explorer.model import load, save
from explorer.model.save import data_folder, serialize


def refusal(path: Path) -> str:
    """The sentence with which `load` refuses the file."""
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_hard_links(write, tmp_path):
    """ONNX Runtime reads such a file, so it is read here, too; uv and Nix install packages that way."""
    write_data(tmp_path, "w.bin")
    (tmp_path / "other.bin").hardlink_to(tmp_path / "w.bin")
    path = write(external("w.bin"))
    model = load(path)
    (note,) = model.notes
    assert "'w.bin' has several names (hard links)" in note
    assert model.constant(model.value("w")).sum() == 16
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].sum() == 16
    with pytest.raises(onnx.checker.ValidationError, match="hard links"):
        onnx.load(path)
    with pytest.raises(ValueError, match="hard links"):
        ir.load(path).graph.initializers["w"].const_value.numpy()


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
