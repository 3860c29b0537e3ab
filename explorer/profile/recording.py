"""What was recorded of traced runs: plain values, before anything is concluded from them (`attribution` does that).

All times are nanoseconds of the same clock, that of CLOCK_REALTIME.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from explorer.profile.trace import Method

Provider = Literal["cuda", "cpu"]
WorkKind = Literal["kernel", "host to device", "device to host", "device to device", "other copy", "memset"]
"""A kernel or a `CopyKind`."""


@dataclass(frozen=True, slots=True)
class RunSpan:
    """One run of the model, from its start on the host to its end, which waits for the device."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class NodeRun:
    """One execution of a node, as the host saw it. The nodes of a body lie within the time of the node that has it.

    name             its own, or for a node without one what ONNX Runtime calls it, "Exp_14"
    inputs, outputs  the tensors, "float16[2,938,1024]"; an input that is left out has no entry
    """

    name: str
    op_type: str
    provider: Provider
    start_ns: int
    end_ns: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """A call of the CUDA runtime or driver that put work on the GPU."""

    correlation: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class GpuWork:
    """A kernel, copy or memset on the GPU, and the launch (by its correlation id) that asked for it.

    name        of a kernel, demangled if this machine could; "" for a copy or memset
    size_bytes  that a copy or memset wrote; 0 for a kernel
    """

    kind: WorkKind
    name: str
    correlation: int
    stream: int
    start_ns: int
    end_ns: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Recording:
    """Traced runs of one variant on one set of inputs.

    runs                the traced runs, in order
    nodes               executions of nodes in these runs, in order of their starts
    launches, work      of the GPU; empty but for the method cupti
    dropped             records that CUPTI had no room for
    arena_peak_bytes    the most memory in use at once in the device's arena so far; None if not told
    arena_held_bytes    what the arena had taken from the device
    log                 what ONNX Runtime printed during the runs
    """

    method: Method
    runs: tuple[RunSpan, ...]
    nodes: tuple[NodeRun, ...]
    launches: tuple[Launch, ...]
    work: tuple[GpuWork, ...]
    dropped: int
    arena_peak_bytes: int | None
    arena_held_bytes: int | None
    log: str
