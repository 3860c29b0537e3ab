from __future__ import annotations

from explorer.profile.dispatch import parse
from explorer.profile.values import KernelDispatch

PRINTED = (
    "\x1b[36mAttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 CUDNN_FLASH_ATTENTION=1 MATH=1\x1b[0m\n"
    "\x1b[32mOperator=MultiHeadAttention Node=attn_0 DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION\x1b[0m\n"
    "\x1b[32mOperator=Attention Node=/layers.1/a b DataType=bf16 SdpaKernel=FLASH_ATTENTION\x1b[0m\r\n"
    "2026-11-22 [W:onnxruntime:] something else\n"
    "\x1b[32mOperator=MultiHeadAttention DataType=fp32 SdpaKernel=MATH\x1b[0m\n"
    "\x1b[32mOperator=MultiHeadAttention Node=attn_0 DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION\x1b[0m\n"
)


def test_each_nodes_kernel_is_read_once():
    assert parse(PRINTED) == (
        KernelDispatch("attn_0", "MultiHeadAttention", "CUDNN_FLASH_ATTENTION", "fp16"),
        KernelDispatch("/layers.1/a b", "Attention", "FLASH_ATTENTION", "bf16"),
        KernelDispatch("", "MultiHeadAttention", "MATH", "fp32"),
    )


def test_other_output_has_no_kernels():
    assert parse("") == ()
    assert parse("Operator=X Node=y DataType=fp16\nSdpaKernel=MATH") == ()
