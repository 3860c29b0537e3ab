"""Measure how far tensors are from their truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from explorer.verify.verdict import Comparison, Errors, MaskedRows, Received, allowed_error

DOUBTFUL = 0.05
"""An original further than this (relative) from its own float64 truth is no yardstick."""


def compare(
    name: str,
    dtype: str,
    original: np.ndarray,
    fused: np.ndarray,
    truth: np.ndarray,
    skipped: np.ndarray | None = None,
) -> Comparison:
    """Judge both by `truth` (float64); the margin is that of the original's error and the element type `dtype`.

    Where the truth is no finite number, what the original gives is taken for it. Elements at which `skipped` is true
    are not compared.
    """
    if original.shape == truth.shape:
        truth = np.where(np.isfinite(truth), truth, original)
        truth = truth if skipped is None else np.where(skipped, np.nan, truth)
    own = errors(original, truth)
    apart = errors(fused, original.astype(np.float64)).relative if fused.shape == original.shape else None
    return Comparison(
        name=name,
        block="",
        dtype=dtype,
        shape=original.shape,
        original=own,
        fused=errors(fused, truth),
        allowed=allowed_error(own, dtype),
        apart=apart,
    )


def errors(array: np.ndarray, truth: np.ndarray) -> Errors:
    """Distance of `array` from `truth`, where that is finite; infinite if they are not of one shape."""
    if array.shape != truth.shape:
        return Errors(float("inf"), float("inf"), array.size)
    expected, found = np.isfinite(truth), np.isfinite(array)
    if not expected.any():
        return Errors(0.0, 0.0, 0)
    broken, usable = expected & ~found, expected & found
    nonfinite = int(np.count_nonzero(broken))
    if not usable.any():
        return Errors(float("nan"), float("nan"), nonfinite, _index(broken))
    largest = float(np.abs(truth[usable]).max())
    distances = np.where(usable, np.abs(array.astype(np.float64) - np.where(usable, truth, 0)), 0)
    distance = float(distances.max())
    relative = distance / largest if largest else distance
    return Errors(distance, relative, nonfinite, _index(broken if nonfinite else distances))


def near(own: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> bool:
    """True if no floating-point output is further from its truth than a yardstick may be."""
    floats = [name for name, array in own.items() if array.dtype.kind == "f"]
    return all(errors(own[name], truth[name]).relative <= DOUBTFUL for name in floats)


def judge_masked(
    count: int,
    nan: tuple[int, int],
    within: np.ndarray,
    original: np.ndarray,
    fused: np.ndarray,
    formula: np.ndarray,
    dtype: str,
) -> MaskedRows:
    """Judge the elements at which `within` is true: those of the `count` queries that see no key.

    `nan` counts the queries with a NaN in the original and in the fused output; `formula` is what attention by its
    definition gives, in float64. An original that is far from it (in float16 a mask may swallow the logits) is no
    excuse to be far from both.
    """
    finite = within & np.isfinite(original)
    own, other, truth = (array[finite].astype(np.float64) for array in (original, fused, formula))
    if not np.isfinite(other).all():
        return MaskedRows(count, *nan, error=float("inf"), allowed=0.0)
    scale = np.abs(original[np.isfinite(original)]).max(initial=0) or 1.0
    # fmin and fmax take the number where the other is NaN, as the formula is for a row of −inf
    error = np.fmin(np.abs(other - own), np.abs(other - truth)).max(initial=0) / scale
    rounding = float(np.fmax.reduce(np.abs(own - truth), initial=0) / scale)
    margin = allowed_error(Errors(0.0, min(rounding, DOUBTFUL), 0), dtype)
    return MaskedRows(count, *nan, error=float(error), allowed=margin)


def _index(array: np.ndarray) -> tuple[int, ...]:
    """Where the largest element is."""
    return tuple(int(at) for at in np.unravel_index(array.argmax(), array.shape))


def received(role: str, name: str, dtype: str, array: np.ndarray) -> Received:
    """What is to be reported of a tensor that a block received."""
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))
    return Received(role, name, dtype, array.shape, low, high, array.size - finite.size)
