"""The target attention: what it writes, what it computes, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from attention_graphs import Meaning, Spelling, render
from attention_reading import loaded, only_block
from attention_scopes import in_bfloat16
from target_graphs import (
    BNSH,
    BSD,
    CAUSAL,
    MERGE,
    SPLIT,
    attention,
    codes,
    fused,
    grouped,
    heads,
    packed,
    random_feeds,
    read,
    results,
    side_by_side,
    unpacked,
    written,
)  # fmt: skip

from explorer.attention import Obstacle
from explorer.fusion import choose
from explorer.fusion.plan import Settings
from explorer.fusion.targets import attention as target

LOWEST = "-1.0000000150474662e+29"
NEVER = "hide = Constant<value_float = -inf>() m = Where(keep, x, hide) p = Softmax(m)"


def lines(logits: str = "p = Softmax(x)", more: str = "") -> list[str]:
    """What attention from BNSH to BNSH becomes."""
    model, block = unpacked(logits, more, 23)
    return written(model, fused(model, block, "attention"))


class TestForms:
    def test_from_bnsh_to_bnsh_takes_no_layout_node(self) -> None:
        assert lines() == ["y = Attention(q, k, v) scale=1"]

    def test_from_bsd_to_bsd_neither(self) -> None:
        model, block = packed(opset=23)
        assert written(model, fused(model, block, "attention")) == [
            "y = Attention(q, k, v) scale=1 q_num_heads=2 kv_num_heads=2"
        ]

    def test_the_cheaper_form_is_taken_for_all(self) -> None:
        """Q, K in BNSH, V and the result in BSD: two Transposes either way, one Reshape more in BSD."""
        model, block = read(
            f"""(float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, t, 16] v) => (float[b, s, 16] y) {{
                split = Constant<value_ints = [0, 0, 2, 8]>()
                v1 = Reshape(v, split)
                v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
                kt = Transpose<perm = [0, 1, 3, 2]>(k)
                x = MatMul(q, kt)
                p = Softmax(x)
                {MERGE} }}""",
            23,
        )
        result = fused(model, block, "attention")
        cost = choose(model, block, "attention").cost
        assert cost is not None
        assert (cost.layout_nodes, cost.transposes) == (4, 2)
        kept = result.op_counts()
        assert kept["Transpose"] == 2
        assert kept["Transpose"] + kept["Reshape"] == 4

    def test_a_value_whose_width_onnx_cannot_tell_is_declared(self) -> None:
        """Its shape inference would take the last axis of the result for 0, and every reader of it for wrong."""
        model, block = read(
            f"""({BSD.replace("float[b, t, 16] v", "float[b, 8, 2, t] w")}, float[16, 4] proj) => (float[b, s, 4] z) {{
                w1 = Transpose<perm = [0, 3, 2, 1]>(w)
                dims = Shape<start = 0, end = 2>(w1)
                rest = Constant<value_ints = [-1]>()
                all = Concat<axis = 0>(dims, rest)
                v = Reshape(w1, all)
                {SPLIT} p = Softmax(x) {MERGE.replace("y =", "a =")}
                z = MatMul(a, proj) }}""",
            23,
        )
        result = fused(model, block, "attention")
        feeds = random_feeds(model, b=2, s=3, t=5)
        np.testing.assert_allclose(results(result, feeds), results(model, feeds), atol=1e-5)


class TestMasks:
    @pytest.mark.parametrize("shape", ["s, t", "2, s, t", "b, 1, s, t"])
    def test_booleans_are_taken_as_they_are(self, shape: str) -> None:
        model, block = unpacked(NEVER, f"bool[{shape}] keep", 23)
        result = fused(model, block, "attention")
        assert written(model, result) == ["y = Attention(q, k, v, keep) scale=1"]
        feeds = random_feeds(model, b=2, s=3, t=5)
        truth = attention(*(feeds[x] for x in "qkv"), scale=1, added=np.where(feeds["keep"], 0, -np.inf))
        np.testing.assert_allclose(results(result, feeds), truth, atol=1e-5)

    def test_booleans_that_hide_are_negated(self) -> None:
        masks = "hide = Constant<value_float = -inf>() m = Where(hidden, hide, x) p = Softmax(m)"
        assert lines(masks, "bool[b, 1, s, t] hidden") == ["%1 = Not(hidden)", "y = Attention(q, k, v, %1) scale=1"]

    def test_a_finite_fill_is_written_as_a_number(self) -> None:
        """A row that sees no key is the mean of V in the source; with a boolean mask it would be 0."""
        masks = "hide = Constant<value_float = -1e9>() m = Where(keep, x, hide) p = Softmax(m)"
        model, block = unpacked(masks, "bool[b, 1, s, t] keep", 23)
        result = fused(model, block, "attention")
        assert written(model, result)[0] == f"%1 = Where(keep, 0.0, {LOWEST})"
        feeds = random_feeds(model, b=2, s=3, t=5)
        feeds["keep"][1, 0, 2] = False
        np.testing.assert_allclose(results(result, feeds)[1, :, 2], feeds["v"][1].mean(axis=1), atol=1e-5)

    def test_a_guard_against_nan_is_the_operators_own(self) -> None:
        guard = "w = Softmax(m) nan = IsNaN(w) zero = Constant<value_float = 0.0>() p = Where(nan, zero, w)"
        model, block = unpacked(f"{NEVER[: NEVER.index('p =')]} {guard}", "bool[b, 1, s, t] keep", 23)
        result = fused(model, block, "attention")
        assert written(model, result) == ["y = Attention(q, k, v, keep) scale=1"]
        feeds = random_feeds(model, b=2, s=3, t=5)
        feeds["keep"][1, 0, 2] = False
        assert not results(result, feeds)[1, :, 2].any()

    def test_one_row_for_all_is_expanded(self) -> None:
        assert lines(NEVER, "bool[b, 1, 1, t] keep")[-2:] == [
            "%3 = Expand(keep, %2)",
            "y = Attention(q, k, v, %3) scale=1",
        ]

    def test_the_causal_mask_becomes_the_attribute(self) -> None:
        model, block = read(
            f"""({BSD.replace(" t,", " s,")}) => (float[b, s, 16] y) {{
                {SPLIT} {CAUSAL} p = Softmax(m) {MERGE} }}""",
            23,
        )
        assert written(model, fused(model, block, "attention")) == [
            "y = Attention(q, k, v) scale=1 q_num_heads=2 kv_num_heads=2 is_causal=1"
        ]


class TestSharedHeads:
    def test_are_read_before_they_are_repeated(self) -> None:
        model, block = grouped(opset=23)
        result = fused(model, block, "attention")
        assert written(model, result) == ["y = Attention(q, k, v) scale=1 q_num_heads=4 kv_num_heads=2"]
        assert "Expand" not in result.op_counts()
        feeds = random_feeds(model, b=2, s=3)
        q, k, v = heads(feeds["q"], 4), heads(feeds["k"], 2), heads(feeds["v"], 2)
        np.testing.assert_allclose(results(result, feeds), side_by_side(attention(q, k, v, 1)), atol=1e-5)

    def test_that_lie_apart_are_put_beside_each_other(self) -> None:
        """Heads repeated as a whole (Tile): query heads 0 and 2 share a key head, the operator has 0 and 1 share it."""
        spelling = Spelling(opset=23, repeat="tile", query="bnsh", key="bnsh", value="bnsh", merge="none")
        model = loaded(render(Meaning(heads=4, kv_heads=2), spelling))
        block = only_block(model)
        assert block.heads == "RG"
        result = fused(model, block, "attention")
        assert [line.split("(")[0] for line in written(model, result)] == [
            "%1 = Reshape", "%2 = Transpose", "%3 = Reshape", "%4 = Attention",
            "%5 = Reshape", "%6 = Transpose", "y = Reshape",
        ]  # fmt: skip

    def test_one_head_for_all_is_read_as_one(self) -> None:
        model, block = unpacked(qkv="float[b, 2, s, 8] q, float[b, 1, t, 8] k, float[b, 1, t, 8] v", opset=23)
        assert written(model, fused(model, block, "attention")) == ["y = Attention(q, k, v) scale=1"]


def test_a_soft_cap_is_its_attribute() -> None:
    cap = "c = Constant<value_float = 5.0>() d = Div(x, c) h = Tanh(d) m = Mul(h, c) p = Softmax(m)"
    model, block = unpacked(cap, opset=23)
    result = fused(model, block, "attention")
    assert written(model, result) == ["y = Attention(q, k, v) scale=1 softcap=5"]
    feeds = random_feeds(model, b=2, s=3, t=5)
    np.testing.assert_allclose(results(result, feeds), results(model, feeds), atol=1e-5)


def test_a_negative_scale_turns_the_query() -> None:
    assert lines("c = Constant<value_float = -0.5>() m = Mul(x, c) p = Softmax(m)") == [
        "%1 = Neg(q)",
        "y = Attention(%1, k, v) scale=0.5",
    ]


def test_a_softmax_in_float32_stays_one() -> None:
    """1 is float32."""
    qkv = BNSH.replace("float", "float16")
    body = """kt = Transpose<perm = [0, 1, 3, 2]>(k) h = MatMul(q, kt) x = Cast<to = 1>(h)
        w = Softmax(x) p = Cast<to = 10>(w) y = MatMul(p, v)"""
    model, block = read(f"({qkv}) => (float16[b, 2, s, 8] y) {{ {body} }}", 23)
    assert written(model, fused(model, block, "attention")) == ["y = Attention(q, k, v) scale=1 softmax_precision=1"]


def test_an_older_model_is_raised() -> None:
    model, block = unpacked(opset=17)
    assert codes(model, block, "attention") == []
    assert "raised to opset 23" in choose(model, block, "attention").words


def test_one_that_cannot_be_raised_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = Obstacle("opset", "somewhere", "a model that can be raised", "one that cannot")
    monkeypatch.setattr(target, "raised", lambda model, opset: reason)
    model, block = unpacked(opset=17)
    assert choose(model, block, "attention").obstacles == (reason,)


def test_a_newer_model_stays_as_it_is() -> None:
    model, block = unpacked(opset=24)
    result = fused(model, block, "attention")
    assert result.opset == 24
    assert written(model, result) == ["y = Attention(q, k, v) scale=1"]


def test_a_scale_of_zero_is_an_obstacle() -> None:
    """ONNX Runtime takes it for one that is not given; ORT's own fusion to MultiHeadAttention is silently wrong."""
    logits = "c = Constant<value_float = 0.0>() m = Mul(x, c) p = Softmax(m)"
    assert codes(*unpacked(logits, opset=23), "attention") == ["scale"]


