"""What becomes of weights in files of their own: shared, copied or linked, as the user chooses, and never harmed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from external_models import EVERYWHERE, everywhere, external, multiplying, stored, write_data
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph

from explorer.errors import ExportError
from explorer.model import Model, load, save
from explorer.model.external import StoredTensor
from explorer.model.save import external_files, has_external_data

MODES = ("copy", "link")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the source: model.onnx and its data."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Another folder."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def model(home) -> Model:
    """Weights in five files, two of them in subfolders."""
    (home / "model.onnx").write_bytes(everywhere().SerializeToString())
    write_data(home, *EVERYWHERE)
    return load(home / "model.onnx")


@pytest.fixture
def plain(home) -> Model:
    (home / "model.onnx").write_bytes(external("w.bin").SerializeToString())
    write_data(home, "w.bin")
    return load(home / "model.onnx")


@pytest.fixture
def flat(home) -> Model:
    """The five files again, none of them with weights of a branch."""
    (home / "model.onnx").write_bytes(everywhere(inside=False).SerializeToString())
    write_data(home, *EVERYWHERE)
    return load(home / "model.onnx")


def total(model: Model) -> float:
    """Of the weight called w."""
    weight = model.constant(model.value("w"))
    assert weight is not None
    return float(weight.sum())


def files(folder: Path) -> list[str]:
    """Everything below `folder`, hidden files and empty folders, too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refusal(model: Model, path: Path, **options) -> str:
    """The sentence with which `save` refuses; it leaves all that is in the folder as it was."""
    before = snapshot(path.parent)
    with pytest.raises(ExportError) as caught:
        save(model.ir, path, **options)
    assert snapshot(path.parent) == before
    assert caught.value.__cause__ is None
    text = str(caught.value)
    assert "\n" not in text
    return text


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {str(path): (path.lstat().st_ino, path.read_bytes()) for path in paths}


