"""What a terminal needs: progress while something takes long, and text from models that cannot drive the terminal."""

from __future__ import annotations

import re
import sys
from types import TracebackType
from typing import Self

# Control characters, line and paragraph separators, and what turns the direction of writing
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """One line of `text` with control characters shown instead of obeyed: names in a model are untrusted."""
    return _CONTROL.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


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
