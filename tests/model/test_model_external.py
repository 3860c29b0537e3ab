"""Weights in files of their own: what is read, what is refused, and what links may do."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from external_models import EVERYWHERE, everywhere, external, multiplying, stored, write_data
from onnx import TensorProto, numpy_helper

from explorer.errors import ModelError
from explorer.model import load, save
from explorer.model.external import StoredTensor, external_tensors, read_external_data
from explorer.model.save import external_files


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


NONSENSE = ["many", -16, "1e3", "", "1_6", " 16", "+16", "0x10", "１６", "9" * 20, "9" * 5000]


@pytest.mark.parametrize("what", ["offset", "length"])
@pytest.mark.parametrize("number", NONSENSE)
def test_nonsense_offsets(write, tmp_path, what, number):
    """ONNX Runtime takes digits only; Python's int() would take more."""
    (tmp_path / "w.bin").write_bytes(bytes(128))
    text = refusal(write(external("w.bin", **{what: number})))
    assert "'w'" in text
    assert "damaged" in text
    assert len(text) < 500


@pytest.mark.parametrize("offset", [65, 2**31, 2**63 - 1, 2**63, 10**19 - 1])
def test_an_offset_behind_the_end(write, tmp_path, offset):
    (tmp_path / "w.bin").write_bytes(bytes(128))
    assert f"at least {offset + 64} bytes" in refusal(write(external("w.bin", offset=offset)))


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.INT4])
@pytest.mark.parametrize("dims", [(2**62, 2**62), (2**62,) * 20], ids=len)
def test_dimensions_beyond_all_measure(write, tmp_path, data_type, dims):
    (tmp_path / "w.bin").write_bytes(bytes(128))
    text = refusal(write(external("w.bin", data_type=data_type, dims=dims)))
    assert "damaged" in text
    assert "at least" in refusal(write(external("w.bin", data_type=data_type, dims=dims, length=None)))


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "sub/../../w.bin",
        "/etc/passwd",
        "//server/share/w.bin",
        "",
        # What leads out of a folder on Windows is refused everywhere: a model is passed on
        "C:/w.bin",
        "C:w.bin",
        "C:\\w.bin",
        "\\w.bin",
        "..\\w.bin",
        "sub\\..\\..\\w.bin",
        "sub/..\\../w.bin",
        "\\\\server\\share\\w.bin",
        "\\\\?\\C:\\w.bin",
    ],
)
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


@pytest.mark.parametrize("location", ["loop", "a" * 300, "a" * 100_000, "a\0b", "absent/../w.bin", "sub\\w.bin"])
def test_no_file_at_all(write, tmp_path, location):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write_data(tmp_path, "w.bin", "sub/w.bin")
    text = refusal(write(external(location)))
    assert "found none" in text
    assert len(text) < 500


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_else_than_a_file(write, tmp_path, make):
    make(tmp_path / "thing")
    assert "is a folder, a pipe or a device" in refusal(write(external("thing")))


@pytest.mark.usefixtures("in_time")
def test_a_device(write, tmp_path):
    (tmp_path / "w.bin").symlink_to("/dev/zero")
    assert "refused" in refusal(write(external("w.bin")))


@pytest.mark.parametrize(
    "location", ["./w.bin", "sub/../w.bin", "sub/..//./w.bin", "w.bin/", "soft.bin", "linked/w.bin"]
)
def test_several_ways_to_one_file(write, tmp_path, location):
    """Whatever the file says, an export names the file itself: onnx refuses a link, ONNX Runtime one in a branch."""
    write_data(tmp_path, "w.bin")
    (tmp_path / "sub").mkdir()
    (tmp_path / "soft.bin").symlink_to("w.bin")
    (tmp_path / "linked").symlink_to(".")
    model = load(write(external(location)))
    assert model.constant(model.value("w")).sum() == 16
    assert onnx.load(save(model.ir, tmp_path / "m.onnx")).graph.initializer[0].dims == [4, 4]


def test_a_model_that_is_its_own_data(write):
    """As strange as harmless; a session reads it, too."""
    model = load(write(external("model.onnx")))
    assert model.constant(model.value("w")).shape == (4, 4)


