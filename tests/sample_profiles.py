"""Profiles made by hand: what a GPU or a CPU might have given, every number known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from explorer.profile import (
    Copies,
    Dispatch,
    Kernel,
    Latency,
    Measurement,
    NodeTime,
    Placement,
    Point,
    Profile,
    Ratio,
    Slice,
    Trace,
    Variant,
)
from explorer.runtime.gpu import GpuState

MATH = "expected a flash kernel, found MATH: the bias is not aligned"


def node(op_type: str, time_us: float, role: str = "", **changes: Any) -> NodeTime:
    """A node on the GPU; with a role, or as an operator of attention, it is block b0's."""
    block = "b0" if role or op_type == "MultiHeadAttention" else ""
    return replace(NodeTime(op_type.lower(), op_type, "cuda", block, role, time_us, 5.0, 1.0, (0,), (), ()), **changes)


BEFORE = (
    node("MatMul", 2000.0, "qk"), node("Cast", 1500.0, "cast"), node("Mul", 1000.0, "scale"),
    node("Softmax", 2500.0, "softmax"), node("Cast", 500.0, "cast"), node("MatMul", 1500.0, "pv"), node("Gelu", 400.0),
)  # fmt: skip
AFTER = (node("MultiHeadAttention", 700.0), node("Transpose", 100.0, block="b0"), node("Gelu", 400.0))


def trace(nodes: Sequence[NodeTime] = BEFORE, method: Any = "cupti", **changes: Any) -> Trace:
    """A traced run of these nodes, 1 % of it nobody's."""
    busy = sum(item.time_us for item in nodes)
    values: dict[str, Any] = {
        "method": method,
        "note": f"Traced by {method}.",
        "runs": 3,
        "wall_us": busy + 500.0,
        "busy_us": busy,
        "idle_us": 250.0,
        "longest_gap_us": 40.0,
        "unattributed_us": busy / 99,
        "arena_peak_bytes": 340_000_000,
        "arena_held_bytes": 512_000_000,
        "nodes": tuple(nodes),
        "kernels": (Kernel("gemm_fp16", busy, len(nodes)),),
        "copies": (Copies("host to device", 4.0, 1_200_000.0, 11.0), Copies("memset", 2.0, 4096.0, 2.0)),
        "timeline": (Slice("host", 0.0, 5.0, 0, -1, ""), Slice("stream 7", 6.0, 9.0, 0, 0, "")),
    }
    return Trace(**{**values, **changes})


def variant(name: str = "original", **changes: Any) -> Variant:
    """A model with four Casts, all of which ONNX Runtime keeps."""
    ops = (("MatMul", 10), ("Cast", 4))
    values: dict[str, Any] = {
        "name": name, "plan": "", "sdpa_kernel": 0, "cuda_graph": False, "load_s": 0.25, "optimization": "ENABLE_ALL",
        "ops": ops, "ops_optimized": ops, "memcpy_nodes": 0,
        "placement": (Placement("CUDAExecutionProvider", ops), Placement("CPUExecutionProvider", (("Gather", 3),))),
    }  # fmt: skip
    return Variant(**{**values, **changes})


ORIGINAL = variant()
FUSED = variant("fused", plan="p1", ops=(("MatMul", 6), ("MultiHeadAttention", 2)), ops_optimized=(("MatMul", 6),))


def measurement(name: str, runs_ms: Sequence[float] | None, of: Trace | None = None, **changes: Any) -> Measurement:
    """A variant that took so long; None is one that did not run."""
    values: dict[str, Any] = {
        "variant": name, "first_run_ms": None if runs_ms is None else 31.0,
        "latency": None if runs_ms is None else Latency(tuple(runs_ms)), "ratio": None, "trace": of, "dispatch": (),
        "refusal": "" if runs_ms is not None else "out of memory at node /attn/MatMul",
    }  # fmt: skip
    return Measurement(**{**values, **changes})


def gpu(**changes: Any) -> GpuState:
    """A GPU at its full clock with nobody else on it."""
    return replace(GpuState(1980, 1980, 3201, 45, 320.4, 700.0, 2**30, 2**37, (), ()), **changes)


FLASH = Dispatch("mha", "MultiHeadAttention", "fp16", "CUDNN_FLASH_ATTENTION", "CUDNN_FLASH_ATTENTION", "")


def point(
    length: int = 938,
    before: Sequence[float] | None = (12.0, 12.2, 12.1, 12.4) * 2,
    after: Sequence[float] | None = (6.0, 6.1, 6.0, 6.2) * 2,
    **changes: Any,
) -> Point:
    """Both variants at one length, traced on a GPU."""
    ratio = None if before is None or after is None else Ratio.of(Latency(tuple(before)), Latency(tuple(after)), 0)
    values: dict[str, Any] = {
        "shapes": (("x", (2, length, 100)),), "warmup": 5, "steady": True, "gpu": (gpu(), gpu(sm_clock_mhz=1755)),
        "measurements": (
            measurement("original", before, trace() if before else None),
            measurement("fused", after, trace(AFTER) if after else None, ratio=ratio, dispatch=(FLASH, FLASH)),
        ),
    }  # fmt: skip
    return Point(**{**values, **changes})


def profile(*points: Point, **changes: Any) -> Profile:
    """Both variants on a GPU, at one length unless points are given."""
    environment = {"gpu": "NVIDIA H200", "cpu": "Some CPU", "onnxruntime": "1.2.3", "cuda": "13.0", "driver": "580.1"}
    values: dict[str, Any] = {
        "provider": "cuda", "provider_note": "On CUDA, as asked.", "environment": tuple(environment.items()),
        "labels": (("b0", "attn0"),), "source": "d0", "runs": 8, "seed": 0, "variants": (ORIGINAL, FUSED),
        "points": points or (point(),), "notes": ("a note",),
    }  # fmt: skip
    return Profile(**{**values, **changes})


def sweep(**changes: Any) -> Profile:
    """Lengths at which fused is first slower, then faster: the curves cross at 512."""
    return profile(
        point(256, (4.0,) * 8, (8.0,) * 8),
        point(512, (10.0,) * 8, (10.0,) * 8),
        point(1024, (40.0,) * 8, (20.0,) * 8),
        **changes,
    )


def on_cpu(item: Profile | None = None) -> Profile:
    """The same as the CPU's node timer would tell it."""
    whole = item or profile()
    points = []
    for at in whole.points:
        measured = []
        for found in at.measurements:
            nodes = [replace(own, provider="cpu", kernels=()) for own in (found.trace.nodes if found.trace else ())]
            timed = trace(nodes, "node-timer", unattributed_us=0.0, idle_us=0.0, copies=(), kernels=(), timeline=())
            own = replace(timed, arena_peak_bytes=None, arena_held_bytes=None)
            measured.append(replace(found, trace=own if found.trace else None, dispatch=()))
        points.append(replace(at, gpu=(), measurements=tuple(measured)))
    note = "Ran on the CPU: no CUDA device was found."
    return replace(whole, provider="cpu", provider_note=note, points=tuple(points))
