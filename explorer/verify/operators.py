"""Operators in float64 for ONNX's reference evaluator: those that it rounds, reads too narrowly or does not have.

Those of ONNX Runtime are what its optimiser makes of the parts of a transformer beside attention, when it writes an
optimised file.
Source of their meaning: the operator documentation of ONNX and of ONNX Runtime (ContribOperators.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray


def erf(x: Array) -> Array:
    """The error function; the evaluator's own rounds to float32."""
    return np.vectorize(math.erf, otypes=["d"])(x) if x.size else x


def gelu(x: Array, approximate: str = "none") -> Array:
    """x·Φ(x), or its approximation by tanh; the evaluator takes it apart with float32 constants."""
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def bias_gelu(x: Array, bias: Array) -> Array:
    """Gelu of a sum."""
    return gelu(x + bias)


def fast_gelu(x: Array, bias: Array | None = None) -> Array:
    """Gelu by tanh, of a sum if there is a bias."""
    return gelu(x if bias is None else x + bias, "tanh")


def quick_gelu(x: Array, alpha: float = 1.702) -> Array:
    """x·σ(alpha·x)."""
    return np.asarray(x / (1 + np.exp(-alpha * x)))


def gather_elements(data: Array, indices: Array, axis: int = 0) -> Array:
    """data at `indices` along `axis`; the evaluator wants the two to have one shape elsewhere, ONNX does not."""
    at: list[Array] = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    at[axis] = indices
    return np.asarray(data[tuple(at)])


def rms_normalization(x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Array:
    """x over its root mean square from `axis` on, times `scale`; `stash_type` is for narrower types."""
    mean = np.mean(x**2, axis=tuple(range(axis % x.ndim, x.ndim)), keepdims=True)
    return np.asarray(x / np.sqrt(mean + epsilon) * scale)


def fused_matmul(
    a: Array,
    b: Array,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Array:
    """alpha·A·B; `trans` swaps the last two axes of an operand, `transBatch` brings its first before the last."""
    return np.asarray(alpha * (_turned(a, transA, transBatchA) @ _turned(b, transB, transBatchB)))


def _turned(x: Array, transpose: int, batch: int) -> Array:
    if batch:
        x = np.moveaxis(x, 0, -2)
    return np.swapaxes(x, -1, -2) if transpose and x.ndim > 1 else x


def _operator(domain: str, name: str, function: Callable[..., Array]) -> type[OpRun]:
    """A class of one operator with one output, as the evaluator wants it."""

    def run(self: OpRun, *inputs: Array, **attributes: Any) -> tuple[Array]:
        return (function(*inputs, **attributes),)

    return type(name, (OpRun,), {"op_domain": domain, "_run": run})


_ORT = "com.microsoft"
OPERATORS: tuple[type[OpRun], ...] = (
    _operator("", "Erf", erf),
    _operator("", "Gelu", gelu),
    _operator("", "GatherElements", gather_elements),
    _operator("", "SimplifiedLayerNormalization", rms_normalization),  # ONNX Runtime's, in ONNX's domain
    _operator(_ORT, "Gelu", gelu),
    _operator(_ORT, "BiasGelu", bias_gelu),
    _operator(_ORT, "FastGelu", fast_gelu),
    _operator(_ORT, "QuickGelu", quick_gelu),
    _operator(_ORT, "FusedMatMul", fused_matmul),
)
"""What the reference evaluator is given as new operators."""
