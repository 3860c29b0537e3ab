from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from explorer.errors import Cancelled, InputError, SessionError, WorkerDied, WorkerError, WorkerTimeout
from explorer.runtime import client
from explorer.runtime.client import Worker
from explorer.runtime.protocol import Call, Result, decode, encode

RUN = "explorer.runtime.sessions:run"
ENVIRONMENT = "explorer.runtime.environment:environment"


@pytest.fixture
def program(monkeypatch):
    """Make workers run a Python program of the test's own."""
    return lambda source: monkeypatch.setattr(client, "_COMMAND", (sys.executable, "-c", source))


def test_calls_share_one_process_and_closing_ends_it():
    with Worker() as worker:
        assert worker.pid is None  # lazy
        assert worker.call(ENVIRONMENT)["onnxruntime"]
        pid = worker.pid
        assert worker.call(ENVIRONMENT)["python"]
        assert worker.pid == pid
        process = worker._process.popen
    assert worker.pid is None
    assert process.poll() is not None


def test_closing_deletes_the_files(monkeypatch, tmp_path):
    monkeypatch.setattr(client.tempfile, "tempdir", str(tmp_path))
    with Worker() as worker:
        worker.call(ENVIRONMENT)
        assert list(tmp_path.glob("*/worker.log"))
    assert list(tmp_path.iterdir()) == []


def test_env_reaches_the_process(program):
    program(
        "import os, sys; from explorer.runtime.protocol import *\n"
        "call = decode(sys.stdin.buffer.readline())\n"
        "sys.stdout.buffer.write(encode(Result(call.id, os.environ['MARK'])))"
    )
    with Worker(env={"MARK": "here"}) as worker:
        assert worker.call("explorer.x:f") == "here"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_worker_killed_in_the_middle_of_a_run_is_reported_and_replaced(endless):
    with Worker() as worker:
        worker.call(ENVIRONMENT)
        first = worker.pid
        threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
        with pytest.raises(
            WorkerDied, match=r"killed by SIGKILL while it ran .*sessions:run; it probably ran out of mem"
        ):
            worker.call(RUN, endless, timeout_s=30)
        assert worker.call(ENVIRONMENT)["onnxruntime"]
        assert worker.pid != first


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_worker_that_died_between_calls_is_replaced_silently():
    with Worker() as worker:
        worker.call(ENVIRONMENT)
        os.kill(worker.pid, signal.SIGKILL)
        while worker.pid is not None:
            time.sleep(0.005)
        assert worker.call(ENVIRONMENT)["onnxruntime"]


def test_cancel_stops_a_native_run_at_once(endless):
    cancel = threading.Event()
    cancelled_at = []

    def press():
        cancelled_at.append(time.monotonic())
        cancel.set()

    with Worker() as worker:
        worker.call(ENVIRONMENT)
        process = worker._process.popen
        threading.Timer(0.2, press).start()
        with pytest.raises(Cancelled, match="sessions:run was cancelled"):
            worker.call(RUN, endless, cancel=cancel, timeout_s=30)
        assert time.monotonic() - cancelled_at[0] < 0.5  # 0.1 s by design; the rest is for a busy machine
        assert process.poll() is not None
        with pytest.raises(Cancelled):
            worker.call(ENVIRONMENT, cancel=cancel)
        assert worker.pid is None  # cancelled before it began: nothing was started


def test_a_call_past_its_time_limit_is_stopped_and_the_next_one_works(endless):
    with Worker() as worker:
        worker.call(ENVIRONMENT)
        with pytest.raises(WorkerTimeout, match=r"stopped after 0\.3 s, its time limit"):
            worker.call(RUN, endless, timeout_s=0.3)
        assert worker.call(ENVIRONMENT)["onnxruntime"]


def test_an_exception_in_the_callers_own_progress_function_stops_the_worker(program):
    program(
        "import sys, time; from explorer.runtime.protocol import *\n"
        "call = decode(sys.stdin.buffer.readline())\n"
        "sys.stdout.buffer.write(encode(Progress(call.id, 0.5, 'half')))\n"
        "sys.stdout.flush(); time.sleep(60)"
    )

    def interrupt(fraction, text):
        assert (fraction, text) == (0.5, "half")
        raise KeyboardInterrupt

    with Worker() as worker:
        with pytest.raises(KeyboardInterrupt):
            worker.call("explorer.x:f", on_progress=interrupt)
        assert worker.pid is None


