"""ONNX Runtime's messages in words."""

from __future__ import annotations

import pytest

from explorer.errors import SessionError
from explorer.runtime import refusals


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 "
            "onnxruntime::Model::Model(onnx::ModelProto&&, const std::function<void(int)>&) "
            "Unsupported model IR version: 99, max supported IR version: 13\n",
            "Unsupported model IR version: 99, max supported IR version: 13",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/cuda_call.cc:129 std::conditional_t<THRW, void, Status> "
            "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] "
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=secret ; expr=cudaMemcpy();",
            "CUDA failure 700: an illegal memory access was encountered",
        ),
        (
            "Error in execution: Non-zero status code returned while running Mul node. Name:'/attn/Mul_3' Status "
            "Message: /attn/Mul_3: right operand cannot broadcast on dim 3 LeftShape: {2,16}, RightShape: {1,8}",
            "Mul node '/attn/Mul_3': /attn/Mul_3: right operand cannot broadcast on dim 3 LeftShape: {2,16}, "
            "RightShape: {1,8}",
        ),
        (
            "[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load m failed. File doesn't exist",
            "Load m failed. File doesn't exist",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'/a/r' "
            "Status Message: /src/reshape.h:91 ns::ReshapeHelper(const ns::TensorShape&, bool) a == b was false. "
            "The input tensor cannot be reshaped to the requested shape. Input shape:{32}, requested shape:{7}\n",
            "Reshape node '/a/r': The input tensor cannot be reshaped to the requested shape. "
            "Input shape:{32}, requested shape:{7}",
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node. "
            "Name:'e' Status Message: indices element out of data bounds, idx=16 must be within the inclusive range "
            "[-16,15]",
            "Gather node 'e': indices element out of data bounds, idx=16 must be within the inclusive range [-16,15]",
        ),
        ("", "it gives no reason"),
    ],
)
def test_reasons_lose_their_c_plus_plus(message, expected):
    assert refusals.reason(message) == expected


AT = "Non-zero status code returned while running MatMul node. Name:'/attn/MatMul' Status Message: "
ARENA = "/src/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            f"Error in execution: {AT}{ARENA}"
            "Available memory of 1072693248 is smaller than requested bytes of 4294967296",
            "MatMul node '/attn/MatMul' ran out of GPU memory, wanting 4.29 GB more when 1.07 GB were free",
        ),
        (
            f"[ONNXRuntimeError] : 1 : FAIL : {AT}{ARENA}"
            "Failed to allocate memory for requested buffer of size 70000000",
            "MatMul node '/attn/MatMul' ran out of GPU memory, wanting 70 MB more",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/cuda_call.cc:129 std::conditional_t<THRW, void, Status> "
            "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] "
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=secret ; file=/src/a.cc ; line=1 ; expr=cudaMalloc();",
            "it ran out of GPU memory",
        ),
        (
            f"{AT}CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
            "MatMul node '/attn/MatMul' ran out of GPU memory",
        ),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "it ran out of GPU memory"),
        (f"[ONNXRuntimeError] : 6 : X : {AT}std::bad_alloc", "MatMul node '/attn/MatMul' ran out of memory"),
        ("bad allocation", "it ran out of memory"),
    ],
    ids=["limit", "arena", "cudaMalloc", "cuBLAS", "cuDNN", "C++", "C++ on Windows"],
)
def test_memory_that_runs_out_is_told_in_words(message, expected):
    assert refusals.is_out_of_memory(message)
    refusal = refusals.refusal("ORT cannot run m.onnx", RuntimeError(message), "something else", "GPU memory")
    assert isinstance(refusal, SessionError)
    assert str(refusal) == f"ORT cannot run m.onnx: {expected}; use a smaller batch or sequence, or free memory."


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user "
        "as the model has control flow nodes which can't be supported by CUDAExecutionProvider",
        "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user "
        " as all compute graph nodes have not been partitioned to the CUDAExecutionProvider",
        "[ONNXRuntimeError] : 1 : FAIL : Graph capture did not complete after 8 runs",
        f"{AT}CUDA failure 900: operation not permitted when stream is capturing ; GPU=0 ; hostname=secret",
        f"{AT}CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ; hostname=secret",
        f"{AT}[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : The output OrtValue provided for output 'y' of node '' "
        "(NonZero) has shape {1,8} but the computed output shape for this run is {1,0}. When calling Run() with "
        "pre-allocated output OrtValues on a model with dynamic output shapes, either supply unallocated ones",
    ],
    ids=["control flow", "nodes elsewhere", "endless", "not permitted", "failed before", "output of another shape"],
)
def test_what_a_cuda_graph_cannot_hold_is_told_with_the_way_out(message):
    assert not refusals.is_out_of_memory(message)
    text = str(refusals.refusal("ORT cannot run m.onnx", RuntimeError(message), "something else"))
    assert text.endswith("; run it without CUDA graphs.")
    assert "ONNXRuntimeError" not in text
    assert "secret" not in text
    assert "  " not in text
