"""What libraries underneath say about a failure, in one line."""

from __future__ import annotations


def first_cause(error: BaseException) -> str:
    """The first line of the error that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