def test_a_crash_is_told_with_status_and_last_words(program):
    program(r"import sys; print('one\ntwo\n\x1b[31mthree\x1b[m\nfour', file=sys.stderr); sys.exit(3)")
    with Worker() as worker, pytest.raises(WorkerDied) as caught:
        worker.call("explorer.x:f")
    assert str(caught.value) == (
        "The worker process ended with exit status 3 while it ran explorer.x:f (its last words: two / three / four)."
    )


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("Segmentation fault", r"Expected a message of worker protocol 1, found 'Segmentation fault'"),
        ('{"v": 1, "id": 99, "event": "result", "value": 1}', r"Expected the worker's answer to call 1"),
    ],
)
def test_garbage_on_the_pipe_ends_the_worker(program, output, error):
    program(f"import time; print({output!r}, flush=True); time.sleep(60)")
    with Worker() as worker:
        with pytest.raises(WorkerError, match=error):
            worker.call("explorer.x:f")
        assert worker.pid is None


def test_what_native_code_prints_cannot_reach_the_protocol(program):
    program(
        "import os, explorer.runtime.worker as worker\n"
        "answer = worker.answer\n"
        "def noisy(call, *others):\n"
        "    os.write(1, b'noise on 1\\n'); os.write(2, b'noise on 2\\n'); print('and print', flush=True)\n"
        "    os._exit(7) if call.id == 2 else answer(call, *others)\n"
        "worker.answer = noisy\n"
        "worker.main()"
    )
    with Worker() as worker:
        assert worker.call(ENVIRONMENT)["onnxruntime"]
        with pytest.raises(WorkerDied, match=r"status 7 .* noise on 1 / noise on 2 / and print"):
            worker.call(ENVIRONMENT)


@pytest.mark.parametrize(
    ("function", "args", "kind", "message"),
    [
        (
            RUN,
            {"model": "nowhere.onnx", "provider": "cpu", "feeds_npz": "", "out_npz": ""},
            SessionError,
            "nowhere.onnx",
        ),
        ("explorer.runtime.sessions:load", {"model": "m", "provider": "tpu"}, InputError, "found 'tpu'"),
        (
            "explorer.runtime.sessions:load",
            {"no": 1},
            WorkerError,
            "failed in the worker process with TypeError: load()",
        ),
        ("explorer.runtime.sessions:missing", {}, WorkerError, "runs public functions of explorer"),
        ("explorer.runtime.sessions:_open", {}, WorkerError, "runs public functions of explorer"),
        ("explorer.runtime.sessions:Session", {}, WorkerError, "runs public functions of explorer"),
        ("explorer.runtime.sessions:refusal", {}, WorkerError, "runs public functions of explorer"),
        ("explorer.nowhere:f", {}, WorkerError, "runs public functions of explorer"),
        ("os:getcwd", {}, WorkerError, "runs public functions of explorer"),
        ("explorer_evil:f", {}, WorkerError, "runs public functions of explorer"),
        ("garbage", {}, WorkerError, "runs public functions of explorer"),
    ],
)
def test_errors_keep_their_kind_and_leave_the_worker_alive(worker, function, args, kind, message):
    worker.call(ENVIRONMENT)
    pid = worker.pid
    with pytest.raises(kind, match=re.escape(message)) as caught:
        worker.call(function, args)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert worker.pid == pid


def test_an_unknown_kind_of_error_is_a_worker_error(program):
    program(
        "import sys; from explorer.runtime.protocol import *\n"
        "call = decode(sys.stdin.buffer.readline())\n"
        "sys.stdout.buffer.write(encode(Failure(call.id, 'annotations', 'odd')))"
    )
    with Worker() as worker, pytest.raises(WorkerError, match=r"^odd$"):
        worker.call("explorer.x:f")


def test_threads_take_turns(worker):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(worker.call(ENVIRONMENT)["python"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4


def test_the_worker_ends_with_its_parent_even_in_a_native_run(endless, tmp_path):
    log_path = tmp_path / "log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*client._COMMAND, str(tmp_path), str(log_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(client.__file__).parents[2])},
        )
    with process:
        process.stdin.write(encode(Call(1, ENVIRONMENT, {})))
        process.stdin.flush()
        assert isinstance(decode(process.stdout.readline()), Result)  # it is up
        process.stdin.write(encode(Call(2, RUN, endless)))
        process.stdin.flush()
        time.sleep(0.2)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_parent_never_imports_onnxruntime():
    source = (
        "import sys, explorer.runtime.client, explorer.profile\n"
        "assert not [name for name in sys.modules if name.startswith('onnxruntime')]"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(client.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", source], check=True, env=env)
