"""The target gqa: what it writes, what it computes, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from attention_graphs import Meaning, Spelling, feeds_for, oracle, render
from attention_reading import loaded, only_block
from attention_scopes import in_bfloat16
from onnx import parser
from target_graphs import (
    CAUSAL,
    SHARED,
    UNSHARE,
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
    written,
)  # fmt: skip

from explorer.attention import recognise
from explorer.fusion import Plan, apply, choose
from explorer.fusion.plan import Settings

LOWEST = "-1.0000000150474662e+29"


def computes(model, result, added: object = 0.0, scale: float = 1.0, **sizes: int) -> None:
    """`result` computes what numpy does in float64."""
    feeds = random_feeds(model, **sizes)
    q, k, v = heads(feeds["q"], 4), heads(feeds["k"], 2), heads(feeds["v"], 2)
    truth = side_by_side(attention(q, k, v, scale, added))
    np.testing.assert_allclose(results(result, feeds), truth, atol=1e-5)


class TestLengths:
    def test_are_read_off_the_query(self) -> None:
        """seqlens_k is the index of the last key of each batch entry, total_sequence_length the number of keys."""
        model, block = grouped()
        result = fused(model, block, "gqa")
        assert written(model, result) == [
            "%1 = Shape(q) start=1 end=2",
            "%2 = Cast(%1) to=6",
            "%3 = Sub(%2, [1])",
            "%4 = Shape(q) start=0 end=1",
            "%5 = Expand(%3, %4)",
            "y = GroupQueryAttention(q, k, v, -, -, %5, %2) num_heads=4 kv_num_heads=2 scale=1 causal=0",
        ]
        assert "Transpose" not in result.op_counts()
        for rows in (1, 3, 8):
            computes(model, result, b=2, s=rows)

    def test_are_constants_where_the_sizes_are_numbers(self) -> None:
        model, block = grouped(dims="2, 3")
        result = fused(model, block, "gqa")
        assert written(model, result) == [
            "y = GroupQueryAttention(q, k, v, -, -, [2, 2], 3) num_heads=4 kv_num_heads=2 scale=1 causal=0",
        ]
        computes(model, result)

    def test_are_shared_by_blocks_of_the_same_sizes(self) -> None:
        text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v)
            => (float[b, s, 32] y, float[b, s, 32] z) {{
            {SHARED} p = Softmax(x) {UNSHARE}
            x_2 = MatMul(q2, kt)
            p_2 = Softmax(x_2)
            o_2 = MatMul(p_2, v4)
            o1_2 = Transpose<perm = [0, 2, 1, 3]>(o_2)
            z = Reshape(o1_2, merged) }}"""
        model = loaded(parser.parse_model(text))
        blocks = recognise(model)
        plan = Plan(model.digest)
        for block in blocks:
            plan = plan.with_fusion(block, "gqa")
        counts = apply(model, blocks, plan).op_counts()
        assert counts["GroupQueryAttention"] == 2
        assert counts["Sub"] == counts["Cast"] == 1


