from __future__ import annotations

import os

import pytest

from explorer.profile import dispatch, inspection
from explorer.profile.values import KernelDispatch, OpTime
from explorer.runtime.sessions import SessionSpec


def kernel(op_type: str, start_us: int, duration_us: int) -> dict:
    return {"cat": "Node", "name": "n_kernel_time", "ts": start_us, "dur": duration_us, "args": {"op_name": op_type}}


def session(name: str, start_us: int, duration_us: int) -> dict:
    return {"cat": "Session", "name": name, "ts": start_us, "dur": duration_us}


def test_node_times_are_means_over_the_runs_after_the_first():
    events = [
        session("session_initialization", 0, 90),
        kernel("MatMul", 110, 1000),
        session("SequentialExecutor::Execute", 101, 1500),
        session("model_run", 100, 1600),
        kernel("MatMul", 2010, 10),
        kernel("MatMul", 2020, 20),
        kernel("Cast", 2040, 4),
        session("model_run", 2000, 100),
        kernel("MatMul", 3010, 20),
        kernel("MatMul", 3030, 10),
        kernel("Cast", 3040, 6),
        kernel("Loop", 3000, 90),
        {**kernel("Cast", 3050, 1000), "name": "n_fence_before"},
        session("model_run", 3000, 100),
    ]
    assert inspection.op_times(events) == (OpTime("MatMul", 30.0, 2.0), OpTime("Cast", 5.0, 1.0))


def test_ops_are_counted_in_subgraphs_too(save_model):
    model = save_model(
        "loop",
        """g (int64 n, float[1] x) => (float[1] z) {
             on = Constant <value = bool {1}> ()
             y = Loop <body = b (int64 i, bool on_in, float[1] a) => (bool on_out, float[1] a_out)
                       { on_out = Identity (on_in) a_out = Add (a, a) }> (n, on, x)
             z = Add (y, y)
           }""",
    )
    assert inspection.count_ops(model) == (("Add", 2), ("Constant", 1), ("Identity", 1), ("Loop", 1))


class FakeCudaSession:
    """A session that prints its kernel choice as ONNX Runtime does: only if told to when it was created."""

    log_path = None

    def __init__(self, spec):
        assert spec.node_times is None
        spec.optimized_model.write_bytes(b"")
        self.prints = os.environ.get(dispatch.DEBUG_VARIABLE) == "1"

    def run(self, feeds):
        if self.prints:
            with self.log_path.open("a") as log:
                log.write(
                    "\x1b[32mOperator=MultiHeadAttention Node=a DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"
                )

    def assignments(self):
        return (
            ("CUDAExecutionProvider", "MatMul"),
            ("CPUExecutionProvider", "Shape"),
            ("CUDAExecutionProvider", "Cast"),
        )


@pytest.mark.parametrize("before", [None, "0"])
def test_on_cuda_kernels_are_read_and_node_times_are_left_out(context, save_model, monkeypatch, before):
    monkeypatch.delenv(dispatch.DEBUG_VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(dispatch.DEBUG_VARIABLE, before)
    context.log_path.write_text("Operator=MultiHeadAttention Node=earlier DataType=fp16 SdpaKernel=MATH\n")
    monkeypatch.setattr(FakeCudaSession, "log_path", context.log_path)
    monkeypatch.setattr(inspection, "Session", FakeCudaSession)
    model = save_model("m", "g (float[1] x) => (float[1] y) { y = Relu (x) }")

    seen = inspection.inspect(context, SessionSpec(model, "cuda"), {}, runs=20)

    assert seen.kernels == (KernelDispatch("a", "MultiHeadAttention", "FLASH_ATTENTION", "fp16"),)
    assert seen.op_times == ()
    assert "how long the host takes to launch" in seen.op_times_note
    assert [(part.provider, part.ops) for part in seen.placement] == [
        ("CUDAExecutionProvider", (("Cast", 1), ("MatMul", 1))),
        ("CPUExecutionProvider", (("Shape", 1),)),
    ]
    assert os.environ.get(dispatch.DEBUG_VARIABLE) == before
