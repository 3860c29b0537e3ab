"""Files are complete or not there, several together, and nothing is replaced unasked."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from explorer.errors import ExportError
from explorer.model import write_atomically
from explorer.model.publish import Publication

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

        monkeypatch.setattr(Path, "open", refuse)
        text = refusal(b"x", folder / "m.onnx")
        assert "writable folder" in text
        assert "Permission denied" in text
        monkeypatch.undo()
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

    @pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace"])
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


class TestSeveral:
    """All or none, in whatever step something fails."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "data"
        path.write_bytes(BIG)
        return path

    @staticmethod
    def publish(folder: Path, source: Path, *, overwrite: bool = False) -> None:
        with Publication(overwrite=overwrite) as new:
            new.folder(folder / "a" / "b")
            new.copy(source, folder / "a" / "b" / "copy")
            new.link(source, folder / "link")
            new.write([b"one", b"two"], folder / "m.onnx")

    def test_all_are_there(self, folder, source):
        self.publish(folder, source)
        assert (folder / "a" / "b" / "copy").read_bytes() == BIG
        assert (folder / "link").samefile(source)
        assert (folder / "m.onnx").read_bytes() == b"onetwo"
        assert names(folder) == ["a", "link", "m.onnx"]
        assert names(folder / "a" / "b") == ["copy"]

    def test_none_is_there_before_all_can_be(self, folder, source):
        with Publication(overwrite=False) as new:
            new.copy(source, folder / "copy")
            new.write([b"one"], folder / "m.onnx")
            assert all(name.startswith(".explorer.") for name in names(folder))
        assert names(folder) == ["copy", "m.onnx"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    @pytest.mark.parametrize("at", range(3))
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_failure_when_they_get_their_names(self, folder, source, monkeypatch, overwrite, at, error):
        method = "replace" if overwrite else "hardlink_to"
        original, calls = getattr(Path, method), []

        def fail(self: Path, other: Path) -> None:
            if (other if overwrite else self).name in ("copy", "link", "m.onnx"):
                calls.append(self)
                if len(calls) == at + 1:
                    raise error
            original(self, other)

        monkeypatch.setattr(Path, method, fail)
        if not overwrite and error is not KeyboardInterrupt:
            error = FileExistsError(17, "File exists")  # another error would only mean that links are not supported
        with pytest.raises((ExportError, KeyboardInterrupt)):
            self.publish(folder, source, overwrite=overwrite)
        assert len(calls) == at + 1
        assert names(folder) == []

    @pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
    @pytest.mark.parametrize("at", range(2))
    def test_what_was_there_comes_back(self, folder, source, monkeypatch, at, links):
        for name in ("data", "m.onnx"):
            (folder / name).write_text(f"mine: {name}")
        replace, calls = Path.replace, []

        def fail(self: Path, other: Path) -> None:
            if other.name in ("data", "m.onnx") and self.suffix == ".part":
                calls.append(other.name)
                if len(calls) == at + 1:
                    raise OSError(5, "Input/output error")
            replace(self, other)

        def refuse(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(Path, "replace", fail)
        if not links:
            monkeypatch.setattr(Path, "hardlink_to", refuse)

        def publish() -> None:
            with Publication(overwrite=True) as new:
                new.copy(source, folder / "data")
                new.write([b"new"], folder / "m.onnx")

        with pytest.raises(ExportError, match="Input/output error"):
            publish()
        assert names(folder) == ["data", "m.onnx"]
        for name in ("data", "m.onnx"):
            assert (folder / name).read_text() == f"mine: {name}"

    def test_a_full_disk_while_copying(self, folder, source):
        with no_more_than(len(BIG) // 2), pytest.raises(ExportError, match="room and permission"):
            self.publish(folder, source)
        assert names(folder) == []

    def test_a_source_that_is_gone(self, folder, source):
        source.unlink()
        with pytest.raises(ExportError, match=r"expected to read .*data, found: No such file"):
            self.publish(folder, source)
        assert names(folder) == []

    def test_a_folder_that_cannot_be(self, folder, source):
        (folder / "a").write_text("a file")
        with pytest.raises(ExportError, match="Not a directory"):
            self.publish(folder, source)
        assert names(folder) == ["a"]

    def test_no_links_between_these_places(self, folder, source, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(ExportError, match="cross-device link: choose a copy"):
            self.publish(folder, source)
        assert names(folder) == []


class TestCopy:
    HOLE = 1 << 24

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """A hole, a megabyte, a hole, some bytes that end within a block, a hole."""
        path = tmp_path / "sparse"
        with path.open("wb") as file:
            file.seek(self.HOLE)
            file.write(BIG)
            file.seek(3 * self.HOLE)
            file.write(b"end" * 5000)
            file.truncate(4 * self.HOLE + 1)
        return path

    def copied(self, source: Path, folder: Path) -> Path:
        with Publication(overwrite=False) as new:
            new.copy(source, folder / "copy")
        return folder / "copy"

    @staticmethod
    def disk(path: Path) -> int:
        return path.stat().st_blocks * 512

    def test_holes_stay_holes(self, source, folder):
        assert self.disk(source) < self.HOLE, "this file system has no sparse files: test on another"
        copy = self.copied(source, folder)
        assert copy.read_bytes() == source.read_bytes()
        assert self.disk(copy) <= self.disk(source) + 8192

    @pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL])
    def test_where_the_system_does_not_copy_by_itself(self, source, folder, monkeypatch, code):
        def refuse(*_: object) -> int:
            raise OSError(code, "no")

        monkeypatch.setattr(os, "copy_file_range", refuse)
        copy = self.copied(source, folder)
        assert copy.read_bytes() == source.read_bytes()
        assert self.disk(copy) <= self.disk(source) + 8192

    def test_many_small_holes(self, tmp_path, folder, monkeypatch):
        monkeypatch.delattr(os, "copy_file_range")
        source = tmp_path / "pages"
        with source.open("wb") as file:
            for page in range(0, 64, 2):
                file.seek(page * 4096)
                file.write(bytes([page + 1]) * (4096 - page))
        assert self.copied(source, folder).read_bytes() == source.read_bytes()

    def test_where_it_copies_a_little_at_a_time(self, source, folder, monkeypatch):
        original, calls = os.copy_file_range, []

        def a_little(src: int, dst: int, count: int, *offsets: int) -> int:
            calls.append(count)
            return original(src, dst, min(count, 100_000), *offsets)

        monkeypatch.setattr(os, "copy_file_range", a_little)
        assert self.copied(source, folder).read_bytes() == source.read_bytes()
        assert len(calls) > 10

    @pytest.mark.parametrize("by_itself", [True, False])
    def test_where_holes_are_unknown(self, source, folder, monkeypatch, by_itself):
        monkeypatch.delattr(os, "SEEK_DATA")
        if not by_itself:
            monkeypatch.delattr(os, "copy_file_range")
        assert self.copied(source, folder).read_bytes() == source.read_bytes()

    def test_errors_of_the_disk_are_told(self, source, folder, monkeypatch):
        def fail(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "copy_file_range", fail)
        with pytest.raises(ExportError, match="Input/output error"):
            self.copied(source, folder)
        assert names(folder) == []

    def test_a_source_that_becomes_shorter(self, source, folder, monkeypatch):
        def shorten(*_: object) -> int:
            os.truncate(source, 0)
            return 0

        monkeypatch.setattr(os, "copy_file_range", shorten)
        with pytest.raises(ExportError, match="became shorter"):
            self.copied(source, folder)
        assert names(folder) == []

    def test_nothing_to_copy(self, tmp_path, folder):
        (tmp_path / "empty").touch()
        assert self.copied(tmp_path / "empty", folder).stat().st_size == 0
