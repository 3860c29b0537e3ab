"""Attention in float64 from its definition: the truth that blocks are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from explorer.attention import MaskTerm
from explorer.attention.block import BNSH, Layout

Float64 = np.ndarray
"""Arrays of dtype float64."""


def attention(
    query: Float64, key: Float64, value: Float64, scale: float, terms: Sequence[tuple[MaskTerm, np.ndarray]]
) -> Float64:
    """softmax(scale·QKᵀ + mask)·V.

    query [B, N, S, H], key [B, N, T, H], value [B, N, T, Hv], all float64; each mask term comes with its array, which
    broadcasts to [B, N, S, T]. Returns [B, N, S, Hv]. One head is computed at a time, so memory grows with S·T alone.
    """
    batch, heads, rows, _ = query.shape
    result = np.empty((batch, heads, rows, value.shape[3]))
    shape = (batch, heads, rows, key.shape[2])
    masks = [(term, np.broadcast_to(array, shape)) for term, array in terms]
    for b in range(batch):
        for n in range(heads):
            logits = scale * (query[b, n] @ key[b, n].T)
            for term, mask in masks:
                if term.kind == "additive":
                    logits = logits + term.coefficient * mask[b, n].astype(np.float64)
                else:
                    logits = np.where(mask[b, n].astype(bool) == term.keep_when, logits, term.fill)
            result[b, n] = _softmax(logits) @ value[b, n]
    return result


def _softmax(logits: Float64) -> Float64:
    with np.errstate(invalid="ignore"):  # a fully masked row of −inf is NaN in the model too
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def to_bnsh(array: np.ndarray, layout: Layout, num_heads: int, head_size: int) -> Float64:
    """An array of the given layout as float64 in BNSH."""
    shape: list[int] = []
    for axis, letters in enumerate(layout):
        shape += {"NH": [num_heads, head_size], "BN": [-1, num_heads]}.get(letters, [array.shape[axis]])
    letters = "".join(layout)
    split = array.astype(np.float64).reshape(shape)
    return np.asarray(split.transpose([letters.index(axis) for axis in "".join(BNSH)]))
