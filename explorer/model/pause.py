"""No garbage collection while a graph is built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Hold Python's cyclic collector back, then let it go on as before.

    A graph of a hundred thousand nodes is millions of objects that all stay. The collector would walk over them again
    and again while they are made, and three times more behind, as they grow old: they are made old at once.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():  # what somebody else froze must stay so
                gc.freeze()
                gc.unfreeze()  # puts all into the oldest generation
            gc.enable()
