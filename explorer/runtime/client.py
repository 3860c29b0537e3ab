"""The worker process as its parent sees it: start it, call functions in it, cancel them, survive its death."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from explorer import errors
from explorer.runtime.protocol import Call, Failure, Progress, decode, encode

POLL_S = 0.05  # how often a waiting call looks at its cancel event and its clock
LAST_WORDS = 3  # lines of the log that are quoted when the worker dies

_COMMAND = (sys.executable, "-m", "explorer.runtime.worker")
_ROOT = Path(__file__).parents[2]  # where the package `explorer` lies, so that the worker finds this very one
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Worker:
    """A process that runs functions of this package, one call at a time, and may die without harm.

    It is started by the first call, serves any number of them, and after a crash, a timeout or a cancel the next call
    starts a fresh one. Any thread may call; calls wait for each other. Use it as a context manager, or `close` it.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        """`env`: environment variables for the process, on top of this process's own."""
        self._env = dict(env or {})
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the running worker; None when none is running."""
        process = self._process
        return process.popen.pid if process is not None and process.popen.poll() is None else None

    def call(
        self,
        function: str,
        args: Mapping[str, Any] | None = None,
        *,
        on_progress: Callable[[float, str], None] | None = None,
        cancel: threading.Event | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Run `function` ("explorer.module:function") in the worker and return its JSON value.

        `on_progress` is called in this thread with (fraction done 0 to 1, text). Setting `cancel` from another thread
        stops the call within 0.1 s. `timeout_s` includes starting a process, about half a second.

        Raises the explorer error that the function raised, WorkerError for any other exception of it, WorkerDied when
        the process ended, WorkerTimeout and Cancelled when it was stopped.
        """
        with self._lock:
            if cancel is not None and cancel.is_set():
                raise errors.Cancelled(_cancelled(function))
            if self._process is not None and self._process.popen.poll() is not None:
                self._stop()  # it died between two calls; nobody waited for it, so nobody needs to hear
            if self._process is None:
                self._process = _Process(self._env)
            self._calls += 1
            try:
                call = Call(self._calls, function, args or {})
                reply = _converse(self._process, call, on_progress, cancel, timeout_s)
            except BaseException:  # KeyboardInterrupt too: after a call that was left half-way its state is unknown
                self._stop()
                raise
        if isinstance(reply, Failure):
            raise _error(reply)
        return reply.value

    def close(self) -> None:
        """Stop the process, if one is running, and delete its files. A later call starts a fresh one.

        A call that is under way in another thread ends with WorkerDied.
        """
        process = self._process
        if process is not None:
            process.popen.kill()  # before the lock, which that call holds
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


class _Process:
    """One run of the worker program: its pipes, the thread that reads them, its folder and its log."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="onnx-explorer-", ignore_cleanup_errors=True)
        self.log_path = Path(self.folder.name, "worker.log")
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with self.log_path.open("ab") as log:  # appending: the worker writes through two descriptors
            self.popen = subprocess.Popen(
                [*_COMMAND, self.folder.name, str(self.log_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, **env},
            )
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # b"" marks the end
        self._reader = threading.Thread(target=self._read, args=(self.popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def send(self, line: bytes) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):  # it has just died: the reader finds the end of its output
            self.popen.stdin.write(line)
            self.popen.stdin.flush()

    def stop(self) -> None:
        """Kill it if it still runs, and release everything."""
        self.popen.kill()
        self.popen.wait()
        self._reader.join()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what could not be flushed to a dead process is nobody's loss
                pipe.close()
        self.folder.cleanup()

    def death(self, function: str) -> errors.WorkerDied:
        """Why it ended, in a sentence with the end of its log."""
        status = self.popen.wait()
        how = f"ended with exit status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
        hint = "; it probably ran out of memory, so try a smaller batch or sequence" if _out_of_memory(status) else ""
        log = _ANSI.sub("", self.log_path.read_text(errors="replace"))
        words = [line.strip() for line in log.splitlines() if line.strip()][-LAST_WORDS:]
        said = f" (its last words: {' / '.join(words)})" if words else ""
        return errors.WorkerDied(f"The worker process {how} while it ran {function}{hint}{said}.")


def _converse(
    process: _Process,
    call: Call,
    on_progress: Callable[[float, str], None] | None,
    cancel: threading.Event | None,
    timeout_s: float | None,
) -> Any:
    """Send the call, pass its progress on, and return its Result or Failure."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    process.send(encode(call))
    while True:
        if cancel is not None and cancel.is_set():
            raise errors.Cancelled(_cancelled(call.call))
        if deadline is not None and time.monotonic() > deadline:
            raise errors.WorkerTimeout(
                f"{call.call} was stopped after {timeout_s:g} s, its time limit; give it more time or smaller inputs."
            )
        try:
            line = process.lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if not line:
            raise process.death(call.call)
        message = decode(line)
        if isinstance(message, Call) or message.id != call.id:
            raise errors.WorkerError(f"Expected the worker's answer to call {call.id}, found {message}; try again.")
        if not isinstance(message, Progress):
            return message
        if on_progress is not None:
            on_progress(message.fraction, message.text)


def _error(failure: Failure) -> errors.ExplorerError:
    """The explorer error that a failure names; a plain WorkerError for a name that is none."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.ExplorerError):
        return kind(failure.message)
    return errors.WorkerError(failure.message)


def _cancelled(function: str) -> str:
    return f"{function} was cancelled before it finished."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _out_of_memory(status: int) -> bool:
    """Whether a status is what the kernel's out-of-memory killer leaves behind; Windows has no such sign."""
    return hasattr(signal, "SIGKILL") and status == -signal.SIGKILL
