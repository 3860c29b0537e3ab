"""The float64 oracle against the formula, written here in another way."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.attention import MaskTerm
from explorer.verify import oracle
from explorer.verify.oracle import arrange, attention, masked_rows, measure

AXES = ("B", "N", "S", "T")


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
        terms.append((MaskTerm("additive", "m", mask.shape, AXES, "float32", coefficient=coefficient), mask))
        added = np.broadcast_to(coefficient * mask.astype(np.float64), full)
    if kind in ("boolean", "both"):
        mask = rng.random((b, 1, 1, t) if broadcast else full) < 0.6
        terms.append((MaskTerm("boolean", "m", mask.shape, AXES, "bool", fill=fill, keep_when=keep_when), mask))
        kept = np.broadcast_to(mask == keep_when, full)
    if kind == "causal":
        triangle = np.tri(s, t)
        terms.append((MaskTerm("causal", "m", (s, t), AXES, "bool", fill=fill), triangle))
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
    term = MaskTerm("boolean", "m", (2, 2), AXES, "bool", fill=-math.inf)
    result = attention(ones, ones, ones, 1.0, [(term, mask)])
    assert result[0, 0, 0, 0] == 1
    assert math.isnan(result[0, 0, 1, 0])


def test_a_coefficient_and_a_wide_dtype_survive():
    """An fp16 mask is added as the number it is, not as a rounded sum."""
    query = np.array([[[[1e5]]]])
    key = np.array([1.0, 1.0]).reshape(1, 1, 2, 1)
    value = np.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    mask = np.array([0.0, 0.001], np.float16).reshape(1, 1, 1, 2)
    term = MaskTerm("additive", "m", mask.shape, AXES, "float16", coefficient=3.0)
    expected = 1 / (1 + math.exp(-3.0 * float(mask[0, 0, 0, 1])))
    assert attention(query, key, value, 1.0, [(term, mask)]).item() == pytest.approx(expected, rel=1e-9)


def test_a_soft_cap_bounds_the_scaled_logits_before_the_mask():
    query, key = np.array([[[[2.0]]]]), np.array([3.0, -1.0]).reshape(1, 1, 2, 1)
    value = np.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    mask = np.array([0.0, 4.0]).reshape(1, 1, 1, 2)
    term = MaskTerm("additive", "m", mask.shape, AXES, "float64")
    first, second = 5 * math.tanh(0.5 * 6 / 5), 5 * math.tanh(0.5 * -2 / 5) + 4
    expected = 1 / (1 + math.exp(second - first))
    assert attention(query, key, value, 0.5, [(term, mask)], softcap=5.0).item() == pytest.approx(expected, rel=1e-12)


def test_a_factor_multiplies_the_logits_of_its_head_before_the_mask():
    query, key = np.ones((1, 2, 1, 1)), np.array([[1.0, 2.0], [1.0, 2.0]]).reshape(1, 2, 2, 1)
    value = np.tile(np.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 2, 1, 1))
    factor = np.broadcast_to(np.array([1.0, 3.0]).reshape(1, 2, 1, 1), (1, 2, 1, 2))
    result = attention(query, key, value, 1.0, [], factor=factor)
    np.testing.assert_allclose(result.ravel(), [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))], rtol=1e-12)


SIZES = {"B": 2, "N": 3, "S": 5, "H": 4}
BNSH = ("B", "N", "S", "H")


@pytest.mark.parametrize(
    ("layout", "order", "shape"),
    [
        (("B", "N", "H", "S"), "BNHS", (2, 3, 4, 5)),
        (("S", "N", "B", "H"), "SNBH", (5, 3, 2, 4)),
        (("B", "S", "NH"), "BSNH", (2, 5, 12)),
        (("S", "B", "NH"), "SBNH", (5, 2, 12)),
        (("BN", "S", "H"), "BNSH", (6, 5, 4)),
        (("S", "BN", "H"), "SBNH", (5, 6, 4)),
        (("BS", "NH"), "BSNH", (10, 12)),
        (("B", "", "S", "NH"), "BSNH", (2, 1, 5, 12)),
    ],
)
def test_an_array_is_brought_from_one_layout_to_another(layout, order, shape):
    truth = np.arange(math.prod(SIZES.values())).reshape(2, 3, 5, 4)
    stored = truth.transpose(["BNSH".index(axis) for axis in order]).reshape(shape)
    np.testing.assert_array_equal(arrange(stored, layout, BNSH, SIZES), truth)
    np.testing.assert_array_equal(arrange(truth, BNSH, layout, SIZES), stored)


def test_letters_that_an_array_lacks_are_repeated():
    """A key head that two query heads read: heads are G outside, R inside."""
    key = np.arange(2 * 3).reshape(1, 2, 3, 1)
    sizes = {"B": 1, "G": 2, "R": 2, "T": 3, "H": 1}
    result = arrange(key, ("B", "G", "T", "H"), ("B", "GR", "T", "H"), sizes)
    np.testing.assert_array_equal(result, np.repeat(key, 2, axis=1))


def test_sizes_that_are_not_known_are_read_off_the_arrays():
    found = measure({"H": 4, "N": 3, "V": 4}, [(("S", "BN", "H"), (7, 6, 4))])
    assert found == {"B": 2, "H": 4, "N": 3, "S": 7, "V": 4}


class TestTiles:
    """Long sequences are computed some queries at a time."""

    @pytest.fixture
    def case(self):
        rng = np.random.default_rng(0)
        query, key, value = (rng.standard_normal(shape) for shape in ((2, 2, 13, 4), (2, 2, 11, 4), (2, 2, 11, 3)))
        bias, kept = rng.standard_normal((2, 1, 13, 11)), rng.random((1, 1, 13, 11)) < 0.5
        kept[..., 7, :] = False
        terms = [
            (MaskTerm("additive", "a", bias.shape, AXES, "float64"), bias),
            (MaskTerm("boolean", "b", kept.shape, AXES, "bool", fill=-1e9), kept),
        ]
        return query, key, value, terms, rng.uniform(0.5, 2, (2, 2, 13, 11))

    @pytest.mark.parametrize("rows", [1, 2, 5, 12])
    def test_they_change_nothing(self, case, monkeypatch, rows):
        query, key, value, terms, factor = case
        whole = attention(query, key, value, 0.3, terms, 20.0, factor)
        masked = masked_rows((2, 2, 13, 11), terms)
        monkeypatch.setattr(oracle, "_TILE_BYTES", rows * 11 * 8)
        np.testing.assert_allclose(attention(query, key, value, 0.3, terms, 20.0, factor), whole, rtol=1e-13)
        np.testing.assert_array_equal(masked_rows((2, 2, 13, 11), terms), masked)
        assert np.argwhere(masked[0, 0]).ravel().tolist() == [7]

    def test_they_bound_the_memory(self, monkeypatch):
        monkeypatch.setattr(oracle, "_TILE_BYTES", 1 << 18)
        length = 2048
        query, key, value = (np.zeros((1, 1, length, 1), np.float16) for _ in range(3))
        term = MaskTerm("additive", "m", (1, 1, length, length), AXES, "float16")
        mask = np.broadcast_to(np.zeros((1, 1, 1, 1), np.float16), (1, 1, length, length))
        tracemalloc.start()
        attention(query, key, value, 1.0, [(term, mask)])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6 * (1 << 18) < length * length * 8 / 16


class TestMaskedRows:
    def rows(self, *terms: tuple[MaskTerm, np.ndarray]) -> list[int]:
        return np.argwhere(masked_rows((1, 1, 3, 2), terms)[0, 0]).ravel().tolist()

    def term(self, kind: str, mask: np.ndarray, **more) -> tuple[MaskTerm, np.ndarray]:
        return MaskTerm(kind, "m", mask.shape, AXES, more.pop("dtype", str(mask.dtype)), **more), mask

    def test_without_a_mask_every_key_is_seen(self):
        assert self.rows() == []

    @pytest.mark.parametrize("hides", [-math.inf, float(np.finfo(np.float32).min), -65504.0, -1e4])
    def test_rows_hidden_by_a_sum(self, hides):
        mask = np.array([[0, hides], [hides, hides], [-300, -40]], np.float64)
        assert self.rows(self.term("additive", mask)) == [1]
        assert self.rows(self.term("additive", -mask, coefficient=-1.0)) == [1]

    def test_rows_hidden_by_two_masks_together(self):
        causal = self.term("boolean", np.array([[True, False], [True, False], [True, True]]), fill=-1e9)
        padding = self.term("additive", np.array([[-1e9, 0.0]]))
        assert self.rows(causal, padding) == [0, 1]

    def test_a_fill_that_hides_nothing(self):
        assert self.rows(self.term("boolean", np.zeros((3, 2), bool), fill=0.0)) == []
        assert self.rows(self.term("boolean", np.zeros((3, 2), bool), fill=0.0, keep_when=False)) == []