def test_bfloat16_becomes_valid_onnx() -> None:
    model = loaded(in_bfloat16(render(Meaning(mask="causal+tokens", half=True), Spelling(casts="before", opset=23))))
    assert fused(model, only_block(model), "attention").op_counts()["Attention"] == 1


@pytest.mark.parametrize(
    ("meaning", "provider", "kernels"),
    [
        (Meaning(half=True), "cuda", ("flash", "memory-efficient", "math")),
        (Meaning(half=True, heads=4, kv_heads=2, softcap=5.0), "cuda", ("flash", "memory-efficient", "math")),
        (Meaning(half=True, mask="additive2"), "cuda", ("memory-efficient", "math")),
        (Meaning(half=True, v_head_size=16), "cuda", ("memory-efficient", "math")),
        (Meaning(), "cuda", ("memory-efficient", "math")),
        (Meaning(heads=4, kv_heads=2), "cuda", ("math",)),
        (Meaning(), "cpu", ("cpu",)),
        (Meaning(half=True), "cpu", ("cpu-float16",)),
    ],
)
def test_the_kernels_within_reach(meaning: Meaning, provider: str, kernels: tuple[str, ...]) -> None:
    repeat = "expand" if meaning.kv_heads else "none"
    model = loaded(render(meaning, Spelling(opset=23, repeat=repeat)))
    cost = choose(model, only_block(model), "attention", Settings(provider)).cost  # type: ignore[arg-type]
    assert cost is not None
    assert cost.kernels == kernels


def test_a_mask_of_a_width_that_is_no_multiple_of_eight_is_left_to_math() -> None:
    qkv = "float16[1, 2, 16, 8] q, float16[1, 2, 23, 8] k, float16[1, 2, 23, 8] v"
    body = "kt = Transpose<perm = [0, 1, 3, 2]>(k) x = MatMul(q, kt) m = Add(x, mask) p = Softmax(m) y = MatMul(p, v)"
    model, block = read(f"({qkv}, float16[16, 23] mask) => (float16[1, 2, 16, 8] y) {{ {body} }}", 23)
    cost = choose(model, block, "attention").cost
    assert cost is not None
    assert cost.kernels == ("math",)
