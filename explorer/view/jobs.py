"""Long work beside the kernel: one thread at a time, cancellable, its results handed to the kernel's own thread."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from explorer.errors import Cancelled, ExplorerError

Progress = Callable[[float, str], None]
Post = Callable[[Callable[[], None]], None]
"""Runs a function later on the thread that owns the widgets."""


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work. `run` is called on the work thread, `done` afterwards on the owner's."""

    name: str
    run: Callable[[Progress, threading.Event], object]
    done: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """What the owner of the widgets wants to hear: progress, an error, and the end (True if it was cancelled)."""

    progress: Progress
    error: Callable[[str, ExplorerError], None]
    end: Callable[[bool], None]


def kernel_post() -> Post:
    """Post to the event loop that runs this cell, with its context; call at once where there is no loop (a script)."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda function: function()
    context = contextvars.copy_context()

    def post(function: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(function, context=context)

    return post


class Jobs:
    """Runs steps one after the other; starting new ones cancels the old, whose results are then dropped."""

    def __init__(self, post: Post, listener: Listener) -> None:
        self._post = post
        self._listener = listener
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        _open.add(self)

    @property
    def running(self) -> bool:
        """Whether work is under way that nobody has cancelled."""
        return self._thread is not None and self._thread.is_alive() and not self._cancel.is_set()

    def start(self, steps: Sequence[Step]) -> None:
        """Cancel what runs and begin these steps as soon as it has stopped."""
        self._cancel.set()
        self._cancel = threading.Event()
        arguments = (tuple(steps), self._cancel, self._thread)
        self._thread = threading.Thread(target=self._work, args=arguments, name="explorer-work", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the running work to stop."""
        self._cancel.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the work has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self, steps: Sequence[Step], cancel: threading.Event, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()

        def tell(function: Callable[[], None]) -> None:
            # Newer work has another event: whatever older work still says is then about a state that is gone.
            self._post(lambda: function() if cancel is self._cancel else None)

        for step in steps:
            if cancel.is_set():
                break
            try:
                step.run(lambda f, text: tell(lambda: self._listener.progress(f, text)), cancel)
            except Cancelled:
                cancel.set()
            except ExplorerError as error:
                tell(lambda step=step, error=error: self._listener.error(step.name, error))  # type: ignore[misc]
            else:
                tell(step.done)
        tell(lambda: self._listener.end(cancel.is_set()))


_open: weakref.WeakSet[Jobs] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """At the end of the kernel nothing keeps running."""
    for jobs in list(_open):
        jobs.cancel()
        jobs.join(timeout=5)