def run(path: Path) -> float:
    """The first number that ONNX Runtime computes for zeros."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.zeros((4, 4), np.float32), "c": np.array(True)})
    return float(result[0, 0])


class TestShared:
    def test_stays_in_the_folder_of_its_data(self, plain, home, folder):
        assert has_external_data(plain.ir)
        text = refusal(plain, folder / "m.onnx")
        assert str(home) in text
        assert str(folder) in text
        assert "'w.bin'" in text
        assert "choose a file in that folder" in text
        assert "or copy or link the data" in text

    def test_refers_to_the_data_of_its_source(self, model, home):
        before = files(home)
        path = save(model.ir, home / "m.onnx")
        assert files(home) == sorted([*before, "m.onnx"])
        assert run(path) == 15
        assert external_files(load(path).ir) == external_files(model.ir)

    def test_through_a_linked_folder(self, plain, home, tmp_path):
        (tmp_path / "link").symlink_to(home)
        assert total(load(save(plain.ir, tmp_path / "link" / "m.onnx"))) == 16

    @pytest.mark.parametrize("name", ["w.bin", "hard.bin", "soft.bin"])
    def test_its_own_data_is_never_replaced(self, plain, home, name):
        """Not even on request: the model written there would refer to itself."""
        (home / "hard.bin").hardlink_to(home / "w.bin")
        (home / "soft.bin").symlink_to("w.bin")
        assert "the model's own weights" in refusal(plain, home / name, overwrite=True)


class TestCopied:
    def test_is_complete_without_its_source(self, model, home, folder):
        path = save(model.ir, folder / "m.onnx", data="copy")
        assert files(folder) == sorted([*EVERYWHERE, "m.onnx", "weights", "weights/deeper"])
        shutil.rmtree(home)
        assert run(path) == 15
        onnx.checker.check_model(str(path))
        assert load(path).notes == ()

    def test_a_file_that_several_tensors_share_is_copied_once(self, home, folder):
        proto = multiplying(stored("w.bin"), stored("./w.bin", "v"), stored("also.bin", "u"))
        (home / "model.onnx").write_bytes(proto.SerializeToString())
        write_data(home, "w.bin")
        (home / "also.bin").symlink_to("w.bin")
        model = load(home / "model.onnx")
        save(model.ir, folder / "m.onnx", data="copy")
        assert files(folder) == ["m.onnx", "w.bin"]

    def test_a_model_from_a_hub_cache(self, plain, home, folder):
        """Links from a snapshot into one folder of blobs."""
        (home / "model.onnx").rename(home / "0a1b")
        (home / "w.bin").rename(home / "2c3d")
        snapshot = home.with_name("snapshot")
        snapshot.mkdir()
        (snapshot / "model.onnx").symlink_to(home / "0a1b")
        (snapshot / "w.bin").symlink_to(home / "2c3d")
        path = save(load(snapshot / "model.onnx").ir, folder / "m.onnx", data="copy")
        assert files(folder) == ["2c3d", "m.onnx"]
        assert total(load(path)) == 16

    def test_nothing_of_it_is_read_here(self, model, folder, monkeypatch):
        monkeypatch.setattr(StoredTensor, "_read", None)
        save(model.ir, folder / "m.onnx", data="copy")

    def test_no_room(self, model, folder, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 64 - 1))
        text = refusal(model, folder / "m.onnx", data="copy")
        assert "free space" in text
        assert "link the data" in text


class TestLinked:
    def test_is_the_same_files(self, flat, home, folder):
        path = save(flat.ir, folder / "m.onnx", data="link")
        assert all((folder / location).samefile(home / location) for location in EVERYWHERE)
        assert run(path) == 15
        assert run(home / "model.onnx") == 15

    @pytest.mark.parametrize("of", ["source", "export"])
    def test_both_models_say_who_refuses_them(self, plain, home, folder, of):
        path = save(plain.ir, folder / "m.onnx", data="link")
        linked = load(path if of == "export" else home / "model.onnx")
        assert total(linked) == 16
        (note,) = linked.notes
        assert "'w.bin'" in note
        assert "ONNX Runtime reads it, but" in note
        assert "onnx_ir refuse it" in note

    def test_is_read_by_all_when_the_source_is_gone(self, plain, home, folder):
        path = save(plain.ir, folder / "m.onnx", data="link")
        shutil.rmtree(home)
        onnx.load(path)
        assert load(path).notes == ()

    def test_what_is_linked_already_stays(self, plain, home, folder):
        save(plain.ir, folder / "m.onnx", data="link")
        save(plain.ir, folder / "second.onnx", data="link")
        save(plain.ir, folder / "m.onnx", data="link", overwrite=True)
        assert files(folder) == ["m.onnx", "second.onnx", "w.bin"]
        assert (home / "w.bin").stat().st_nlink == 2

    def test_not_the_data_of_a_branch(self, model, home, folder):
        """ONNX Runtime would refuse the export, and the source from then on."""
        text = refusal(model, folder / "m.onnx", data="link")
        assert "If, Loop or Scan" in text
        assert "choose a copy" in text
        assert run(home / "model.onnx") == 15

    def test_a_branch_with_data_that_has_two_names(self, model, home):
        (home / "other").hardlink_to(home / "weights" / "a.bin")
        (note,) = load(home / "model.onnx").notes
        assert "'a.bin'" in note
        assert "but ONNX Runtime, onnx.load" in note
        with pytest.raises(InvalidGraph, match="hard links"):
            run(home / "model.onnx")

    def test_no_links_there(self, flat, folder, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        assert "choose a copy" in refusal(flat, folder / "m.onnx", data="link")
        assert files(folder) == []


@pytest.mark.parametrize("mode", MODES)
class TestEither:
    def test_what_is_there_stays(self, plain, folder, mode):
        (folder / "w.bin").write_text("mine")
        text = refusal(plain, folder / "m.onnx", data=mode)
        assert "'w.bin'" in text
        assert "choose another folder or ask to replace it" in text

    def test_unless_asked(self, plain, home, folder, mode):
        for name in ("w.bin", "m.onnx"):
            (folder / name).write_text("mine")
        path = save(plain.ir, folder / "m.onnx", data=mode, overwrite=True)
        assert total(load(path)) == 16
        assert (folder / "w.bin").read_bytes() == (home / "w.bin").read_bytes()
        assert files(folder) == ["m.onnx", "w.bin"]

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("through", ["itself", "a link"])
    def test_not_into_the_folder_of_the_data(self, plain, home, mode, overwrite, through):
        target = home
        if through == "a link":
            target = home.with_name("link")
            target.symlink_to(home)
        text = refusal(plain, target / "m.onnx", data=mode, overwrite=overwrite)
        assert "share the data" in text

    def test_not_over_another_file_of_the_source(self, home, mode):
        """From home/w.bin to home/sub/w.bin, which holds other weights of the same model."""
        proto = multiplying(stored("w.bin"), stored("sub/w.bin", "v"))
        (home / "model.onnx").write_bytes(proto.SerializeToString())
        write_data(home, "w.bin", "sub/w.bin")
        model = load(home / "model.onnx")
        text = refusal(model, home / "sub" / "m.onnx", data=mode, overwrite=True)
        assert "the model's own weights" in text

    def test_not_over_a_link_to_the_source(self, plain, home, folder, mode):
        (folder / "w.bin").symlink_to(home / "w.bin")
        assert "the model's own weights" in refusal(plain, folder / "m.onnx", data=mode, overwrite=True)
        assert (folder / "w.bin").is_symlink()

    def test_not_out_of_the_folder(self, flat, folder, tmp_path, mode):
        (tmp_path / "elsewhere").mkdir()
        (folder / "weights").symlink_to(tmp_path / "elsewhere")
        assert "leads elsewhere" in refusal(flat, folder / "m.onnx", data=mode)
        assert files(tmp_path / "elsewhere") == []

    def test_not_onto_itself(self, plain, folder, mode):
        assert "choose another name" in refusal(plain, folder / "w.bin", data=mode, overwrite=True)

    def test_no_such_folder(self, model, folder, mode):
        assert "make it first" in refusal(model, folder / "absent" / "m.onnx", data=mode)
        assert not (folder / "absent").exists()

    def test_an_existing_model(self, model, folder, mode):
        (folder / "m.onnx").write_text("mine")
        assert "exists" in refusal(model, folder / "m.onnx", data=mode)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_a_failure_on_the_way_leaves_nothing(self, flat, folder, monkeypatch, mode, error):
        """In the last step before they get their names: all data is there, and the model is being written."""
        calls, fsync = [], os.fsync

        def fail(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == (len(EVERYWHERE) + 1 if mode == "copy" else 1):
                raise error
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises((KeyboardInterrupt, ExportError)):
            save(flat.ir, folder / "m.onnx", data=mode)
        assert files(folder) == []

    def test_without_such_data_it_makes_no_difference(self, folder, mode):
        (folder / "source.onnx").write_bytes(
            onnx.parser.parse_model(
                '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Abs (x) }'
            ).SerializeToString()
        )
        model = load(folder / "source.onnx")
        assert not has_external_data(model.ir)
        save(model.ir, folder / "m.onnx", data=mode)
        assert files(folder) == ["m.onnx", "source.onnx"]


def test_no_such_choice(plain, home):
    assert "share, copy or link" in refusal(plain, home / "m.onnx", data="move")
