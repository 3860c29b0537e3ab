"""What a traced run is: where the time went, by node, operator, block and kernel. Values only; units in the names.

A trace comes from runs of its own, never from the timed ones, since watching slows them down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Method = Literal["cupti", "launch-blocking", "node-timer"]
"""How the times came about.

cupti            CUPTI's records of kernels, copies and memsets on the GPU, tied to nodes by the launching call
launch-blocking  ONNX Runtime's node times under CUDA_LAUNCH_BLOCKING=1: the GPU's work and 5 to 10 µs a launch
node-timer       ONNX Runtime's node times on the CPU, which computes while the node runs
"""
CopyKind = Literal["host to device", "device to host", "device to device", "other copy", "memset"]

UNATTRIBUTED = -1
"""In a slice: work of the GPU that belongs to no node that is known."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """A node of the graph as ONNX Runtime runs it. Times and counts are means over the traced runs.

    block, role   id of the attention block whose work it does and its part in it ("softmax"); "" if none
    time_us       by `Method`: on the GPU (cupti), or as ONNX Runtime measured it; 0 for the CPU's nodes on CUDA
    host_time_us  between the node's start and end on the host: launching it, or on the CPU computing it. Both without
                  the nodes of its body (If, Loop, Scan), which have times of their own
    kernels       indices into `Trace.kernels`, the one that took longest first
    inputs, outputs  what it was given and made in the last traced run, "float16[2,938,1024]"
    """

    name: str
    op_type: str
    provider: Literal["cuda", "cpu"]
    block: str
    role: str
    time_us: float
    host_time_us: float
    launches: float
    kernels: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel by its demangled, shortened name, and what all its launches took in one run."""

    name: str
    time_us: float
    launches: float


@dataclass(frozen=True, slots=True)
class Copies:
    """Memory traffic of one kind that is not a kernel's, in one run."""

    kind: CopyKind
    count: float
    size_bytes: float
    time_us: float


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of one run in the timeline. Starts count from the run's own start.

    lane    "host", or the GPU's stream, "stream 7"
    node    index into `Trace.nodes`, or UNATTRIBUTED
    kernel  index into `Trace.kernels`; -1 for a copy, a memset, or the host's side
    what    the name of the lane's work if it is not a kernel: a CopyKind or "" for the host
    """

    lane: str
    start_us: float
    duration_us: float
    node: int
    kernel: int
    what: str


@dataclass(frozen=True, slots=True)
class OpTime:
    """All nodes of one type in one run: `time_us` together, `count` of them; means over the traced runs."""

    op_type: str
    time_us: float
    count: float


@dataclass(frozen=True, slots=True)
class RegionTime:
    """All nodes of one attention block in one run, and the same by the part that they play, the longest first."""

    block: str
    time_us: float
    count: int
    parts: tuple[OpTime, ...]
    """By role ("qk", "cast", "softmax", …) of an unfused block; by operator of a fused one. `op_type` is the role."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the time of a run went.

    runs             traced runs that the means are over
    wall_us          from a run's start on the host to its end, which waits for the device, while being traced
    busy_us          the GPU working on anything (overlapping work counts once); on the CPU the sum of nodes
    idle_us          between its first and last work of a run the GPU waited for the host: launch-bound if this is much
    longest_gap_us   the longest of these waits
    unattributed_us  GPU work that no node could be tied to
    arena_peak_bytes the most memory in use at once in the device's arena, weights included; None if not told
    arena_held_bytes what the arena took from the device for that
    nodes            in execution order of the last run; none is left out, also those of a CPU in between
    timeline         the last traced run
    """

    method: Method
    note: str
    runs: int
    wall_us: float
    busy_us: float
    idle_us: float
    longest_gap_us: float
    unattributed_us: float
    arena_peak_bytes: int | None
    arena_held_bytes: int | None
    nodes: tuple[NodeTime, ...]
    kernels: tuple[Kernel, ...]
    copies: tuple[Copies, ...]
    timeline: tuple[Slice, ...]

    @property
    def nodes_us(self) -> float:
        """Microseconds of all nodes in one run."""
        return sum(node.time_us for node in self.nodes)

    @property
    def unattributed_share(self) -> float:
        """Unattributed work as a share (0 to 1) of all GPU work."""
        whole = self.nodes_us + self.unattributed_us
        return self.unattributed_us / whole if whole else 0.0

    @property
    def ops(self) -> tuple[OpTime, ...]:
        """Time by operator, the longest first."""
        return _sums(self.nodes, lambda node: node.op_type)

    @property
    def regions(self) -> tuple[RegionTime, ...]:
        """Time by attention block, in order of execution."""
        members: dict[str, list[NodeTime]] = defaultdict(list)
        for node in self.nodes:
            if node.block:
                members[node.block].append(node)
        return tuple(
            RegionTime(block, sum(node.time_us for node in nodes), len(nodes), _sums(nodes, _part))
            for block, nodes in members.items()
        )

    def time_of(self, op_type: str) -> float:
        """Microseconds of all nodes of one type in one run."""
        return sum(node.time_us for node in self.nodes if node.op_type == op_type)


def _part(node: NodeTime) -> str:
    return node.role or node.op_type


def _sums(nodes: Iterable[NodeTime], of: Callable[[NodeTime], str]) -> tuple[OpTime, ...]:
    times: dict[str, list[float]] = defaultdict(list)
    for node in nodes:
        times[of(node)].append(node.time_us)
    found = (OpTime(name, sum(us), len(us)) for name, us in times.items())
    return tuple(sorted(found, key=lambda item: (-item.time_us, item.op_type)))
