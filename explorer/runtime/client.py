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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from explorer import errors
from explorer.runtime.memory import in_words, memory
from explorer.runtime.protocol import Call, Failure, Progress, Result, Usage, decode, encode
from explorer.runtime.refusals import is_out_of_memory

POLL_S = 0.05  # how often a waiting call looks at its cancel event, its clock and the worker's memory
GRACE_S = 5.0  # for a worker whose output has ended to end itself
LAST_WORDS = 3  # lines of the log that are quoted when the worker fails

_COMMAND = (sys.executable, "-m", "explorer.runtime.worker")
_ROOT = Path(__file__).parents[2]  # where the package `explorer` lies, so that the worker finds this very one
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_WARNING = re.compile(r"\[[VIW]:onnxruntime")  # how ONNX Runtime marks what is no error


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
        self._usage: Usage | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def usage(self) -> Usage | None:
        """What the last call that was answered took: time and memory. None before the first."""
        return self._usage

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
        stops the call within 0.1 s, wherever it is, until its answer is here. `timeout_s` counts from when other
        threads' calls are done, and includes starting a process, about half a second.

        Raises the explorer error that the function raised, WorkerError for any other exception of it, WorkerDied when
        the process ended, WorkerTimeout and Cancelled when it was stopped.
        """
        with self._turn(function, cancel):
            try:
                if self._process is not None and self._process.popen.poll() is not None:
                    self._stop()  # it died between two calls; nobody waited for it, so nobody needs to hear
                if self._process is None:
                    self._process = _Process(self._env)
                self._calls += 1
                call = Call(self._calls, function, args or {})
                reply = _converse(self._process, call, on_progress, cancel, timeout_s)
            except BaseException:  # KeyboardInterrupt too: after a call that was left half-way its state is unknown
                self._stop()
                raise
            self._usage = reply.usage
            if reply.last:
                self._stop()
        if isinstance(reply, Failure):
            raise _error(reply)
        return reply.value

    def close(self) -> None:
        """Stop the process, if one is running, and delete its files. A later call starts a fresh one.

        A call that is under way in another thread ends with WorkerDied.
        """
        process = self._process
        if process is not None:
            process.close()  # before the lock, which that call holds
        with self._lock:
            self._stop()

    @contextlib.contextmanager
    def _turn(self, function: str, cancel: threading.Event | None) -> Iterator[None]:
        """The lock, once other calls are done."""
        while True:
            if cancel is not None and cancel.is_set():
                raise errors.Cancelled(_cancelled(function))
            if self._lock.acquire(timeout=POLL_S):
                break
        try:
            yield
        finally:
            self._lock.release()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


class _Process:
    """One run of the worker program: its pipes, the threads that serve them, its folder, its log and its memory."""

    def __init__(self, env: Mapping[str, str]) -> None:
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with contextlib.ExitStack() as undo:
            try:
                self.folder = tempfile.TemporaryDirectory(prefix="onnx-explorer-", ignore_cleanup_errors=True)
                undo.callback(self.folder.cleanup)
                self._log_path = Path(self.folder.name, "worker.log")
                with self._log_path.open("ab") as log:  # appending: the worker writes through two descriptors
                    self.popen = subprocess.Popen(
                        [*_COMMAND, self.folder.name, str(self._log_path)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env={**os.environ, "PYTHONPATH": path, **env},
                    )
            except OSError as error:
                raise errors.WorkerError(
                    f"A worker process could not be started: {error}; free memory, processes or temporary space."
                ) from error
            undo.pop_all()
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # ends with one that has no line end
        self._peak_bytes = 0
        self._log_start = 0  # where the present call's part of the log begins
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._start(self._read, self.popen.stdout)

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def send(self, line: bytes) -> None:
        """Write to it without waiting: a process that hangs before it reads would never let go."""
        self._start(self._write, line)

    def _write(self, line: bytes) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):  # it has just died: the reader finds the end of its output
            self.popen.stdin.write(line)
            self.popen.stdin.flush()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def look(self) -> None:
        """Note how much memory it has used so far: once it is dead, nobody can tell."""
        used = memory(self.popen.pid) if self.popen.returncode is None else None
        if used is not None:
            self._peak_bytes = max(self._peak_bytes, used.peak_rss_bytes)

    def answered(self) -> None:
        """The present call is over: what was logged up to here is not the next one's."""
        self._log_start = self._log_path.stat().st_size

    def close(self) -> None:
        """Kill it for a reason that is not its own."""
        self._closed = True
        self.popen.kill()

    def stop(self) -> None:
        """Kill it if it still runs, and release everything."""
        self.popen.kill()
        self.popen.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what could not be flushed to a dead process is nobody's loss
                pipe.close()
        self.folder.cleanup()

    def death(self, function: str, latest: Progress | None) -> errors.WorkerDied:
        """Why it ended, in a sentence."""
        words, hint = self._last_words(), ""
        try:
            status = self.popen.wait(GRACE_S)
            how = f"ended with exit status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
        except subprocess.TimeoutExpired:
            status, how = 0, "stopped answering"
        if self._closed:
            how = "was closed"
        elif is_out_of_memory(words) or _is_kill(status):
            hint = "; it probably ran out of memory, so try a smaller batch or sequence"
        return errors.WorkerDied(
            f"The worker process {how} while it ran {function}{_stage(latest)}{self._memory()}{hint}{_quote(words)}."
        )

    def timeout(self, function: str, latest: Progress | None, limit_s: float) -> errors.WorkerTimeout:
        """That it took too long, and where it was."""
        return errors.WorkerTimeout(
            f"{function} was stopped after {limit_s:g} s, its time limit{_stage(latest)}{self._memory()}; "
            f"give it more time or smaller inputs{_quote(self._last_words())}."
        )

    def garbage(self, function: str, what: str) -> errors.WorkerError:
        """That it was stopped for what it sent; `what` says what that was, and what was expected."""
        return errors.WorkerError(
            f"The worker process sent something that is no answer while it ran {function} and was stopped, "
            f"so try again: {what.removesuffix('.')}{_quote(self._last_words())}."
        )

    def _last_words(self) -> str:
        """The end of what it logged in the present call, without ONNX Runtime's warnings: those come with any model."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = _ANSI.sub("", log.read().decode(errors="replace")).splitlines()
        return " / ".join([line.strip() for line in lines if line.strip() and not _WARNING.search(line)][-LAST_WORDS:])

    def _memory(self) -> str:
        self.look()
        return f", with {in_words(self._peak_bytes)} of memory at its peak" if self._peak_bytes else ""


def _converse(
    process: _Process,
    call: Call,
    on_progress: Callable[[float, str], None] | None,
    cancel: threading.Event | None,
    timeout_s: float | None,
) -> Result | Failure:
    """Send the call, pass its progress on, and return its answer."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    latest: Progress | None = None
    process.send(encode(call))
    while True:
        if cancel is not None and cancel.is_set():
            raise errors.Cancelled(_cancelled(call.call))
        if deadline_s is not None and time.monotonic() > deadline_s:
            assert timeout_s is not None
            raise process.timeout(call.call, latest, timeout_s)
        process.look()
        try:
            line = process.lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if not line.endswith(b"\n"):
            raise process.death(call.call, latest)
        try:
            message = decode(line)
        except errors.WorkerError as error:
            raise process.garbage(call.call, str(error)) from error
        if isinstance(message, Call) or message.id != call.id:
            raise process.garbage(call.call, f"Expected its answer to call {call.id}, found {message}.")
        if not isinstance(message, Progress):
            process.answered()
            return message
        latest = message
        if on_progress is not None:
            on_progress(message.fraction, message.text)


def _stage(latest: Progress | None) -> str:
    """Where a call was when it ended: what it last reported."""
    return "" if latest is None else f", at '{latest.text}' ({latest.fraction:.0%})"


def _quote(words: str) -> str:
    return f" (its last words: {words})" if words else ""


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


def _is_kill(status: int) -> bool:
    """Whether a status is what the kernel's out-of-memory killer leaves behind; Windows has no such sign."""
    return hasattr(signal, "SIGKILL") and status == -signal.SIGKILL
