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

from explorer.errors import InputError, SessionError, WorkerDied, WorkerError
from explorer.runtime import client
from explorer.runtime import worker as worker_program
from explorer.runtime.client import Worker
from explorer.runtime.protocol import Call, Failure, Progress, Result, decode, encode

ROOT = Path(client.__file__).parents[2]
RUN = "explorer.runtime.sessions:run"
LOAD = "explorer.runtime.sessions:load"
ENVIRONMENT = "explorer.runtime.environment:environment"


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
    program("send(Result(call.id, os.environ['MARK'], USAGE, False))")
    with Worker(env={"MARK": "here"}) as worker:
        assert worker.call("explorer.x:f") == "here"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_worker_that_died_between_calls_is_replaced_silently():
    with Worker() as worker:
        worker.call(ENVIRONMENT)
        os.kill(worker.pid, signal.SIGKILL)
        while worker.pid is not None:
            time.sleep(0.005)
        assert worker.call(ENVIRONMENT)["onnxruntime"]


def test_an_exception_in_the_callers_own_progress_function_stops_the_worker(program):
    program("send(Progress(call.id, 0.5, 'half')); time.sleep(60)")

    def interrupt(fraction, text):
        assert (fraction, text) == (0.5, "half")
        raise KeyboardInterrupt

    with Worker() as worker:
        with pytest.raises(KeyboardInterrupt):
            worker.call("explorer.x:f", on_progress=interrupt)
        assert worker.pid is None


def test_what_native_code_prints_cannot_reach_the_protocol(monkeypatch):
    source = (
        "import os, explorer.runtime.worker as worker\n"
        "answer = worker.answer\n"
        "def noisy(call, *others):\n"
        "    os.write(1, b'noise on 1\\n'); os.write(2, b'noise on 2\\n'); print('and print', flush=True)\n"
        "    os._exit(7) if call.id == 2 else answer(call, *others)\n"
        "worker.answer = noisy\n"
        "worker.main()"
    )
    monkeypatch.setattr(client, "_COMMAND", (sys.executable, "-c", source))
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
        (LOAD, {"model": "m", "provider": "tpu"}, InputError, "found 'tpu'"),
        (
            LOAD,
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
    program("send(Failure(call.id, 'annotations', 'odd', USAGE, False))")
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


def test_the_usage_of_the_last_call_is_known():
    with Worker() as worker:
        assert worker.usage is None
        worker.call(ENVIRONMENT)
        usage = worker.usage
        assert 0 < usage.wall_s < 600
        assert 10e6 < usage.rss_bytes <= usage.peak_rss_bytes < 10e9
        with pytest.raises(InputError):
            worker.call(LOAD, {"model": "m", "provider": "tpu"})
        assert worker.usage is not usage  # a call that failed was answered, too


@pytest.mark.parametrize("failed", [False, True])
def test_an_answer_tells_what_it_took_and_whether_cuda_still_works(monkeypatch, context, failed):
    sent = []
    monkeypatch.setattr(worker_program.gpu, "held_bytes", lambda: 5)
    monkeypatch.setattr(worker_program.gpu, "has_failed", lambda: failed)
    for function in (ENVIRONMENT, "os:getcwd"):
        worker_program.answer(Call(1, function, {}), sent.append, context.folder, context.log_path)
    result, failure = map(decode, sent)
    assert isinstance(result, Result)
    assert isinstance(failure, Failure)
    assert (result.usage.gpu_bytes, result.last) == (failure.usage.gpu_bytes, failure.last) == (5, failed)


def test_a_worker_that_cannot_serve_another_call_is_replaced(program):
    program("send(Result(call.id, 1, USAGE, True)); time.sleep(60)")
    with Worker() as worker:
        assert worker.call("explorer.x:f") == 1
        assert worker.pid is None
        program("send(Failure(call.id, 'SessionError', 'CUDA failure 700', USAGE, True)); time.sleep(60)")
        with pytest.raises(SessionError, match="CUDA failure 700"):
            worker.call("explorer.x:f")
        assert worker.pid is None
        program(None)
        assert worker.call(ENVIRONMENT)["onnxruntime"]


def test_the_worker_ends_with_its_parent_even_in_a_native_run(endless, tmp_path):
    log_path = tmp_path / "log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*client._COMMAND, str(tmp_path), str(log_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    with process:
        process.stdin.write(encode(Call(1, RUN, endless)))
        process.stdin.flush()
        assert isinstance(decode(process.stdout.readline()), Progress)  # the run is about to begin
        process.stdin.close()
        assert process.wait(10) == 0


ROOMS = "explorer, explorer.workspace, explorer.view, explorer.report, explorer.cli, explorer.lab, explorer.runtime.gpu"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_notebooks_kernel_never_touches_cuda(tmp_path):
    """Neither by importing everything nor by having work done: no module that does, and none of CUDA's libraries."""
    source = f"""
import re, sys
from pathlib import Path
import {ROOMS}
from explorer.runtime import Worker
with Worker() as worker:
    worker.call({ENVIRONMENT!r})
modules = [name for name in sys.modules if re.match("onnxruntime|cupti|cuda|torch", name)]
maps = Path("/proc/self/maps").read_text()
libraries = re.findall(r"\\S*lib(?:cuda|nvidia|cupti|onnxruntime)\\S*", maps)
sys.exit(f"{{modules}} {{libraries}}" if modules or libraries else 0)
"""
    subprocess.run([sys.executable, "-c", source], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
