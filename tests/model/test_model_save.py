"""A file is either complete or not there, and nothing is replaced unasked."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from explorer.errors import ExportError
from explorer.model import load, save, write_atomically
from explorer.model.save import has_external_data, serialize

NEG = "g (float[N, 4] x) => (float[N, 4] y) { a = Neg (x) y = Abs (a) }"
BIG = bytes(range(256)) * 4096  # 1 MB


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: what a full disk does, by the same OSError on write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(data: bytes, path: Path | str, **options: bool) -> str:
    with pytest.raises(ExportError) as caught:
        write_atomically(data, path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.__cause__ is None
    return text


class TestRoundTrip:
    @pytest.mark.parametrize("sample", ["f5_dit_fp16", "f5_dit_fp16_two_casts", "bert_fp32", "gpt_fp32"])
    def test_a_sample_is_the_same_model(self, samples, folder, sample):
        model = load(samples / f"{sample}.onnx")
        copy = load(save(model.ir, folder / "copy.onnx"))
        before, after = onnx.load(samples / f"{sample}.onnx"), onnx.load(folder / "copy.onnx")
        for field in ("node", "input", "output"):
            assert list(getattr(before.graph, field)) == list(getattr(after.graph, field))
        weights = [{t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (before, after)]
        assert weights[0].keys() == weights[1].keys()
        for name, array in weights[0].items():
            np.testing.assert_array_equal(array, weights[1][name])
            assert array.dtype == weights[1][name].dtype
        assert [copy.key(node) for node in copy.nodes] == [model.key(node) for node in model.nodes]
        assert serialize(copy.ir) == serialize(model.ir)

    def test_the_same_bytes_each_time(self, opened):
        model = opened(NEG)
        assert serialize(model.ir) == serialize(model.ir)

    def test_more_than_a_file_can_hold(self, opened, monkeypatch):
        model = opened("g (float[N] x) => (float[N] y) <float[4] w = {1, 2, 3, 4}> { y = Add (x, w) }")
        monkeypatch.setattr(
            sys.modules["explorer.model.save"], "_MAX_PROTO_BYTES", 15
        )  # the name `save` is the function
        with pytest.raises(ExportError, match=r"at most 2 GB.*external data"):
            serialize(model.ir)

    def test_remarks_of_the_source_that_are_no_text(self, write):
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> {NEG}')
        proto.graph.node[0].metadata_props.add(key="k", value="remark")
        model = load(write(proto.SerializeToString().replace(b"remark", b"rem\xf2rk")))
        with pytest.raises(ExportError, match="damaged"):
            serialize(model.ir)

    def test_returns_the_path(self, opened, folder):
        assert save(opened(NEG).ir, str(folder / "m.onnx")) == folder / "m.onnx"


class TestNeverUnasked:
    def test_an_existing_file_is_kept(self, folder):
        target = folder / "m.onnx"
        target.write_bytes(b"mine")
        text = refusal(b"new", target)
        assert "exists" in text
        assert "another name" in text
        assert target.read_bytes() == b"mine"
        assert names(folder) == ["m.onnx"]

    def test_unless_asked(self, folder):
        target = folder / "m.onnx"
        target.write_bytes(b"mine")
        assert write_atomically(b"new", target, overwrite=True) == target
        assert target.read_bytes() == b"new"
        assert names(folder) == ["m.onnx"]

    def test_a_file_that_appears_meanwhile(self, folder, monkeypatch):
        target = folder / "m.onnx"
        fsync = os.fsync

        def appear(descriptor: int) -> None:
            fsync(descriptor)
            target.write_bytes(b"mine")

        monkeypatch.setattr(os, "fsync", appear)
        assert "appeared meanwhile" in refusal(b"new", target)
        assert target.read_bytes() == b"mine"
        assert names(folder) == ["m.onnx"]

    def test_a_link_that_leads_nowhere_counts_as_existing(self, folder):
        target = folder / "m.onnx"
        target.symlink_to(folder / "gone")
        refusal(b"new", target)
        assert target.is_symlink()
        assert names(folder) == ["m.onnx"]

    def test_a_folder_is_no_file(self, folder):
        assert "add a name" in refusal(b"x", folder)
        assert "add a name" in refusal(b"x", folder, overwrite=True)
        assert names(folder) == []

    def test_without_hard_links(self, folder, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        write_atomically(b"new", folder / "m.onnx")
        assert (folder / "m.onnx").read_bytes() == b"new"
        assert names(folder) == ["m.onnx"]


class TestWhereItCannotBe:
    def test_missing_folder(self, folder):
        text = refusal(b"x", folder / "absent" / "m.onnx")
        assert "absent" in text
        assert "No such file or directory" in text

    def test_below_a_file(self, folder):
        (folder / "file").write_text("x")
        assert "Not a directory" in refusal(b"x", folder / "file" / "m.onnx")

    def test_read_only_folder(self, folder, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.mkstemp", refuse)
        text = refusal(b"x", folder / "m.onnx")
        assert "writable folder" in text
        assert "Permission denied" in text
        assert names(folder) == []

    @pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["too long", "null byte"])
    def test_impossible_name(self, folder, name):
        assert "expected" in refusal(b"x", f"{folder}/{name}")
        assert "expected" in refusal(b"x", f"{folder}/{name}", overwrite=True)
        assert names(folder) == []

    @pytest.mark.parametrize(("overwrite", "existing"), [(False, False), (True, False), (True, True)])
    def test_full_disk(self, folder, overwrite, existing):
        """A real failure in the middle of the write."""
        target = folder / "m.onnx"
        if existing:
            target.write_bytes(b"mine")
        with no_more_than(len(BIG) // 2):
            text = refusal(BIG, target, overwrite=overwrite)
        assert "room and permission" in text
        assert names(folder) == (["m.onnx"] if existing else [])
        if existing:
            assert target.read_bytes() == b"mine"

    @pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
    def test_a_failure_at_any_step(self, folder, monkeypatch, function):
        target = folder / "m.onnx"
        target.write_bytes(b"mine")

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(function, fail)
        assert "No space left on device" in refusal(b"new", target, overwrite=True)
        monkeypatch.undo()
        assert target.read_bytes() == b"mine"
        assert names(folder) == ["m.onnx"]

    def test_an_interrupt_leaves_nothing_either(self, folder, monkeypatch):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(b"new", folder / "m.onnx")
        assert names(folder) == []

    def test_the_next_attempt_succeeds(self, folder):
        with no_more_than(1000):
            refusal(BIG, folder / "m.onnx")
        write_atomically(BIG, folder / "m.onnx")
        assert (folder / "m.onnx").read_bytes() == BIG


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(folder, mask):
    before = os.umask(mask)
    try:
        write_atomically(b"x", folder / "m.onnx")
        found = os.umask(mask)
    finally:
        os.umask(before)
    assert found == mask, "writing must not change the umask of the process"
    assert (folder / "m.onnx").stat().st_mode & 0o777 == 0o666 & ~mask


class TestExternalData:
    @pytest.fixture
    def source(self, write, tmp_path) -> Path:
        (tmp_path / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "64")):
            weight.external_data.add(key=key, value=value)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
            [weight],
        )
        return write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    def test_stays_in_its_own_folder(self, source, folder):
        model = load(source)
        assert has_external_data(model.ir)
        with pytest.raises(ExportError) as caught:
            save(model.ir, folder / "m.onnx")
        text = str(caught.value)
        assert str(source.parent) in text
        assert str(folder) in text
        assert "'w.bin'" in text
        assert "choose a file in that folder" in text
        assert names(folder) == []

    def test_shares_the_data(self, source):
        model = load(source)
        copy = load(save(model.ir, source.with_name("copy.onnx")))
        np.testing.assert_array_equal(copy.constant(copy.value("w")), np.arange(16).reshape(4, 4))
        assert source.with_name("copy.onnx").stat().st_size < 500

    def test_its_own_data_is_never_replaced(self, source):
        """Not even on request: the model written there would refer to itself."""
        model = load(source)
        with pytest.raises(ExportError, match=r"w\.bin"):
            save(model.ir, source.with_name("w.bin"), overwrite=True)
        assert source.with_name("w.bin").stat().st_size == 64

    def test_a_model_without_any(self, opened):
        assert not has_external_data(opened(NEG).ir)
