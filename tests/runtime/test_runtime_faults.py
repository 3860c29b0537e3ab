"""What goes wrong with a worker ends in one sentence, and the next call works: in real processes that really fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from explorer.errors import Cancelled, SessionError, WorkerDied, WorkerError, WorkerTimeout
from explorer.runtime import arrays, client
from explorer.runtime import worker as worker_program
from explorer.runtime.client import Worker
from explorer.runtime.protocol import Call, Failure, decode

ENVIRONMENT = "explorer.runtime.environment:environment"
LOAD = "explorer.runtime.sessions:load"
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.fixture
def revived(program):
    """Assert that the worker is gone, and that its next call is served by a fresh one."""

    def check(worker: Worker) -> None:
        assert worker.pid is None
        program(None)
        assert worker.call(ENVIRONMENT)["onnxruntime"]

    return check


class TestDeath:
    @posix
    def test_killed_in_the_middle_of_native_work(self, while_computing, revived):
        with Worker() as worker:
            with pytest.raises(WorkerDied) as caught:
                while_computing(worker, lambda: os.kill(worker.pid, signal.SIGKILL))
            assert re.fullmatch(
                r"The worker process was killed by SIGKILL while it ran explorer\.runtime\.sessions:run, at 'running' "
                r"\(0%\), with \S+ [GM]B of memory at its peak; "
                r"it probably ran out of memory, so try a smaller batch or sequence\.",
                str(caught.value),
            )
            revived(worker)

    @posix
    def test_its_memory_at_the_peak_is_told(self, program):
        program(
            "held = bytearray(b'x') * 300_000_000; del held\n"
            "send(Progress(call.id, 0.25, 'growing'), Progress(call.id, 0.5, 'grown')); time.sleep(60)"
        )
        with Worker() as worker:

            def kill(fraction, text):
                if text == "grown":  # after a look at its memory, which came before this report was read
                    os.kill(worker.pid, signal.SIGKILL)

            with pytest.raises(WorkerDied, match=r"at 'grown' \(50%\), with [23]\d\d MB of memory at its peak; it p"):
                worker.call("explorer.x:f", on_progress=kill)

    @posix
    @pytest.mark.parametrize(
        "words",
        [
            "terminate called after throwing an instance of 'onnxruntime::OnnxRuntimeException' / "
            "what(): CUDA failure 2: out of memory ; GPU=0",
            "terminate called after throwing an instance of 'std::bad_alloc'",
        ],
    )
    def test_memory_that_ran_out_is_read_from_its_last_words(self, program, revived, words):
        program(f"print({words!r}, file=sys.stderr, flush=True); os.abort()")
        with Worker() as worker:
            with pytest.raises(WorkerDied) as caught:
                worker.call("explorer.x:f")
            text = str(caught.value)
            assert "was killed by SIGABRT" in text
            assert (
                f"; it probably ran out of memory, so try a smaller batch or sequence (its last words: {words})."
                in text
            )
            revived(worker)

    def test_a_crash_is_told_with_status_and_last_words_but_no_warnings_of_onnx_runtime(self, program):
        program(
            r"print('one\ntwo\n\x1b[31mthree\x1b[m\nfour', file=sys.stderr);"
            r"print('\x1b[0;93m2026-11-23 [W:onnxruntime:, constant_folding.cc:588] x\x1b[m', file=sys.stderr);"
            "sys.exit(3)"
        )
        with Worker() as worker, pytest.raises(WorkerDied) as caught:
            worker.call("explorer.x:f")
        assert re.fullmatch(
            r"The worker process ended with exit status 3 while it ran explorer\.x:f, with \S+ MB of memory at its "
            r"peak \(its last words: two / three / four\)\.",
            str(caught.value),
        )

    def test_the_words_of_an_earlier_call_are_not_its_last(self, program):
        program(
            "print('old', file=sys.stderr, flush=True); send(Result(call.id, 1, USAGE, False))\n"
            "sys.stdin.readline(); print('new', file=sys.stderr, flush=True)"
        )
        with Worker() as worker:
            worker.call("explorer.x:f")
            with pytest.raises(WorkerDied, match=r"\(its last words: new\)\.$"):
                worker.call("explorer.x:f")

    def test_it_dies_in_the_middle_of_a_message(self, program, revived):
        program("""say(b'{"v": 2, "id": 1, "event": "res'); sys.exit(4)""")
        with Worker() as worker:
            with pytest.raises(WorkerDied, match="ended with exit status 4"):
                worker.call("explorer.x:f")
            revived(worker)

    def test_it_closes_its_output_and_goes_on(self, program, revived, monkeypatch):
        monkeypatch.setattr(client, "GRACE_S", 0.05)
        program("os.close(1); time.sleep(60)")
        with Worker() as worker:
            with pytest.raises(WorkerDied, match="stopped answering while it ran"):
                worker.call("explorer.x:f")
            revived(worker)

    def test_closing_a_worker_ends_its_call_without_blame(self, while_computing):
        worker = Worker()
        with pytest.raises(WorkerDied, match=r"The worker process was closed while it ran [^;]*\.$"):
            while_computing(worker, worker.close)
        assert worker.pid is None

    def test_it_does_not_start(self, monkeypatch, tmp_path):
        monkeypatch.setattr(client, "_COMMAND", (str(tmp_path / "no python"),))
        monkeypatch.setattr(client.tempfile, "tempdir", str(tmp_path))
        with Worker() as worker, pytest.raises(WorkerError, match=r"could not be started: .*no python.*; free memory"):
            worker.call("explorer.x:f")
        assert list(tmp_path.iterdir()) == []

    def test_it_starts_without_what_it_needs(self, monkeypatch):
        monkeypatch.setattr(client, "_COMMAND", (sys.executable, "-c", "import explorer.nowhere"))
        with Worker() as worker, pytest.raises(WorkerDied, match=r"exit status 1 .*No module named 'explorer.nowhere'"):
            worker.call("explorer.x:f")


def test_when_its_parent_is_gone_it_deletes_its_folder(tmp_path):
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(b"x")
    log = folder / "worker.log"
    with log.open("ab") as stderr:
        command = [*client._COMMAND, str(folder), str(log)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=stderr, cwd=client._ROOT, timeout=60)
    assert ended.returncode == 0
    assert list(tmp_path.iterdir()) == []


class TestOutOfMemory:
    def test_a_run_that_wants_too_much_leaves_the_worker_alive(self, worker, save_model, tmp_path):
        model = save_model("g (float[1] x, int64[1] n) => (float[k] y) { [grow] y = Expand (x, n) }")
        arrays.save(tmp_path / "feeds.npz", {"x": np.zeros(1, np.float32), "n": np.array([2**46])})
        args = {"model": model, "feeds_npz": [str(tmp_path / "feeds.npz")], "out_npz": [""], "provider": "cpu"}
        worker.call(ENVIRONMENT)
        pid = worker.pid
        ((kind, message),) = worker.call("explorer.runtime.sessions:run", args)["refusals"]
        assert kind == "SessionError"
        assert message.endswith(
            "cannot run model.onnx: Expand node 'grow' ran out of memory, wanting 281475 GB more; "
            "use a smaller batch or sequence, or free memory."
        )
        assert worker.pid == pid

    def test_python_that_wants_too_much_is_told_as_such(self, context, monkeypatch):
        def greedy(context):
            raise MemoryError("Unable to allocate 4.00 TiB for an array")

        sent = []
        monkeypatch.setattr(worker_program, "resolve", lambda call: greedy)
        worker_program.answer(Call(1, "explorer.x:f", {}), sent.append, context.folder, context.log_path)
        failure = decode(sent[0])
        assert isinstance(failure, Failure)
        assert failure.message == (
            "explorer.x:f ran out of memory in the worker process with MemoryError: "
            "Unable to allocate 4.00 TiB for an array"
        )


class TestTimeLimit:
    @pytest.fixture
    def wait(self, monkeypatch):
        """Let time pass for those who wait for a worker."""
        now_s = [0.0]
        monkeypatch.setattr(client.time, "monotonic", lambda: now_s[0])

        def wait(seconds: float) -> None:
            now_s[0] += seconds

        return wait

    def test_native_work_is_stopped(self, while_computing, revived, wait):
        with Worker() as worker:
            with pytest.raises(
                WorkerTimeout, match=r"sessions:run was stopped after 60 s, its time limit, at 'running'"
            ):
                while_computing(worker, lambda: wait(60.1), timeout_s=60)
            revived(worker)

    def test_it_is_told_where_it_was_and_what_it_said(self, program, revived, wait):
        program(
            "print('deadlock', file=sys.stderr, flush=True)\nsend(Progress(call.id, 0.2, 'Warming up')); time.sleep(60)"
        )
        with Worker() as worker:
            with pytest.raises(WorkerTimeout) as caught:
                worker.call("explorer.x:f", on_progress=lambda fraction, text: wait(3601), timeout_s=3600)
            assert re.fullmatch(
                r"explorer\.x:f was stopped after 3600 s, its time limit, at 'Warming up' \(20%\), "
                r"with \S+ MB of memory at its peak; "
                r"give it more time or smaller inputs \(its last words: deadlock\)\.",
                str(caught.value),
            )
            revived(worker)


class TestGarbage:
    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (b"Segmentation fault\n", "'Segmentation fault': that is not JSON"),
            (b"\xff\xfe\x00\n", r"that is not JSON"),
            (b'{"v": 1, "id": 1, "event": "result", "value": 1}\n', "that is not this version"),
            (
                b'{"v": 2, "id": 99, "event": "progress", "fraction": 0, "text": ""}\n',
                "answer to call 1, found Progress(id=99",
            ),
            (b'{"v": 2, "id": 1, "call": "f", "args": {}}\n', "answer to call 1, found Call(id=1"),
        ],
        ids=["text", "bytes", "another version", "another call", "a call"],
    )
    def test_it_is_stopped_and_what_was_found_is_said(self, program, revived, data, found):
        program(f"print('some words', file=sys.stderr, flush=True); say({data!r}); time.sleep(60)")
        with Worker() as worker:
            with pytest.raises(WorkerError) as caught:
                worker.call("explorer.x:f")
            text = str(caught.value)
            assert type(caught.value) is WorkerError
            assert text.startswith(
                "The worker process sent something that is no answer while it ran explorer.x:f and was"
            )
            assert found in text
            assert text.endswith(" (its last words: some words).")
            assert "\n" not in text
            revived(worker)


def test_a_session_that_fails_to_load_leaves_the_worker_alive(worker, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"garbage")
    worker.call(ENVIRONMENT)
    pid = worker.pid
    with pytest.raises(SessionError, match=r"cannot load no\.onnx"):
        worker.call(LOAD, {"model": str(tmp_path / "no.onnx"), "provider": "cpu"})
    assert worker.call(ENVIRONMENT)["onnxruntime"]
    assert worker.pid == pid


class TestCancel:
    def test_before_anything_is_started(self):
        cancel = threading.Event()
        cancel.set()
        with Worker() as worker:
            with pytest.raises(Cancelled, match="environment was cancelled before it finished"):
                worker.call(ENVIRONMENT, cancel=cancel)
            assert worker.pid is None

    def test_while_another_threads_call_runs(self, program):
        program("send(Progress(call.id, 0, 'begun')); sys.stdin.readline()")
        cancel, begun, outcomes = threading.Event(), threading.Event(), []

        def occupy():
            with pytest.raises(WorkerDied):
                worker.call("explorer.x:f", on_progress=lambda fraction, text: begun.set())

        def wait():
            with pytest.raises(Cancelled) as caught:
                worker.call("explorer.x:g", cancel=cancel)
            outcomes.append(str(caught.value))

        worker = Worker()
        first, second = threading.Thread(target=occupy), threading.Thread(target=wait)
        first.start()
        assert begun.wait(60)
        second.start()
        cancel.set()
        second.join(60)
        assert outcomes == ["explorer.x:g was cancelled before it finished."]
        assert worker.pid is not None  # the other call goes on
        worker.close()
        first.join(60)
        assert not first.is_alive()

    @pytest.mark.parametrize("size", [1, 10_000_000], ids=["small", "larger than its pipe"])
    def test_while_the_process_starts(self, monkeypatch, revived, size):
        """It hangs before it has read anything."""
        monkeypatch.setattr(client, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
        cancel = threading.Event()
        started = client._Process.send

        def send(self, line):
            started(self, line)
            cancel.set()

        monkeypatch.setattr(client._Process, "send", send)
        with Worker() as worker:
            with pytest.raises(Cancelled):
                worker.call("explorer.x:f", {"text": "x" * size}, cancel=cancel)
            revived(worker)

    def test_while_it_reports(self, program, revived):
        program("send(Progress(call.id, 0.5, 'half')); time.sleep(60)")
        cancel = threading.Event()
        with Worker() as worker:
            with pytest.raises(Cancelled):
                worker.call("explorer.x:f", cancel=cancel, on_progress=lambda fraction, text: cancel.set())
            revived(worker)

    def test_in_native_code(self, while_computing, revived):
        cancel = threading.Event()
        with Worker() as worker:
            with pytest.raises(Cancelled):
                while_computing(worker, cancel.set, cancel=cancel)
            revived(worker)

    def test_when_the_answer_is_on_its_way(self, program, revived):
        """Whoever cancelled before the answer was here gets no answer."""
        program("send(Progress(call.id, 1, 'done'), Result(call.id, 1, USAGE, False)); sys.stdin.readline()")
        cancel = threading.Event()
        with Worker() as worker:
            with pytest.raises(Cancelled):
                worker.call("explorer.x:f", cancel=cancel, on_progress=lambda fraction, text: cancel.set())
            revived(worker)

    def test_after_the_answer_it_is_too_late(self, program):
        program("send(Result(call.id, 1, USAGE, False)); sys.stdin.readline()")
        cancel = threading.Event()
        with Worker() as worker:
            assert worker.call("explorer.x:f", cancel=cancel) == 1
            cancel.set()
            assert worker.pid is not None
