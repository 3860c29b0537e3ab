"""Text: an encoder of BERT's shape with a padding mask, and a decoder with grouped queries."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.networks.layers import (
    LOGITS_STD,
    POSITIONS,
    Inputs,
    RMSNorm,
    angles,
    feed_forward,
    heads_of,
    linear,
    merged,
    turned,
)

VOCABULARY = 1024


class BertLayer(nn.Module):
    """Exported as transformers' eager attention: the mask is added to the scaled logits."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        width = heads * head_size
        gain = math.sqrt(LOGITS_STD)
        self.query, self.key, self.value = linear(width, width, gain), linear(width, width, gain), linear(width, width)
        self.dense, self.ff = linear(width, width), feed_forward(width, 4 * width, "none")
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-12) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (heads_of(layer(x), self.head_size).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if torch.onnx.is_in_onnx_export():
            logits = q @ k.transpose(-1, -2) / math.sqrt(self.head_size) + mask
            mixed = logits.softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norms[0](self.dense(merged(mixed)) + x)
        return self.norms[1](self.ff(x) + x)


class Bert(nn.Module):
    """An encoder of BERT's base size: `input_ids` and `attention_mask` [4, S] → [4, S, D]."""

    def __init__(self, layers: int = 12, heads: int = 12, head_size: int = 64) -> None:
        super().__init__()
        width = heads * head_size
        self.words, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(POSITIONS, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(BertLayer(heads, head_size) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        dtype = self.words.weight.dtype
        mask = (1 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        x = self.norm(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def inputs(self, length: int, rng: np.random.Generator) -> Inputs:
        """Of each row a different number of positions is padding, none of the first and 3/8 of the last."""
        rows = np.arange(4)[:, None]
        return {
            "input_ids": rng.integers(VOCABULARY, size=(4, length)),
            "attention_mask": (np.arange(length) < length - rows * length // 8).astype(np.int64),
        }


# --- a decoder with grouped queries ---------------------------------------------------------------------------------


class DecoderLayer(nn.Module):
    """Exported as transformers' eager attention: keys and values are repeated, the softmax computes in float32."""

    def __init__(self, heads: int, kv_heads: int, head_size: int, inner: int) -> None:
        super().__init__()
        self.repeats, self.head_size = heads // kv_heads, head_size
        width, kv_width, gain = heads * head_size, kv_heads * head_size, math.sqrt(LOGITS_STD)
        self.q_proj, self.k_proj = linear(width, width, gain, False), linear(width, kv_width, gain, False)
        self.v_proj, self.o_proj = linear(width, kv_width, 1.0, False), linear(width, width, 1.0, False)
        self.gate_proj, self.up_proj = linear(width, inner, 1.0, False), linear(width, inner, 1.0, False)
        self.down_proj = linear(inner, width, 1.0, False)
        self.norms = nn.ModuleList(RMSNorm(width, 1e-5) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norms[0](x)
        q = heads_of(self.q_proj(normed), self.head_size).transpose(1, 2)
        k, v = (heads_of(layer(normed), self.head_size).transpose(1, 2) for layer in (self.k_proj, self.v_proj))
        q, k = (part * cos + turned(part, 3, self.head_size) * sin for part in (q, k))
        if mask is not None:
            k, v = self._repeated(k), self._repeated(v)
            logits = q @ k.transpose(2, 3) * self.head_size**-0.5 + mask
            mixed = logits.softmax(-1, dtype=torch.float32).to(q.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(merged(mixed))
        normed = self.norms[1](x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))

    def _repeated(self, x: Tensor) -> Tensor:
        batch, kv_heads, length, head_size = x.shape
        x = x[:, :, None].expand(batch, kv_heads, self.repeats, length, head_size)
        return x.reshape(batch, kv_heads * self.repeats, length, head_size)


class Decoder(nn.Module):
    """A prompt through a decoder of LLaMA-3-8B's width: `input_ids` [1, S] → the last layer's states [1, S, D]."""

    def __init__(
        self, layers: int = 4, heads: int = 32, kv_heads: int = 8, head_size: int = 128, inner: int = 14336
    ) -> None:
        super().__init__()
        width = heads * head_size
        turns = angles(head_size, interleaved=False)
        self.register_buffer("cos", turns.cos())
        self.register_buffer("sin", turns.sin())
        self.words = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(DecoderLayer(heads, kv_heads, head_size, inner) for _ in range(layers))
        self.norm = RMSNorm(width, 1e-5)

    def forward(self, input_ids: Tensor) -> Tensor:
        length, x = input_ids.shape[1], self.words(input_ids)
        cos, sin = self.cos[:length], self.sin[:length]
        mask = None
        if torch.onnx.is_in_onnx_export():
            mask = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, mask, cos, sin)
        return self.norm(x)

    def inputs(self, length: int, rng: np.random.Generator) -> Inputs:
        """One prompt."""
        return {"input_ids": rng.integers(VOCABULARY, size=(1, length))}
