"""Which attention kernel each node ran with: as ONNX Runtime says it, and as the names of its kernels show it. Pure.

With ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1 in the environment when a session is created, its CUDA kernels print one
line per attention node and run, in colour:

    Operator=MultiHeadAttention Node=attn_0 DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION

`Node=` is absent for a node without a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from explorer.profile.fallbacks import CUDNN, EFFICIENT, FLASH, MATH, conditions, fallback
from explorer.profile.ort_graph import OrtGraph
from explorer.profile.trace import NodeTime, Trace
from explorer.profile.values import Dispatch

DEBUG_VARIABLE = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
OPERATORS = frozenset({"MultiHeadAttention", "Attention", "GroupQueryAttention"})
PREPARED_US = 5000.0
"""cuDNN prepares itself for a shape in some 40 ms of the host's time; launching what is prepared takes under 0.1 ms."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LINE = re.compile(r"Operator=(\S+)(?: Node=(.*?))? DataType=(\S+) SdpaKernel=(\S+)")
_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
# The first that the name of any of a node's kernels has in it. Those of MATH run beside others, too, so it comes last.
_SIGNS = (
    (CUDNN, re.compile(r"cudnn.*(sdpa|flash|mha)")),
    (FLASH, re.compile(r"flash_fwd")),
    ("LEAN_ATTENTION", re.compile(r"lean_fwd")),
    (EFFICIENT, re.compile(r"attention_kernel_batched_impl|fmha_cutlass")),
    ("TRT_FUSED_ATTENTION", re.compile(r"fmha_v2|fmha_mhca|fused_multihead_attention")),
    ("DECODER_ATTENTION", re.compile(r"masked_multihead_attention")),
    (MATH, re.compile(r"softmax", re.IGNORECASE)),
)


@dataclass(frozen=True, slots=True)
class Said:
    """What one of ONNX Runtime's lines says; node is "" for one without a name."""

    operator: str
    node: str
    dtype: str
    kernel: str


def parse(log: str) -> tuple[Said, ...]:
    """What is said of kernels in `log`, each once, in the order of its first appearance; other lines are ignored."""
    lines = _LINE.findall(_ANSI.sub("", log))  # a group that is absent is "" here
    return tuple(dict.fromkeys(Said(*line) for line in lines))


def seen_kernel(names: Iterable[str]) -> str:
    """The attention kernel that launches kernels of these names, by ONNX Runtime's word for it; "" if none is known."""
    known = tuple(names)
    return next((kernel for kernel, sign in _SIGNS if any(map(sign.search, known))), "")


def dispatches(
    trace: Trace, log: str, graph: OrtGraph, sdpa_kernel: int, compute_capability: str
) -> tuple[Dispatch, ...]:
    """The kernel of each attention node, in order of execution, with a warning where another would be better.

    `log` is what ONNX Runtime printed during the runs of `trace`, `graph` the one that ran, `sdpa_kernel` the CUDA
    provider option that it ran with, `compute_capability` that of the device ("9.0"; "" if unknown). Empty for a trace
    of the CPU.
    """
    if trace.method == "node-timer":
        return ()
    lines = parse(log)
    by_node = {line.node: line for line in lines if line.node}
    in_graph = {node.name: node for node in graph.nodes}
    found = []
    for node in trace.nodes:
        if node.op_type not in OPERATORS and node.name not in by_node:
            continue
        said = by_node.get(node.name) or _nameless(lines, node.op_type)
        dtype = said.dtype if said is not None else _dtype(node)
        seen = seen_kernel(trace.kernels[at].name for at in node.kernels)
        said_kernel = said.kernel if said is not None else ""
        if node.provider == "cpu":
            warning = (
                f"It ran on the CPU, with copies to it and back: CUDA has no kernel for {node.op_type} in {dtype} here."
            )
        else:
            asked = conditions(node, in_graph.get(node.name), dtype, sdpa_kernel, compute_capability)
            kernel = seen or said_kernel
            said_of_it = (_disagreement(said_kernel, seen), fallback(kernel, asked), _preparing(node, kernel))
            warning = " ".join(filter(None, said_of_it))
        found.append(Dispatch(node.name, node.op_type, dtype, said_kernel, seen, warning))
    return tuple(found)


def _preparing(node: NodeTime, kernel: str) -> str:
    """That ONNX Runtime seems to build cuDNN's graph anew, though the traced runs are not the first of their shape.

    A host that waits for room in the launch queue waits for the GPU, so its time has to be far longer than the GPU's.
    """
    host, gpu = node.host_time_us, node.time_us
    if kernel != CUDNN or host - gpu < PREPARED_US or host <= 10 * gpu:
        return ""
    return (
        f"It kept the host busy for {host / 1000:.0f} ms a run, probably because cuDNN was prepared for the shape "
        "again, as in a first run; a CUDA graph or another kernel (sdpa_kernel=1, Flash) avoids that."
    )


def _nameless(lines: Iterable[Said], operator: str) -> Said | None:
    """What is said of the nodes without names of one operator, if it is the same of all."""
    said = [line for line in lines if not line.node and line.operator == operator]
    return said[0] if len(said) == 1 else None


def _dtype(node: NodeTime) -> str:
    query = node.inputs[0].partition("[")[0] if node.inputs else ""
    return _DTYPES.get(query, query)


def _disagreement(said: str, seen: str) -> str:
    # "TRT_FLASH_ATTENTION" and "TRT_CROSS_ATTENTION" are kernels of the same family.
    if not said or not seen or said == seen or (said.startswith("TRT_") and seen.startswith("TRT_")):
        return ""
    return f"ONNX Runtime says {said}, but the kernels that ran are those of {seen}."