class TestEntries:
    def test_twice_the_same(self, write, tmp_path):
        """ONNX Runtime refuses that; others take the last."""
        write_data(tmp_path, "w.bin", "v.bin")
        proto = external("w.bin")
        proto.graph.initializer[0].external_data.add(key="location", value="v.bin")
        assert "found [('location', 'v.bin')" in refusal(write(proto))

    def test_no_text(self, write, tmp_path):
        write_data(tmp_path, "w.bin")
        data = external("wXXbin").SerializeToString().replace(b"wXXbin", b"w\xf2\xffbin")
        assert "as text" in refusal(write(data))

    def test_strings_are_never_external(self, write, tmp_path):
        write_data(tmp_path, "w.bin")
        assert "found that tensor 'w' is text" in refusal(write(external("w.bin", data_type=TensorProto.STRING)))

    def test_others_are_kept_out_of_the_way(self, write, tmp_path):
        write_data(tmp_path, "w.bin")
        proto = external("w.bin")
        proto.graph.initializer[0].external_data.add(key="checksum", value="00")
        assert load(write(proto)).notes == ()


class TestReading:
    @pytest.mark.parametrize(
        "dtype", ["float32", "float16", "bfloat16", "int64", "bool", "float8_e4m3fn", "int4", "uint4", "complex64"]
    )
    def test_every_type(self, write, tmp_path, dtype):
        array = np.arange(15).reshape(3, 5).astype(dtype if dtype in np.sctypeDict else getattr(ml_dtypes, dtype))
        inline = ir.serde.serialize_tensor(ir.tensor(array, name="w"))
        (tmp_path / "w.bin").write_bytes(b"\0" * 7 + inline.raw_data + b"\0")
        proto = multiplying(stored("x"))
        proto.graph.initializer[0].CopyFrom(
            stored("w.bin", offset=7, length=None, dims=(3, 5), data_type=inline.data_type)
        )
        model = load(write(proto))
        found = model.constant(model.value("w"))
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        tensor = model.value("w").const_value
        assert tensor.tobytes() == inline.raw_data
        np.testing.assert_array_equal(np.asarray(tensor), array)

    def test_no_file_stays_open(self, write, tmp_path):
        """A thousand small weights are more than a process may have open."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        write_data(tmp_path, "w.bin")
        model = load(write(multiplying(*(stored("w.bin", f"w{number}") for number in range(300)))))
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
        try:
            arrays = [model.constant(model.value(f"w{number}")) for number in range(300)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all(array.sum() == 16 for array in arrays)

    @pytest.mark.parametrize(("size", "words"), [(63, "has changed"), (None, "put the file back")])
    def test_a_file_that_changed_since(self, write, tmp_path, size, words):
        write_data(tmp_path, "w.bin")
        model = load(write(external("w.bin")))
        if size is None:
            (tmp_path / "w.bin").unlink()
        else:
            os.truncate(tmp_path / "w.bin", size)
        with pytest.raises(ModelError, match=words):
            model.constant(model.value("w"))

    @pytest.mark.parametrize("linked", [False, True])
    def test_into_a_proto(self, tmp_path, linked):
        """As onnx does, and also where onnx refuses."""
        write_data(tmp_path, *EVERYWHERE)
        proto = everywhere()
        if linked:
            (tmp_path / "other.bin").hardlink_to(tmp_path / "w.bin")
            with pytest.raises(onnx.checker.ValidationError):
                onnx.load_external_data_for_model(everywhere(), str(tmp_path))
        read_external_data(proto, tmp_path)
        branch = proto.graph.node[1].attribute[0].g
        found = (
            proto.graph.initializer[0],
            branch.node[0].attribute[0].t,
            branch.initializer[0],
            proto.graph.node[2].attribute[0].t,
            proto.functions[0].node[0].attribute[0].t,
        )
        assert [numpy_helper.to_array(tensor)[0, 0] for tensor in found] == [1, 2, 3, 4, 5]
        onnx.checker.check_model(proto)


def test_in_every_place_a_tensor_can_be(write, tmp_path):
    write_data(tmp_path, *EVERYWHERE)
    path = write(everywhere())
    model = load(path)
    assert external_files(model.ir) == {tmp_path / location for location in EVERYWHERE}
    assert all(isinstance(tensor, StoredTensor) for tensor in external_tensors(model.ir))
    for location in EVERYWHERE:
        (tmp_path / location).rename(tmp_path / "away")
        assert repr(location) in refusal(path)
        (tmp_path / "away").rename(tmp_path / location)


def test_a_clone_shares_the_weights(write, tmp_path):
    write_data(tmp_path, *EVERYWHERE)
    model = load(write(everywhere())).ir
    assert list(map(id, external_tensors(model.clone()))) == list(map(id, external_tensors(model)))
