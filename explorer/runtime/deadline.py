"""One time limit for several calls."""

from __future__ import annotations

import time


class Deadline:
    """The moment at which a time limit that several calls share is over; it counts from when this is made."""

    def __init__(self, limit_s: float | None) -> None:
        """`limit_s`: seconds from now; None for no limit."""
        self._end_s = None if limit_s is None else time.monotonic() + limit_s

    def left_s(self) -> float | None:
        """What is left for the next call, in tenths of a second and never below 0; None without a limit."""
        return None if self._end_s is None else max(0.0, round(self._end_s - time.monotonic(), 1))
