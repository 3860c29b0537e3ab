"""What a terminal needs: progress while something takes long, and text from models that cannot drive the terminal."""

from __future__ import annotations

import re
import sys
from types import TracebackType
from typing import Self

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """`text` with control characters shown instead of obeyed: names in a model are untrusted."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


class Progress:
    """A line on stderr that says what is being done; nothing at all where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")

    def __call__(self, fraction: float, text: str) -> None:
        """Show that `fraction` (0 to 1) is done and `text` is next."""
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{self._what} {fraction:4.0%}  {plain(text)}")
            sys.stderr.flush()