class TestMeaning:
    def test_causal(self) -> None:
        model, block = grouped(f"{CAUSAL} p = Softmax(m)")
        result = fused(model, block, "gqa")
        assert written(model, result)[-1].endswith("scale=1 causal=1")
        computes(model, result, np.where(np.tri(5, dtype=bool), 0, -np.inf), b=2, s=5)

    def test_a_bias_beside_it(self) -> None:
        masks = f"{CAUSAL} hide = Constant<value_float = -1e9>() h = Where(keep, m, hide) p = Softmax(h)"
        model, block = grouped(masks, "bool[b, 1, s, s] keep")
        result = fused(model, block, "gqa")
        assert f"%6 = And(seen, keep)\n%7 = Where(%6, 0.0, {LOWEST})" in "\n".join(written(model, result))
        keep = random_feeds(model, b=2, s=5)["keep"] & np.tri(5, dtype=bool)
        computes(model, result, np.where(keep, 0, -np.inf), b=2, s=5)

    def test_a_negative_scale_turns_the_query(self) -> None:
        """cuDNN takes one, but not every kernel can be trusted with it."""
        model, block = grouped("c = Constant<value_float = -0.5>() m = Mul(x, c) p = Softmax(m)")
        result = fused(model, block, "gqa")
        assert written(model, result)[0] == "%1 = Neg(q)"
        assert "scale=0.5" in written(model, result)[-1]
        computes(model, result, scale=-0.5, b=2, s=3)

    def test_a_soft_cap(self) -> None:
        cap = "c = Constant<value_float = 5.0>() d = Div(x, c) h = Tanh(d) m = Mul(h, c) p = Softmax(m)"
        model, block = grouped(cap)
        result = fused(model, block, "gqa")
        assert written(model, result)[-1].endswith("causal=0 softcap=5")
        feeds = random_feeds(model, b=2, s=3)
        np.testing.assert_allclose(results(result, feeds), results(model, feeds), atol=1e-5)

    @pytest.mark.parametrize("repeat", ["expand", "gather", "tile", "concat"])
    def test_heads_in_either_order(self, repeat: str) -> None:
        """Repeated one by one (0 0 1 1), or as a whole (0 1 0 1), which the operator has to be told by a Transpose."""
        meaning, spelling = Meaning(heads=6, kv_heads=2, rows=4, keys=4), Spelling(repeat=repeat)
        model = loaded(render(meaning, spelling))
        result = fused(model, only_block(model), "gqa")
        assert ("Transpose" in result.op_counts()) == (repeat in ("tile", "concat"))
        feeds = feeds_for(meaning, spelling)
        np.testing.assert_allclose(results(result, feeds), oracle(meaning, spelling, feeds), atol=1e-5)


class TestObstacles:
    def test_as_many_heads_of_keys_as_of_queries(self) -> None:
        model, block = read(
            """(float[b, 2, s, 8] q, float[b, 2, s, 8] k, float[b, 2, s, 8] v) => (float[b, 2, s, 8] y) {
                kt = Transpose<perm = [0, 1, 3, 2]>(k) x = MatMul(q, kt) p = Softmax(x) y = MatMul(p, v) }"""
        )
        assert codes(model, block, "gqa") == ["heads"]

    def test_lengths_that_are_not_provably_the_same(self) -> None:
        assert codes(*packed(), "gqa") == ["heads", "lengths"]

    @pytest.mark.parametrize("sizes", [{"head_size": 4}, {"head_size": 8, "v_head_size": 16}])
    def test_head_sizes(self, sizes: dict[str, int]) -> None:
        model = loaded(render(Meaning(heads=4, kv_heads=2, **sizes), Spelling(repeat="expand")))  # type: ignore[arg-type]
        assert codes(model, only_block(model), "gqa") == ["head-size"]

    def test_a_scale_of_zero(self) -> None:
        assert codes(*grouped("c = Constant<value_float = 0.0>() m = Mul(x, c) p = Softmax(m)"), "gqa") == ["scale"]


def test_bfloat16_becomes_valid_onnx() -> None:
    meaning = Meaning(heads=4, kv_heads=2, mask="causal+tokens", half=True)
    model = loaded(in_bfloat16(render(meaning, Spelling(repeat="expand", casts="before", opset=18))))
    assert fused(model, only_block(model), "gqa").op_counts()["GroupQueryAttention"] == 1


@pytest.mark.parametrize(
    ("meaning", "provider", "kernels"),
    [
        ({"half": True}, "cuda", ("cudnn", "flash")),
        ({"half": True, "softcap": 5.0}, "cuda", ("flash",)),
        ({"half": True, "mask": "additive2"}, "cuda", ("math",)),
        ({}, "cuda", ("cpu",)),
        ({}, "cpu", ("cpu",)),
        ({"half": True}, "cpu", ("cpu",)),
    ],
)
def test_the_kernels_within_reach(meaning: dict[str, object], provider: str, kernels: tuple[str, ...]) -> None:
    model = loaded(render(Meaning(heads=4, kv_heads=2, **meaning), Spelling(repeat="expand")))  # type: ignore[arg-type]
    cost = choose(model, only_block(model), "gqa", Settings(provider)).cost  # type: ignore[arg-type]
    assert cost is not None
    assert cost.kernels == kernels
