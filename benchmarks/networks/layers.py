"""What the networks share. B batch, S positions, N heads of H channels, D = N·H.

One definition, two ways to attend: while a network is being exported, its attention is written out as the code that
people export writes it; whenever it computes, eager or compiled, it calls torch's `scaled_dot_product_attention`. So
the ONNX graph and what torch is timed with are the same network with the same weights, each in the form in which it is
really used.

Weights are random and keep the variance; attention logits have a standard deviation of about 2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

POSITIONS = 8192
"""The longest sequence that any of the networks takes."""
LOGITS_STD = 2.0

Inputs = dict[str, np.ndarray]


def linear(inputs: int, outputs: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """Inputs of variance 1 give outputs of standard deviation `gain`, plus a tenth of that as bias."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    if bias:
        nn.init.normal_(layer.bias, std=gain / 10)
    return layer


def heads_of(x: Tensor, head_size: int) -> Tensor:
    """[B, S, N·H] → [B, S, N, H]."""
    return x.view(x.shape[0], x.shape[1], -1, head_size)


def merged(x: Tensor) -> Tensor:
    """[B, N, S, H] → [B, S, N·H]."""
    return x.transpose(1, 2).flatten(2)


def feed_forward(width: int, inner: int, approximate: str = "tanh") -> nn.Sequential:
    """Two layers around a Gelu."""
    return nn.Sequential(linear(width, inner), nn.GELU(approximate), linear(inner, width))


def modulations(layer: nn.Linear, condition: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate of attention, then of the feed-forward, [B, 1, D] each."""
    return tuple(part[:, None] for part in layer(F.silu(condition)).split(layer.out_features // 6, -1))


def angles(head_size: int, interleaved: bool) -> Tensor:
    """The angle of each position and channel of a head, [POSITIONS, H]; the two of a pair share a frequency."""
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    frequency = frequency.repeat_interleave(2) if interleaved else frequency.repeat(2)
    return torch.arange(POSITIONS)[:, None] * frequency


def turned(x: Tensor, axis: int, head_size: int) -> Tensor:
    """(a, b) → (-b, a) for the two halves of `axis`, which has H channels."""
    a, b = x.split(head_size // 2, axis)
    return torch.cat((-b, a), axis)


class RMSNorm(nn.Module):
    """Computed in float32, as transformers and diffusers write it."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(1 + torch.randn(width) / 10), epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)
