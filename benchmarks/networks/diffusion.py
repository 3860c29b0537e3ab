"""Diffusion transformers: F5-TTS's and one like Stable Diffusion 3's. Batch 2, for classifier-free guidance."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.networks.layers import (
    LOGITS_STD,
    Inputs,
    RMSNorm,
    angles,
    feed_forward,
    heads_of,
    linear,
    merged,
    modulations,
    turned,
)

BATCH = 2
MEL, LATENT, PROMPT = 100, 64, 333


class F5Attention(nn.Module):
    """Exported as in onnxruntime#27983: K is transposed ahead of its rotary embedding, 0.1 is baked into each of Wq and
    Wk against overflow in float16, and 100 takes that out again after a Cast to float32. The only size that is not a
    constant there is S."""

    BAKED, UNBAKE = 0.1, 100.0

    def __init__(self, heads: int, head_size: int, interleaved: bool) -> None:
        super().__init__()
        self.heads, self.head_size, self.interleaved = heads, head_size, interleaved
        width = heads * head_size
        gain = math.sqrt(LOGITS_STD) * self.BAKED * head_size**-0.25
        self.to_q, self.to_k, self.to_v = linear(width, width, gain), linear(width, width, gain), linear(width, width)
        self.to_out = linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        split = (BATCH, -1, self.heads, self.head_size)
        q, k, v = (layer(x).view(split) for layer in (self.to_q, self.to_k, self.to_v))
        q = q.transpose(1, 2)
        v = v.transpose(1, 2)
        q = q * cos + self._turned(q, 3) * sin
        if torch.onnx.is_in_onnx_export():
            k = k.permute(0, 2, 3, 1)  # [B, N, H, S]
            k = k * cos.T + self._turned(k, 2) * sin.T
            logits = (q @ k).to(torch.float32) * self.UNBAKE
            mixed = logits.softmax(-1).to(v.dtype) @ v
        else:
            k = k.transpose(1, 2)
            k = k * cos + self._turned(k, 3) * sin
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.UNBAKE)
        return self.to_out(mixed.transpose(1, 2).reshape(BATCH, -1, self.heads * self.head_size))

    def _turned(self, x: Tensor, axis: int) -> Tensor:
        """(a, b) → (-b, a) along `axis` 3 of [B, N, S, H] or 2 of [B, N, H, S]: its halves, or pairs of neighbours."""
        if not self.interleaved:
            return turned(x, axis, self.head_size)
        shape = [BATCH, self.heads, -1, -1]
        shape[axis] = self.head_size
        a, b = x.reshape(*shape[:axis], self.head_size // 2, 2, *shape[axis + 1 :]).unbind(axis + 1)
        return torch.stack((-b, a), axis + 1).reshape(shape)


class F5Block(nn.Module):
    """Attention and feed-forward, each modulated by the flow time (AdaLN) or after a plain LayerNorm."""

    def __init__(self, heads: int, head_size: int, adaln: bool) -> None:
        super().__init__()
        width = heads * head_size
        self.modulation = linear(width, 6 * width, 0.5) if adaln else None
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6, elementwise_affine=not adaln) for _ in range(2))
        self.attn, self.ff = F5Attention(heads, head_size, adaln), feed_forward(width, 2 * width)

    def forward(self, x: Tensor, time: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        if self.modulation is None:
            x = x + self.attn(self.norms[0](x), cos, sin)
            return x + self.ff(self.norms[1](x))
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulations(self.modulation, time)
        x = x + gate * self.attn(self.norms[0](x) * (1 + scale) + shift, cos, sin)
        return x + gate_ff * self.ff(self.norms[1](x) * (1 + scale_ff) + shift_ff)


class F5(nn.Module):
    """The blocks of F5-TTS's diffusion transformer: `x` [2, S, mel], with `adaln` also `time` [2, D] → [2, S, mel].

    Without `adaln` leaner ones around the same attention: plain LayerNorms, rotary embedding by halves. What F5-TTS
    computes ahead of the blocks, from text and time, is left out.
    """

    def __init__(self, layers: int = 22, heads: int = 16, head_size: int = 64, adaln: bool = True) -> None:
        super().__init__()
        width = self.width = heads * head_size
        self.adaln = adaln
        turns = angles(head_size, interleaved=adaln)
        self.register_buffer("cos", turns.cos())
        self.register_buffer("sin", turns.sin())
        self.embed, self.project = linear(MEL, width), linear(width, MEL)
        self.blocks = nn.ModuleList(F5Block(heads, head_size, adaln) for _ in range(layers))
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, time, cos, sin)
        return self.project(self.norm(x))

    def inputs(self, length: int, rng: np.random.Generator) -> Inputs:
        """What `forward` takes, by name."""
        found = {"x": rng.standard_normal((BATCH, length, MEL)).astype(np.float16)}
        if self.adaln:
            found["time"] = rng.standard_normal((BATCH, self.width)).astype(np.float16)
        return found


# --- Stable Diffusion 3 ---------------------------------------------------------------------------------------------


class Stream(nn.Module):
    """One modality's own weights in a block: image or text."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        width = heads * head_size
        self.modulation = linear(width, 6 * width, 0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6, elementwise_affine=False) for _ in range(2))
        self.to_q, self.to_k, self.to_v, self.to_out = (linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(head_size), RMSNorm(head_size)
        self.ff = feed_forward(width, 4 * width)

    def qkv(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, S, H] each."""
        x = self.norms[0](x) * (1 + scale) + shift
        q, k, v = (heads_of(layer(x), self.head_size).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def rest(self, x: Tensor, mixed: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, gate_ff: Tensor) -> Tensor:
        """What follows attention."""
        x = x + gate * self.to_out(mixed)
        return x + gate_ff * self.ff(self.norms[1](x) * (1 + scale) + shift)


class JointBlock(nn.Module):
    """Image and text attend to both, with weights of their own."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__()
        self.image, self.text = Stream(heads, head_size), Stream(heads, head_size)

    def forward(self, image: Tensor, text: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        length = image.shape[1]
        parts = [modulations(stream.modulation, condition) for stream in (self.image, self.text)]
        both = zip(
            self.image.qkv(image, parts[0][0], parts[0][1]), self.text.qkv(text, parts[1][0], parts[1][1]), strict=True
        )
        q, k, v = (torch.cat(pair, 2) for pair in both)
        mixed = merged(F.scaled_dot_product_attention(q, k, v))
        image = self.image.rest(image, mixed[:, :length], *parts[0][2:])
        return image, self.text.rest(text, mixed[:, length:], *parts[1][2:])


class SD3(nn.Module):
    """An MMDiT like Stable Diffusion 3.5: `latent` [2, S, 64] attends jointly with `prompt` [2, 333, D]; → [2, S, 64].

    `condition` [2, D] is the embedding of time and pooled prompt.
    """

    def __init__(self, layers: int = 8, heads: int = 24, head_size: int = 64) -> None:
        super().__init__()
        width = self.width = heads * head_size
        self.embed, self.project = linear(LATENT, width), linear(width, LATENT)
        self.blocks = nn.ModuleList(JointBlock(heads, head_size) for _ in range(layers))
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, latent: Tensor, prompt: Tensor, condition: Tensor) -> Tensor:
        image = self.embed(latent)
        for block in self.blocks:
            image, prompt = block(image, prompt, condition)
        return self.project(self.norm(image))

    def inputs(self, length: int, rng: np.random.Generator) -> Inputs:
        """What `forward` takes, by name."""
        shapes = {
            "latent": (BATCH, length, LATENT),
            "prompt": (BATCH, PROMPT, self.width),
            "condition": (BATCH, self.width),
        }
        return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
