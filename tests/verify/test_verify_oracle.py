"""The float64 oracle against the formula, written here in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.attention import MaskTerm
from explorer.attention.block import BNHS, BNSH, BSD, BSNH
from explorer.verify.oracle import attention, to_bnsh


def by_hand(query, key, value, scale, added, kept, fill):
    """Element by element with Python floats: no array arithmetic at all."""
    batch, heads, rows, size = query.shape
    keys, v_size = key.shape[2], value.shape[3]
    out = np.zeros((batch, heads, rows, v_size))
    for b, n, s in np.ndindex(batch, heads, rows):
        logits = []
        for t in range(keys):
            dot = math.fsum(float(query[b, n, s, h]) * float(key[b, n, t, h]) for h in range(size))
            logit = scale * dot + added[b, n, s, t]
            logits.append(logit if kept[b, n, s, t] else fill)
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        total = math.fsum(weights)
        for h in range(v_size):
            out[b, n, s, h] = math.fsum(w * float(value[b, n, t, h]) for t, w in enumerate(weights)) / total
    return out


sizes = st.integers(1, 4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(sizes, sizes, sizes, sizes, sizes, sizes),
    scale=st.sampled_from([1.0, 0.125, 100.0]),
    coefficient=st.sampled_from([1.0, -2.0]),
    kind=st.sampled_from(["none", "additive", "boolean", "causal", "both"]),
    keep_when=st.booleans(),
    broadcast=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attention_is_the_formula(shape, scale, coefficient, kind, keep_when, broadcast, seed):
    b, n, s, t, h, v = shape
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(d) for d in ((b, n, s, h), (b, n, t, h), (b, n, t, v)))
    full = (b, n, s, t)
    added, kept, fill = np.zeros(full), np.ones(full, bool), -1e4
    terms = []
    if kind in ("additive", "both"):
        mask = rng.standard_normal((1, 1, s, t) if broadcast else full).astype(np.float32)
        terms.append((MaskTerm("additive", "m", mask.shape, "float32", coefficient=coefficient), mask))
        added = np.broadcast_to(coefficient * mask.astype(np.float64), full)
    if kind in ("boolean", "both"):
        mask = rng.random((b, 1, 1, t) if broadcast else full) < 0.6
        terms.append((MaskTerm("boolean", "m", mask.shape, "bool", fill=fill, keep_when=keep_when), mask))
        kept = np.broadcast_to(mask == keep_when, full)
    if kind == "causal":
        triangle = np.tri(s, t)
        terms.append((MaskTerm("causal", "m", (s, t), "bool", fill=fill), triangle))
        kept = np.broadcast_to(triangle.astype(bool), full)
    result = attention(query, key, value, scale, terms)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, by_hand(query, key, value, scale, added, kept, fill), rtol=1e-12, atol=1e-13)


def test_it_stands_the_largest_logits():
    """exp() of the logits themselves would overflow."""
    query = np.full((1, 1, 1, 1), 1e6)
    key = np.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    value = np.array([3.0, 5.0]).reshape(1, 1, 2, 1)
    assert attention(query, key, value, 1.0, []).item() == 5.0


def test_a_row_that_sees_nothing_is_nan_as_in_the_model():
    ones = np.ones((1, 1, 2, 1))
    mask = np.array([[True, True], [False, False]])
    term = MaskTerm("boolean", "m", (2, 2), "bool", fill=-math.inf)
    result = attention(ones, ones, ones, 1.0, [(term, mask)])
    assert result[0, 0, 0, 0] == 1
    assert math.isnan(result[0, 0, 1, 0])


def test_a_coefficient_and_a_wide_dtype_survive():
    """An fp16 mask is added as the number it is, not as a rounded sum."""
    query = np.array([[[[1e5]]]])
    key = np.array([1.0, 1.0]).reshape(1, 1, 2, 1)
    value = np.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    mask = np.array([0.0, 0.001], np.float16).reshape(1, 1, 1, 2)
    term = MaskTerm("additive", "m", mask.shape, "float16", coefficient=3.0)
    expected = 1 / (1 + math.exp(-3.0 * float(mask[0, 0, 0, 1])))
    assert attention(query, key, value, 1.0, [(term, mask)]).item() == pytest.approx(expected, rel=1e-9)


B, N, S, H = 2, 3, 5, 4


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        (BNSH, "bnsh"),
        (BNHS, "bnhs"),
        (BSNH, "bsnh"),
        (("B", "H", "N", "S"), "bhns"),
        (("S", "B", "N", "H"), "sbnh"),
        (("S", "N", "B", "H"), "snbh"),
    ],
)
def test_four_axes_in_any_order(layout, axes):
    truth = np.random.default_rng(0).standard_normal((B, N, S, H)).astype(np.float16)
    stored = np.einsum(f"bnsh->{axes}", truth)
    result = to_bnsh(stored, layout, N, H)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, truth)


@pytest.mark.parametrize(
    ("layout", "order", "shape"),
    [
        (BSD, (0, 2, 1, 3), (B, S, N * H)),
        (("S", "B", "NH"), (2, 0, 1, 3), (S, B, N * H)),
        (("BN", "S", "H"), (0, 1, 2, 3), (B * N, S, H)),
        (("BN", "H", "S"), (0, 1, 3, 2), (B * N, H, S)),
        (("S", "BN", "H"), (2, 0, 1, 3), (S, B * N, H)),
    ],
)
def test_merged_axes(layout, order, shape):
    truth = np.arange(B * N * S * H, dtype=np.float32).reshape(B, N, S, H)
    stored = truth.transpose(order).reshape(shape)
    np.testing.assert_array_equal(to_bnsh(stored, layout, N, H), truth)
