"""Which networks are measured, and at which lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Network:
    """A network of `export.MODULES`.

    sizes        what it is built with
    small        the same for a twin of two narrow layers, which computes in no time
    lengths      positions that it is measured at
    model_types  of ORT's python optimizer, those that fit
    """

    title: str
    kind: str
    sizes: Mapping[str, Any]
    small: Mapping[str, Any]
    lengths: tuple[int, ...]
    model_types: tuple[str, ...]


_F5 = {"layers": 22, "heads": 16, "head_size": 64}
_SD3 = {"layers": 8, "heads": 24, "head_size": 64}
_BERT = {"layers": 12, "heads": 12, "head_size": 64}
_DECODER = {"layers": 4, "heads": 32, "kv_heads": 8, "head_size": 128, "inner": 14336}
_SMALL = {"layers": 2, "heads": 2, "head_size": 64}
_SMALL_DECODER = {"layers": 2, "heads": 4, "kv_heads": 2, "head_size": 32, "inner": 256}
_LEAN = {"adaln": False}
_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
_DIT = ("mmdit", "bert")

NETWORKS = {
    "f5": Network("F5-TTS DiT, AdaLN", "f5", _F5, _SMALL, (256, 512, 938, 2048, 4096, 8192), _DIT),
    "f5-lean": Network("F5-like DiT, LayerNorm", "f5", _F5 | _LEAN, _SMALL | _LEAN, (938, 2048, 4096), _DIT),
    "sd3": Network("SD3-like MMDiT", "sd3", _SD3, _SMALL, _LENGTHS, _DIT),
    "bert": Network("BERT-like encoder, padding mask", "bert", _BERT, _SMALL, _LENGTHS, ("bert", "vit")),
    "decoder": Network(
        "decoder, 32 heads over 8, causal", "decoder", _DECODER, _SMALL_DECODER, _LENGTHS, ("qwen3", "gpt2", "bert")
    ),
}
