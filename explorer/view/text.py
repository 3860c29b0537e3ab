"""Text from a model is untrusted: how it is made safe for each place that interprets what it shows."""

from __future__ import annotations

import html as _html
import unicodedata

ELLIPSIS = "…"
_MARKS = {"Cc", "Cf", "Zl", "Zp", "Cs"}
"""Unicode categories that move, hide or reverse text around them (line ends, overrides, zero widths)."""


def printable(text: str) -> str:
    """`text` with every control and direction character replaced, so that it cannot disguise what stands beside it."""
    return "".join("\ufffd" if unicodedata.category(char) in _MARKS else char for char in text)


def as_html(text: object) -> str:
    """Escaped for HTML text and attributes."""
    return _html.escape(printable(str(text)))


def as_plot(text: object) -> str:
    """Escaped for plotly, which reads a subset of HTML everywhere and, where MathJax is loaded, TeX between dollars."""
    return _html.escape(printable(str(text)), quote=False).replace("$", "&#36;")


def middle(text: str, length: int) -> str:
    """`text` with its middle left out if it is longer than `length`: names differ at their ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}{ELLIPSIS}{text[len(text) - (length - 1 - head) :]}"


def tail(text: str, length: int) -> str:
    """The end of `text`, from a path separator on where there is one."""
    if len(text) <= length:
        return text
    kept = text[-(length - 1) :]
    cut = min((index for index in (kept.find("/"), kept.find(".")) if index >= 0), default=-1)
    return ELLIPSIS + (kept[cut + 1 :] if 0 <= cut < length // 2 else kept)
