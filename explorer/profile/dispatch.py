"""Which attention kernel ONNX Runtime chose for each node, read from what it prints about it.

With ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1 in the environment when a session is created, its CUDA kernels print one
line per attention node and run, in colour:

    Operator=MultiHeadAttention Node=attn_0 DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION

`Node=` is absent for a node without a name.
"""

from __future__ import annotations

import re

from explorer.profile.values import KernelDispatch

DEBUG_VARIABLE = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LINE = re.compile(r"Operator=(\S+)(?: Node=(.*?))? DataType=(\S+) SdpaKernel=(\S+)")


def parse(output: str) -> tuple[KernelDispatch, ...]:
    """The choices printed in `output`, each once, in the order of their first appearance; other lines are ignored."""
    lines = _LINE.findall(_ANSI.sub("", output))  # a group that is absent is "" here
    choices = (KernelDispatch(node, operator, kernel, dtype) for operator, node, dtype, kernel in lines)
    return tuple(dict.fromkeys(choices))
