"""A small profile with something in every field, and one as large as profiles get."""

from __future__ import annotations

import random
from dataclasses import replace

from explorer.profile.trace import UNATTRIBUTED, Copies, Kernel, NodeTime, Slice, Trace
from explorer.profile.values import (
    Dispatch,
    Latency,
    Measurement,
    Placement,
    Point,
    Profile,
    Ratio,
    Variant,
)
from explorer.runtime.gpu import GpuState

TRACE = Trace(
    method="cupti",
    note="2 runs.",
    runs=2,
    wall_us=1000.0,
    busy_us=600.0,
    idle_us=50.5,
    longest_gap_us=20.0,
    unattributed_us=6.0,
    arena_peak_bytes=1 << 20,
    arena_held_bytes=None,
    nodes=(
        NodeTime("qk", "MatMul", "cuda", "b0", "qk", 400.0, 9.0, 1.0, (0,), ("float16[2,4]", "float16[4,2]"), ()),
        NodeTime("up", "Cast", "cuda", "b0", "cast", 100.25, 5.0, 1.5, (1, 0), ("float16[2,2]",), ("float32[2,2]",)),
        NodeTime("size", "Shape", "cpu", "", "", 0.0, 2.0, 0.0, (), (), ("int64[2]",)),
    ),
    kernels=(Kernel("gemm", 400.0, 1.0), Kernel("cast<half, float>", 100.25, 1.5)),
    copies=(Copies("host to device", 1.0, 800.0, 3.0), Copies("memset", 2.0, 16.0, 1.0)),
    timeline=(
        Slice("host", 0.0, 9.0, 0, -1, ""),
        Slice("stream 7", 3.125, 400.0, 0, 0, ""),
        Slice("stream 7", 410.0, 1.0, UNATTRIBUTED, -1, "memset"),
    ),
)
SHAPES = (("x", (2, 938, 100)), ("n", ()))
GPU = GpuState(1980, 1980, 3201, 41, 300.5, 700.0, 1 << 30, 1 << 37, ("power cap",), ("python3 (pid 7), 1.2 GB",))


def variant(name: str, **changes) -> Variant:
    ops, placement = (("Cast", 2), ("MatMul", 2)), (Placement("CUDAExecutionProvider", (("Cast", 4), ("MatMul", 2))),)
    made = Variant(name, "", 0, False, 0.5, "all", ops, (("Cast", 4), ("MatMul", 2)), 1, placement)
    return replace(made, **changes)


def measurement(name: str, runs_ms=(2.0, 1.0, 3.0) * 2, **changes) -> Measurement:
    return replace(Measurement(name, 9.0, Latency(tuple(runs_ms)), None, None, (), ""), **changes)


def refused(name: str, why: str) -> Measurement:
    return Measurement(name, None, None, None, None, (), why)


def point(*measurements: Measurement, shapes=SHAPES, **changes) -> Point:
    return replace(Point(shapes, 6, True, (), measurements), **changes)


def profile(*points: Point, **changes) -> Profile:
    """A profile of these points, with a variant for each of the measurements."""
    names = [item.variant for item in points[0].measurements] if points else ["original"]
    made = Profile(
        provider="cuda",
        provider_note="On CUDA, as asked.",
        environment=(("onnxruntime", "1.31.1"), ("gpu", "NVIDIA H200")),
        labels=(("b0", "attn0"),),
        source="00ff",
        runs=6,
        seed=0,
        variants=tuple(map(variant, names)),
        points=points,
        notes=("A note.",),
    )
    return replace(made, **changes)


ORIGINAL = measurement("original", trace=TRACE)
FUSED = measurement(
    "fused",
    (1.0, 0.5, 1.5),
    ratio=Ratio(2.0, 1.9, 2.1),
    dispatch=(Dispatch("attn", "MultiHeadAttention", "fp16", "MATH", "", "It has a bias."),),
)
PROFILE = profile(
    point(ORIGINAL, FUSED, gpu=(GPU, GPU)),
    point(
        measurement("original"), refused("fused", "No memory."), shapes=(("x", (2, 9, 100)), ("n", ())), steady=False
    ),
)


def large_trace(nodes: int, length: int) -> Trace:
    """A trace with as much different in it as in real ones: layers alike, times not."""
    number = random.Random(length)
    names = (f"/transformer_blocks.{at // 45}/attn/inner_attention/op_{at % 45}/MatMul_{at}" for at in range(nodes))
    times = tuple(
        NodeTime(
            name,
            f"Op{at % 30}",
            "cuda",
            f"attn{at // 45}:0123456789ab" if at % 3 else "",
            "softmax" if at % 3 else "",
            number.random() * 200,
            number.random() * 30,
            1.0,
            (at % 40,),
            (f"float16[2,{length},{1024 + at % 45}]",) * 2,
            (f"float16[2,{length},{at % 45}]",),
        )
        for at, name in enumerate(names)
    )
    timeline, now = [], 0.0
    for at in range(nodes):
        now += number.random() * 20
        timeline.append(Slice("host", now, number.random() * 10, at, -1, ""))
        timeline.append(Slice("stream 7", now + number.random(), number.random() * 10, at, at % 40, ""))
    kernels = tuple(Kernel(f"_BinaryElementWise<half, {at}>", number.random() * 1000, float(at)) for at in range(40))
    return replace(TRACE, nodes=times, kernels=kernels, timeline=tuple(timeline))
