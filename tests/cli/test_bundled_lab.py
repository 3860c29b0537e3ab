"""Samples and notebooks that come along, and JupyterLab started on them."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from explorer import bundled, lab
from explorer.errors import ExportError, ModelError

SAMPLES = ["bert_fp32.onnx", "f5_dit_fp16.onnx", "f5_dit_fp16_two_casts.onnx", "gpt_fp32.onnx"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened_path(notebook: Path) -> str:
    """The path that the notebook's code opens, as Python reads it."""
    document = nbformat.read(notebook, as_version=4)
    nbformat.validate(document)
    (cell,) = document.cells
    (call,) = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    assert ast.unparse(call.func) == "ex.Explorer"
    return ast.literal_eval(call.args[0])


class TestCopy:
    def test_samples(self, tmp_path, samples):
        copied = bundled.copy("sample_models", ".onnx", tmp_path / "a" / "b")
        assert [path.name for path in copied] == SAMPLES
        for path in copied:
            assert path.read_bytes() == (samples / path.name).read_bytes()

    def test_nothing_else_comes_along(self, tmp_path):
        bundled.copy("sample_models", ".onnx", tmp_path)
        assert names(tmp_path) == SAMPLES

    def test_what_is_there_is_kept(self, tmp_path):
        (tmp_path / SAMPLES[0]).write_text("mine")
        bundled.copy("sample_models", ".onnx", tmp_path)
        assert (tmp_path / SAMPLES[0]).read_text() == "mine"

    def test_files_of_the_user_are_not_called_samples(self, tmp_path):
        (tmp_path / "aaa_mine.onnx").write_text("mine")
        assert [path.name for path in bundled.copy("sample_models", ".onnx", tmp_path)] == SAMPLES

    def test_a_full_disk_leaves_no_half_file(self, tmp_path):
        """It would be taken for a file of the user's, and kept for ever."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            with pytest.raises(ExportError) as caught:
                bundled.copy("sample_models", ".onnx", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        for path in tmp_path.iterdir():
            assert path.read_bytes() == (bundled.folder("sample_models") / path.name).read_bytes()
        bundled.copy("sample_models", ".onnx", tmp_path)
        assert names(tmp_path) == SAMPLES

    def test_where_there_can_be_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("x")
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(ExportError, match="folder that can be written") as caught:
                bundled.copy("sample_models", ".onnx", folder)
            assert "\n" not in str(caught.value)

    def test_installed_files_come_before_those_of_a_checkout(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bundled, "_PACKAGE", tmp_path / "explorer")
        assert bundled.folder("notebooks") == tmp_path / "notebooks"
        (tmp_path / "explorer" / "bundled" / "notebooks").mkdir(parents=True)
        assert bundled.folder("notebooks") == tmp_path / "explorer" / "bundled" / "notebooks"


class TestPrepare:
    def test_the_quickstart(self, tmp_path):
        notebook = lab.prepare(tmp_path, None)
        assert notebook == tmp_path / "notebooks" / "01_quickstart.ipynb"
        nbformat.validate(nbformat.read(notebook, as_version=4))
        assert names(tmp_path) == ["notebooks", "sample_models"]
        assert names(tmp_path / "sample_models") == SAMPLES

    def test_edited_files_are_kept(self, tmp_path):
        notebook = lab.prepare(tmp_path, None)
        notebook.write_text("edited")
        assert lab.prepare(tmp_path, None).read_text() == "edited"

    def test_a_model_of_the_users(self, tmp_path, write):
        path = write()
        notebook = lab.prepare(tmp_path / "lab", path)
        assert notebook.name.startswith("explore_model_")
        assert opened_path(notebook) == str(path)

    @pytest.mark.parametrize(
        "name",
        [
            "quo\"te's.onnx",
            "back\\slash\\n.onnx",
            "new\nline.onnx",
            "{brace} $dollar %percent.onnx",
            '"); import os; os.abort() #.onnx',
            "ünïcode 漢.onnx",
            "\x1b[2J.onnx",
            "-dash.onnx",
            ".hidden.onnx",
            os.fsdecode(b"\xff.onnx"),
        ],
        ids=ascii,
    )
    def test_a_hostile_path(self, tmp_path, write, name):
        path = write(None, name)
        notebook = lab.prepare(tmp_path / "lab", path)
        assert json.loads(notebook.read_bytes())["nbformat"] == 4
        assert opened_path(notebook) == str(path)

    def test_an_edited_notebook_of_a_model_is_kept(self, tmp_path, write):
        path = write()
        notebook = lab.prepare(tmp_path / "lab", path)
        notebook.write_text("edited")
        assert lab.prepare(tmp_path / "lab", path) == notebook
        assert notebook.read_text() == "edited"

    def test_two_models_of_one_name(self, tmp_path, write):
        """The notebook that is opened opens the model that was named."""
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
        first, second = write(None, "a/model.onnx"), write(None, "b/model.onnx")
        assert opened_path(lab.prepare(tmp_path / "lab", first)) == str(first)
        assert opened_path(lab.prepare(tmp_path / "lab", second)) == str(second)
        assert opened_path(lab.prepare(tmp_path / "lab", first)) == str(first)

    def test_a_very_long_name(self, tmp_path, write):
        path = write(None, "a" * 245 + ".onnx")
        assert opened_path(lab.prepare(tmp_path / "lab", path)) == str(path)

    def test_a_model_that_is_none(self, tmp_path):
        (tmp_path / "bad.onnx").write_text("hello")
        with pytest.raises(ModelError, match=r"bad\.onnx"):
            lab.prepare(tmp_path / "lab", tmp_path / "bad.onnx")


class TestStart:
    @pytest.fixture
    def started(self, monkeypatch):
        calls = []

        def run(command: list[str], **options: object) -> SimpleNamespace:
            calls.append((command, options))
            return SimpleNamespace(returncode=5)

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    def test_jupyterlab_on_the_quickstart(self, started, tmp_path):
        assert lab.start(tmp_path / "lab", None) == 5
        ((command, options),) = started
        assert command[:3] == [sys.executable, "-m", "jupyterlab"]
        assert command[3] == str(Path("notebooks", "01_quickstart.ipynb"))
        assert options["cwd"] == tmp_path / "lab"
        assert f"--ServerApp.root_dir={tmp_path / 'lab'}" in command
        assert not options.get("shell")

    def test_from_a_relative_folder(self, started, tmp_path, monkeypatch, write):
        write()
        monkeypatch.chdir(tmp_path)
        lab.start(Path("lab"), Path("model.onnx"))
        ((command, options),) = started
        assert options["cwd"] == tmp_path / "lab"
        notebook = options["cwd"] / command[3]
        assert opened_path(notebook) == str(tmp_path / "model.onnx")

    def test_as_a_command(self, started, run, write, tmp_path):
        outcome = run("lab", write(), "--folder", tmp_path / "lab")
        assert outcome.status == 5
        assert started

    def test_not_for_a_model_that_cannot_be_opened(self, started, run, tmp_path):
        assert "absent.onnx" in run("lab", tmp_path / "absent.onnx", "--folder", tmp_path / "lab").sentence
        assert started == []
