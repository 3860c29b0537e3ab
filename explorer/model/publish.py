"""Files that appear complete or not at all, several of them together; nothing is replaced unasked."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from explorer.errors import ExportError

_CHUNK_BYTES = 1 << 23
# What a system answers that cannot copy between these two files by itself.
_NOT_BY_ITSELF = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))


class Publication:
    """New files under hidden names that get their own names all at once.

        with Publication(overwrite=False) as new:
            new.copy(source, target_of_data)
            new.write(pieces, target)
        # now they are there, and appeared in this order

    After an exception none of them is there, and what was there before still is. ExportError in words if a file cannot
    be made, its name is impossible or a folder's, or it exists and is not to be replaced.
    """

    def __init__(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._staged: list[tuple[Path, Path]] = []
        self._cleanup = ExitStack()

    def __enter__(self) -> Publication:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            if kind is None:
                self._publish()

    def folder(self, path: Path) -> None:
        """Make the folder `path` if there is none; it goes again if nothing is published into it."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with _in_words(f"a folder {path}"):
                folder.mkdir()
            self._cleanup.callback(_remove_if_empty, folder)

    def write(self, pieces: Iterable[bytes], target: Path) -> None:
        """Stage a file of these `pieces`, one after the other."""
        with self._stage(target) as file:
            file.writelines(pieces)

    def copy(self, source: Path, target: Path) -> None:
        """Stage a copy of `source`: as sparse as it is, sharing its blocks on disk if the file system can do that."""
        with _in_words(f"to read {source}"):
            original = source.open("rb", buffering=0)
        with original, self._stage(target) as file:
            _copy(original, file)

    def link(self, source: Path, target: Path) -> None:
        """Stage `target` as another name of the file `source`."""
        scratch = self._hidden(target)
        with _in_words(f"a file system on which {source} can get the name {target}", "choose a copy of the data"):
            scratch.hardlink_to(source)
        self._staged.append((scratch, target))

    @contextmanager
    def _stage(self, target: Path) -> Iterator[BinaryIO]:
        """A file to be filled that will be called `target`."""
        scratch = self._hidden(target)
        with _in_words(f"a writable folder {target.parent}"):
            file = scratch.open("xb")
        with _in_words(f"room and permission to write {target}"), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        self._staged.append((scratch, target))

    def _hidden(self, target: Path) -> Path:
        """A name beside `target` that nobody has and that will be nobody's in the end."""
        check_writable(target, overwrite=self._overwrite)
        scratch = target.parent / f".explorer.{secrets.token_hex(8)}.part"
        self._cleanup.callback(_remove, scratch)
        return scratch

    def _publish(self) -> None:
        with ExitStack() as undo:
            for scratch, target in self._staged:
                with _in_words(f"room and permission to write {target}"):
                    if not self._overwrite:
                        _publish_new(scratch, target)
                        undo.callback(_remove, target)
                    elif not os.path.lexists(target):
                        scratch.replace(target)
                        undo.callback(_remove, target)
                    else:
                        if target != self._staged[-1][1]:  # nothing can fail after the last
                            self._keep(target, undo)
                        scratch.replace(target)
            undo.pop_all()

    def _keep(self, target: Path, undo: ExitStack) -> None:
        """Let `undo` put back what is at `target` now."""
        kept = self._hidden(target)
        try:
            kept.hardlink_to(target)
        except OSError:  # a file system without hard links
            target.replace(kept)
        undo.callback(kept.replace, target)


def write_atomically(data: bytes, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `data` to `path` so that nobody ever sees half a file; ExportError in words if that cannot be."""
    with Publication(overwrite=overwrite) as new:
        new.write([data], Path(path))
    return Path(path)


def check_writable(path: Path, *, overwrite: bool) -> None:
    """ExportError if `path` is a folder, no possible name, or an existing file that is not to be replaced."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"expected a file name that can be written, found {str(path)!r}: {reason}") from None
    if path.is_dir():
        raise ExportError(f"expected a file name, found the folder {path}: add a name")
    if not overwrite:
        raise ExportError(f"expected a new file, found that {path} exists: choose another name or ask to replace it")


def check_room(sources: Iterable[Path], folder: Path) -> None:
    """ExportError if copies of `sources` do not fit on the disk of `folder`."""
    with _in_words(f"to read the files that are copied to {folder}"):
        needed = sum(_occupied_bytes(source) for source in sources)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"expected {needed / 1e9:.1f} GB of free space for the external data in {folder}, found "
            f"{free / 1e9:.1f} GB: choose another disk, or share or link the data"
        )


def _occupied_bytes(file: Path) -> int:
    """What `file` takes on its disk; holes take nothing."""
    found = file.stat()
    blocks: int | None = getattr(found, "st_blocks", None)  # of 512 bytes; not on Windows
    return found.st_size if blocks is None else min(512 * blocks, found.st_size)


def _publish_new(scratch: Path, path: Path) -> None:
    """Give `scratch` its final name, refusing a file that appeared meanwhile where the file system can tell."""
    try:
        path.hardlink_to(scratch)
    except FileExistsError:
        raise ExportError(f"expected a new file, found that {path} appeared meanwhile: choose another name") from None
    except OSError:  # a file system without hard links
        scratch.replace(path)


def _copy(source: FileIO, target: BinaryIO) -> None:
    size = os.fstat(source.fileno()).st_size
    target.truncate(size)  # what is not written is a hole
    for start, end in _written(source.fileno(), size):
        _copy_range(source, target, start, end)


def _written(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each part of a file that is no hole, as far as the system can tell."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            start, stop = end, size
        except AttributeError:  # a system that knows no holes
            start, stop = end, size
        yield start, stop
        end = stop


def _copy_range(source: FileIO, target: BinaryIO, start: int, end: int) -> None:
    """Copy these bytes to the same place, by the system itself or else a chunk at a time."""
    by_itself = hasattr(os, "copy_file_range")
    while start < end:
        count = 0
        if by_itself:
            try:
                count = os.copy_file_range(source.fileno(), target.fileno(), end - start, start, start)
            except OSError as error:
                if error.errno not in _NOT_BY_ITSELF:
                    raise
        if not count:
            by_itself = False
            source.seek(start)
            target.seek(start)
            count = target.write(source.read(min(_CHUNK_BYTES, end - start)))
        if not count:
            raise OSError(errno.EIO, "the file that is copied became shorter")
        start += count


@contextmanager
def _in_words(expected: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}{': ' if hint else ''}{hint}"
        raise ExportError(f"expected {expected}, found: {reason}") from None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
