"""Attention in float64 from its definition: the truth that blocks are judged by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from explorer.attention import Block, MaskTerm
from explorer.attention.block import Layout

Float64 = np.ndarray
"""Arrays of dtype float64."""


def attention(
    query: Float64,
    key: Float64,
    value: Float64,
    scale: float,
    terms: Sequence[tuple[MaskTerm, np.ndarray]],
    softcap: float | None = None,
    factor: Float64 | None = None,
) -> Float64:
    """softmax(scale·QKᵀ + mask)·V; with a soft cap c the logits are c·tanh(scale·QKᵀ/c) + mask, with a factor
    [B, N, S, T] they are multiplied by it before that.

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
            if factor is not None:
                logits = logits * factor[b, n]
            if softcap is not None:
                logits = softcap * np.tanh(logits / softcap)
            for term, mask in masks:
                if term.dtype != "bool":
                    logits = logits + term.coefficient * mask[b, n].astype(np.float64)
                else:
                    logits = np.where(mask[b, n].astype(bool) == term.keep_when, logits, term.fill)
            result[b, n] = _softmax(logits) @ value[b, n]
    return result


def _softmax(logits: Float64) -> Float64:
    with np.errstate(invalid="ignore"):  # a fully masked row of −inf is NaN in the model too
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def measure(block: Block, arrays: Iterable[tuple[Layout, tuple[int, ...]]]) -> dict[str, int]:
    """The size of each letter of `block`, read off the shapes of arrays in these layouts."""
    sizes = {letter: size for letter, size in block.sizes if isinstance(size, int)}
    for layout, shape in arrays:
        for group, length in zip(layout, shape, strict=True):
            unknown = [letter for letter in group if letter not in sizes]
            if len(unknown) == 1:
                sizes[unknown[0]] = length // math.prod(sizes[letter] for letter in group if letter in sizes)
    return sizes


def arrange(array: np.ndarray, layout: Layout, wanted: Layout, sizes: Mapping[str, int]) -> np.ndarray:
    """`array` brought from one layout to another; along letters that it lacks it is repeated (without a copy)."""
    have, order = "".join(layout), "".join(wanted)
    split = array.reshape([sizes[letter] for letter in have])
    ordered = split.transpose([have.index(letter) for letter in order if letter in have])
    whole = ordered.reshape([sizes[letter] if letter in have else 1 for letter in order])
    full = np.broadcast_to(whole, [sizes[letter] for letter in order])
    return full.reshape([math.prod(sizes[letter] for letter in group) for group in wanted])
