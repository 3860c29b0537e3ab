"""The worker process: `python -m explorer.runtime.worker FOLDER LOG`, started by `explorer.runtime.client`.

It reads calls from standard input, one a line, and answers on what was its standard output when it started. The file
descriptor 1 itself is pointed at the log, where descriptor 2 already goes: ONNX Runtime prints on both, from C++, and
nothing native may end up between two messages.
"""

from __future__ import annotations

import importlib
import inspect
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from explorer.errors import ExplorerError, WorkerError
from explorer.runtime import gpu
from explorer.runtime.context import Context
from explorer.runtime.memory import memory
from explorer.runtime.protocol import Call, Failure, Progress, Result, Usage, decode, encode

PACKAGE = "explorer"


def resolve(call: str) -> Callable[..., Any]:
    """The public top-level function of this package that "module:function" names. WorkerError if there is none."""
    module_name, _, name = call.partition(":")
    refusal = WorkerError(
        f"The worker runs public functions of {PACKAGE}, named 'package.module:function', but was asked for {call!r}."
    )
    if module_name.split(".")[0] != PACKAGE or not name.isidentifier() or name.startswith("_"):
        raise refusal
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        if error.name != module_name:  # the module is there, something that it imports is not
            raise
        raise refusal from error
    if not inspect.isfunction(function) or function.__module__ != module_name:
        raise refusal
    return function


def answer(call: Call, send: Callable[[bytes], object], folder: Path, log_path: Path) -> None:
    """Run one call and send its progress and its result or error."""
    start_s = time.perf_counter()

    def progress(fraction: float, text: str) -> None:
        send(encode(Progress(call.id, min(max(fraction, 0.0), 1.0), text)))

    def failure(kind: str, message: str) -> bytes:
        return encode(Failure(call.id, kind, message, _usage(start_s), gpu.has_failed()))

    try:
        value = resolve(call.call)(Context(progress, folder, log_path), **call.args)
        reply = encode(Result(call.id, value, _usage(start_s), gpu.has_failed()))
    except ExplorerError as error:
        reply = failure(type(error).__name__, str(error))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the parent gets a sentence and the log the traceback
        traceback.print_exc()
        text = " ".join(str(error).split()) or "no message"
        how = "ran out of memory" if isinstance(error, MemoryError) else "failed"
        message = f"{call.call} {how} in the worker process with {type(error).__name__}: {text}"
        reply = failure(WorkerError.__name__, message)
    send(reply)


def _usage(start_s: float) -> Usage:
    wall_s = time.perf_counter() - start_s
    used = memory(os.getpid())
    assert used is not None  # this very process runs
    return Usage(wall_s, used.rss_bytes, used.peak_rss_bytes, gpu.held_bytes())


def _read(stdin: BinaryIO, calls: queue.SimpleQueue[bytes], folder: Path) -> None:
    for line in stdin:
        calls.put(line)
    # The parent has closed the pipe or died: nobody else deletes the folder, which may hold a model's weights. A call
    # may be deep in native code: do not wait for it.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Answer calls until standard input closes."""
    folder, log_path = map(Path, sys.argv[1:])
    # An interrupt typed at the parent is the parent's to judge; it kills this process if it means it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, calls, folder), daemon=True).start()
    while True:
        call = decode(calls.get())
        assert isinstance(call, Call), call
        answer(call, replies.write, folder, log_path)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
