"""Attention in float64 from its definition: the truth that blocks are judged by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from explorer.attention import MaskTerm
from explorer.attention.block import Layout

MASKED = -5e3
"""A key is hidden if the mask adds this or less to its logit: finfo.min, −inf and −10,000 hide, biases do not."""

# What is computed at a time; at the peak about four arrays of this size are alive.
_TILE_BYTES = 1 << 26


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    scale: float,
    terms: Sequence[tuple[MaskTerm, np.ndarray]],
    softcap: float | None = None,
    factor: np.ndarray | None = None,
) -> np.ndarray:
    """softmax(scale·QKᵀ + mask)·V in float64; with a soft cap c the logits are c·tanh(scale·QKᵀ/c) + mask, with a
    factor [B, N, S, T] they are multiplied by it before that.

    query [B, N, S, H], key [B, N, T, H], value [B, N, T, Hv], of any type; each mask term comes with its array, which
    broadcasts to [B, N, S, T]. Returns [B, N, S, Hv]. Some queries of one head are computed at a time, so beside the
    operands and the result it takes some 256 MB, however long the sequences.
    """
    batch, heads, rows, _ = query.shape
    result = np.empty((batch, heads, rows, value.shape[3]))
    shape = (batch, heads, rows, key.shape[2])
    masks = [(term, np.broadcast_to(array, shape)) for term, array in terms]
    for b, n in np.ndindex(batch, heads):
        keys, values = key[b, n].astype(np.float64).T, value[b, n].astype(np.float64)
        for tile in _tiles(shape):
            logits = scale * (query[b, n, tile].astype(np.float64) @ keys)
            if factor is not None:
                logits *= factor[b, n, tile]
            if softcap is not None:
                logits = softcap * np.tanh(logits / softcap)
            for term, mask in masks:
                logits = _masked(logits, term, mask[b, n, tile])
            result[b, n, tile] = _softmax(logits) @ values
    return result


def masked_rows(shape: tuple[int, int, int, int], terms: Sequence[tuple[MaskTerm, np.ndarray]]) -> np.ndarray:
    """Which queries see no key, [B, N, S] of bool, for logits of `shape` [B, N, S, T] and masks as for `attention`."""
    masks = [(term, np.broadcast_to(array, shape)) for term, array in terms]
    result = np.zeros(shape[:3], bool)
    for b, n in np.ndindex(*shape[:2]) if masks else ():
        for tile in _tiles(shape):
            mask = np.zeros((len(range(*tile.indices(shape[2]))), shape[3]))
            for term, array in masks:
                mask = _masked(mask, term, array[b, n, tile])
            result[b, n, tile] = mask.max(axis=-1) <= MASKED
    return result


def _tiles(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the queries, as many at a time as fit a tile."""
    step = max(_TILE_BYTES // (8 * shape[3]), 1)
    return (slice(start, start + step) for start in range(0, shape[2], step))


def _masked(logits: np.ndarray, term: MaskTerm, mask: np.ndarray) -> np.ndarray:
    if term.dtype != "bool":
        return np.asarray(logits + term.coefficient * mask.astype(np.float64))
    return np.where(mask.astype(bool) == term.keep_when, logits, term.fill)


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a fully masked row of −inf is NaN in the model too
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(weights)


def measure(known: Mapping[str, int], arrays: Iterable[tuple[Layout, tuple[int, ...]]]) -> dict[str, int]:
    """The size of each letter: those `known`, and what the shapes of arrays in these layouts say of others."""
    sizes = dict(known)
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
