"""The target mha: what it writes, what it computes, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from attention_graphs import Meaning, Spelling, render
from attention_reading import loaded, only_block
from attention_scopes import in_bfloat16
from target_graphs import (
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

from explorer.fusion import choose
from explorer.fusion.plan import Settings

LOWEST = "-1.0000000150474662e+29"
HIDE = "hide = Constant<value_float = -3.4e38>()"


def lines(logits: str = "p = Softmax(x)", more: str = "", opset: int = 17) -> list[str]:
    """What attention from BSD to BSD becomes."""
    model, block = packed(logits, more, opset)
    return written(model, fused(model, block, "mha"))


class TestForms:
    def test_from_bsd_to_bsd_takes_no_layout_node(self) -> None:
        assert lines() == ["y = MultiHeadAttention(q, k, v) num_heads=2 scale=1"]

    def test_keys_and_values_in_bnsh_are_read_in_place(self) -> None:
        model, block = unpacked()
        result = fused(model, block, "mha")
        assert written(model, result) == [
            "%1 = Transpose(q) perm=[0, 2, 1, 3]",
            "%2 = Reshape(%1, [0, 0, 16])",
            "%3 = MultiHeadAttention(%2, k, v) num_heads=2 scale=1",
            "%4 = Reshape(%3, [0, 0, 2, 8])",
            "y = Transpose(%4) perm=[0, 2, 1, 3]",
        ]
        cost = choose(model, block, "mha").cost
        assert cost is not None
        assert (cost.layout_nodes, cost.transposes) == (4, 2)
        feeds = random_feeds(model, b=2, s=3, t=5)
        np.testing.assert_allclose(results(result, feeds), attention(**feeds, scale=1), atol=1e-5)

    def test_all_in_bsd_where_v_is_there_already(self) -> None:
        """As in F5-TTS: rotary embeddings leave Q in BNSH and K in BNHS, V comes from its projection."""
        model, block = read(
            f"""(float[b, 2, s, 8] q, float[b, 2, 8, t] k, float[b, t, 16] v) => (float[b, s, 16] y) {{
                split = Constant<value_ints = [0, 0, 2, 8]>()
                v1 = Reshape(v, split)
                v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
                x = MatMul(q, k)
                p = Softmax(x)
                {MERGE} }}"""
        )
        assert written(model, fused(model, block, "mha")) == [
            "%1 = Transpose(q) perm=[0, 2, 1, 3]",
            "%2 = Reshape(%1, [0, 0, 16])",
            "%3 = Transpose(k) perm=[0, 3, 1, 2]",
            "%4 = Reshape(%3, [0, 0, 16])",
            "y = MultiHeadAttention(%2, %4, v) num_heads=2 scale=1",
        ]

    def test_what_stays_for_others_is_read_behind(self) -> None:
        """V's Transpose has another reader: it stays anyway, so that K, in BNSH, need not move."""
        model, block = read(
            """(float[b, s, 16] q, float[b, 2, t, 8] k, float[b, t, 16] v)
                => (float[b, 2, s, 8] y, float[b, 2, t, 8] w) {
                split = Constant<value_ints = [0, 0, 2, 8]>()
                q1 = Reshape(q, split)
                q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
                v1 = Reshape(v, split)
                v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
                w = Identity(v2)
                kt = Transpose<perm = [0, 1, 3, 2]>(k)
                x = MatMul(q2, kt)
                p = Softmax(x)
                y = MatMul(p, v2) }"""
        )
        assert written(model, fused(model, block, "mha"))[0] == "%1 = MultiHeadAttention(q, k, v2) num_heads=2 scale=1"

    def test_windows_stay_on_the_axis_of_the_batch(self) -> None:
        """Batch and windows are two letters; no Reshape takes them apart."""
        model, block = unpacked(
            """
            apart = Constant<value_ints = [-1, 4, 2, 6, 6]>()
            x5 = Reshape(x, apart)
            m5 = Add(x5, mask)
            together = Constant<value_ints = [-1, 2, 6, 6]>()
            m = Reshape(m5, together)
            p = Softmax(m)""",
            "float[1, 4, 1, 6, 6] mask",
            qkv=", ".join(f"float[12, 2, 6, 8] {name}" for name in "qkv"),
        )
        assert block.batch == "BW"
        assert written(model, fused(model, block, "mha"))[0] == "%1 = Transpose(q) perm=[0, 2, 1, 3]"

    def test_another_head_size_for_values_makes_all_bsd(self) -> None:
        model, block = unpacked(qkv="float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 6] v")
        result = fused(model, block, "mha")
        assert written(model, result)[-3] == "%7 = MultiHeadAttention(%2, %4, %6) num_heads=2 scale=1"
        feeds = random_feeds(model, b=2, s=3, t=5)
        np.testing.assert_allclose(results(result, feeds), attention(**feeds, scale=1), atol=1e-5)


class TestMasks:
    @pytest.mark.parametrize(
        ("hidden", "lines", "attribute"),
        [
            ("-inf", ["%1 = Where(keep, 0.0, -inf)"], " unidirectional=1"),
            # a query that sees no key gives the mean of all V: the attribute would leave out the later ones
            ("-3.4e38", ["%1 = And(seen, keep)", f"%2 = Where(%1, 0.0, {LOWEST})"], ""),
        ],
    )
    def test_beside_others_the_causal_mask_is_the_attribute_where_that_says_all(
        self, hidden: str, lines: list[str], attribute: str
    ) -> None:
        model, block = read(
            f"""({BSD.replace(" t,", " s,")}, bool[b, 1, s, s] keep) => (float[b, s, 16] y) {{
                {SPLIT} {CAUSAL} hide = Constant<value_float = {hidden}>()
                h = Where(keep, m, hide)
                p = Softmax(h) {MERGE} }}"""
        )
        result = fused(model, block, "mha")
        bias = f"%{len(lines)}"
        assert written(model, result) == [
            *lines, f"y = MultiHeadAttention(q, k, v, -, -, {bias}) num_heads=2 scale=1{attribute}"
        ]  # fmt: skip
        assert ("Trilu" in result.op_counts()) == (not attribute)
        feeds = random_feeds(model, b=2, s=5)
        keep = feeds["keep"] & np.tri(5, dtype=bool)
        truth = attention(*(heads(feeds[x], 2) for x in "qkv"), scale=1, added=np.where(keep, 0, -np.inf))
        np.testing.assert_allclose(results(result, feeds), side_by_side(truth), atol=1e-5)

    def test_masks_are_joined_at_their_own_shapes_and_need_no_expand(self) -> None:
        masks = f"{HIDE} m = Where(keep, x, hide) n = Add(m, bias) p = Softmax(n)"
        assert lines(masks, "bool[b, 1, 1, t] keep, float[2, s, t] bias") == [
            f"%1 = Where(keep, 0.0, {LOWEST})",
            f"%2 = Max(bias, {LOWEST})",
            "%3 = Add(%1, %2)",
            "y = MultiHeadAttention(q, k, v, -, -, %3) num_heads=2 scale=1",
        ]

    def test_one_row_for_all_is_expanded_last(self) -> None:
        masks = f"{HIDE} m = Where(keep, x, hide) p = Softmax(m)"
        assert lines(masks, "bool[b, 1, 1, t] keep") == [
            f"%1 = Where(keep, 0.0, {LOWEST})",
            "%2 = Shape(q) start=1 end=2",
            "%3 = Concat([1], [1], %2, [1]) axis=0",
            "%4 = Expand(%1, %3)",
            "y = MultiHeadAttention(q, k, v, -, -, %4) num_heads=2 scale=1",
        ]

    def test_a_mask_of_two_axes_gets_four(self) -> None:
        assert lines(f"{HIDE} m = Where(keep, x, hide) p = Softmax(m)", "bool[s, t] keep") == [
            f"%1 = Where(keep, 0.0, {LOWEST})",
            "%2 = Unsqueeze(%1, [0, 1])",
            "y = MultiHeadAttention(q, k, v, -, -, %2) num_heads=2 scale=1",
        ]

    def test_conditions_that_hide_are_joined_as_they_are(self) -> None:
        masks = f"{HIDE} m = Where(a, hide, x) n = Where(c, hide, m) p = Softmax(n)"
        assert lines(masks, "bool[b, 1, s, t] a, bool[s, t] c")[:2] == [
            "%1 = Or(a, c)",
            f"%2 = Where(%1, {LOWEST}, 0.0)",
        ]

    def test_conditions_of_both_kinds_are_joined_to_what_is_kept(self) -> None:
        masks = f"{HIDE} m = Where(a, hide, x) n = Where(c, m, hide) p = Softmax(n)"
        assert lines(masks, "bool[b, 1, s, t] a, bool[s, t] c")[:3] == [
            "%1 = Not(a)",
            "%2 = And(%1, c)",
            f"%3 = Where(%2, 0.0, {LOWEST})",
        ]

    @pytest.mark.parametrize(
        ("numbers", "written_first"),
        [("{0, -100, -100, 0}", "y = MultiHeadAttention"), ("{0, -3.4e38, -3.4e38, 0}", f"%1 = Max(bias, {LOWEST})")],
    )
    def test_only_what_may_be_too_low_is_raised(self, numbers: str, written_first: str) -> None:
        three = "float[1, 2, 2, 8] q, float[1, 2, 2, 8] k, float[1, 2, 2, 8] v"
        bias = f"bias = Constant<value = float[1, 1, 2, 2] {numbers}>() m = Add(x, bias) p = Softmax(m)"
        model, block = unpacked(bias, qkv=three)
        found = [line for line in written(model, fused(model, block, "mha")) if "bias" in line]
        assert found[0].split(" = ")[1].startswith(written_first.split(" = ")[1])

    def test_a_row_of_the_lowest_number_gives_the_mean_of_the_values(self) -> None:
        """The memory-efficient kernel on CUDA makes NaN of −3.4e38, so it is not passed on."""
        model, block = unpacked("m = Add(x, mask) p = Softmax(m)", "float[b, 1, s, t] mask")
        feeds = random_feeds(model, b=2, s=3, t=5)
        feeds["mask"][1, 0, 2] = np.finfo(np.float32).min
        result = results(fused(model, block, "mha"), feeds)
        np.testing.assert_allclose(result[1, :, 2], feeds["v"][1].mean(axis=1), atol=1e-5)

    def test_a_guard_that_hides_again_zeroes_rows_that_see_nothing_whatever_the_fill(self) -> None:
        """As in DeBERTa: the fill is finite, so there is no NaN to be seen, but the probabilities are masked again."""
        model, block = unpacked(
            f"""{HIDE} m = Where(keep, x, hide) w = Softmax(m)
            zero = Constant<value_float = 0.0>() p = Where(keep, w, zero)""",
            "bool[b, 1, s, t] keep",
        )
        assert block.nan_guard
        feeds = random_feeds(model, b=2, s=3, t=5)
        feeds["keep"][1, 0, 2] = False
        before, after = (results(found, feeds) for found in (model, fused(model, block, "mha")))
        np.testing.assert_allclose(after, before, atol=1e-5)
        assert not after[1, :, 2].any()


class TestScale:
    def test_a_negative_scale_turns_the_query(self) -> None:
        model, block = packed("c = Constant<value_float = -0.5>() m = Mul(x, c) p = Softmax(m)")
        result = fused(model, block, "mha")
        assert written(model, result) == [
            "%1 = Neg(q)",
            "y = MultiHeadAttention(%1, k, v) num_heads=2 scale=0.5",
        ]
        cost = choose(model, block, "mha").cost
        assert cost is not None
        assert (cost.layout_nodes, cost.transposes) == (1, 1)
        feeds = random_feeds(model, b=2, s=3, t=5)
        truth = attention(*(heads(feeds[x], 2) for x in "qkv"), scale=-0.5)
        np.testing.assert_allclose(results(result, feeds), side_by_side(truth), atol=1e-5)

    def test_a_factor_per_head_is_multiplied_where_the_heads_are_apart(self) -> None:
        assert lines("m = Mul(x, f) p = Softmax(m)", "float[2, 1, 1] f") == [
            "%1 = Reshape(q, [0, 0, 2, 8])",
            "%2 = Reshape(f, [1, 1, 2, 1])",
            "%3 = Mul(%1, %2)",
            "%4 = Reshape(%3, [0, 0, 16])",
            "y = MultiHeadAttention(%4, k, v) num_heads=2 scale=1",
        ]


class TestSharedHeads:
    def test_a_repetition_that_is_there_is_kept(self) -> None:
        model, block = grouped()
        result = fused(model, block, "mha")
        assert codes(model, block, "auto") == []
        assert result.op_counts()["Expand"] == 2
        assert written(model, result)[-1].startswith("y = MultiHeadAttention(q, ")
        feeds = random_feeds(model, b=2, s=3)
        q, k, v = heads(feeds["q"], 4), heads(feeds["k"], 2), heads(feeds["v"], 2)
        np.testing.assert_allclose(results(result, feeds), side_by_side(attention(q, k, v, 1)), atol=1e-5)

    def test_one_is_added_only_if_asked_for(self) -> None:
        model, block = unpacked(qkv="float[b, 2, s, 8] q, float[b, 1, t, 8] k, float[b, 1, t, 8] v")
        choice = choose(model, block, "mha")
        assert "repeated" in choice.words
        assert "Expand" in fused(model, block, "mha").op_counts()
        assert choose(model, block, "auto").target == "attention"


@pytest.mark.parametrize(
    ("logits", "code"),
    [
        ("c = Constant<value_float = 0.0>() m = Mul(x, c) p = Softmax(m)", "scale"),
        ("c = Constant<value_float = 5.0>() d = Div(x, c) h = Tanh(d) m = Mul(h, c) p = Softmax(m)", "softcap"),
    ],
)
def test_what_it_cannot_say_is_an_obstacle(logits: str, code: str) -> None:
    assert codes(*packed(logits), "mha") == [code]


@pytest.mark.parametrize(
    ("mask", "qkv"),
    [
        ("float[b, 1, s, 1] mask", "float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 8] v"),
    ],
)
def test_a_mask_that_does_not_tell_the_keys_is_an_obstacle(mask: str, qkv: str) -> None:
    assert codes(*unpacked("m = Add(x, mask) p = Softmax(m)", mask, qkv=qkv), "mha") == ["mask-shape"]


def test_doubles_are_an_obstacle() -> None:
    model, block = unpacked(qkv=", ".join(f"double[b, 2, s, 8] {name}" for name in "qkv"))
    assert codes(model, block, "mha") == ["dtype"]


def test_one_key_for_the_whole_batch_is_an_obstacle() -> None:
    inputs = "float[b, s, 16] q, float[1, t, 16] k, float[b, t, 16] v"
    model, block = read(f"({inputs}) => (float[b, s, 16] y) {{ {SPLIT} p = Softmax(x) {MERGE} }}")
    assert "broadcast" in codes(model, block, "mha")


@pytest.mark.parametrize(("meaning", "opset", "wants"), [({}, 8, 9), ({"half": True, "mask": "additive2"}, 13, 16)])
def test_an_opset_without_the_nodes_that_are_written_is_an_obstacle(
    meaning: dict[str, object], opset: int, wants: int
) -> None:
    proto = render(Meaning(**meaning), Spelling(opset=opset))  # type: ignore[arg-type]
    model = loaded(in_bfloat16(proto))
    (reason,) = choose(model, only_block(model), "mha").obstacles
    assert (reason.code, reason.expected) == ("opset", f"opset {wants} or later")


def test_bfloat16_becomes_valid_onnx() -> None:
    """There is no kernel for it on a CPU: what can be had is the checker and shape inference, which apply() asks."""
    model = loaded(in_bfloat16(render(Meaning(mask="causal+tokens", half=True), Spelling(casts="before", opset=18))))
    block = only_block(model)
    assert block.dtype == "bfloat16"
    assert fused(model, block, "mha").op_counts()["MultiHeadAttention"] == 1


@pytest.mark.parametrize(
    ("meaning", "provider", "kernels"),
    [
        (Meaning(half=True), "cuda", ("cudnn", "flash", "memory-efficient", "math")),
        (Meaning(half=True, mask="additive2"), "cuda", ("cudnn", "memory-efficient", "math")),
        (Meaning(half=True, head_size=6), "cuda", ("math",)),
        (Meaning(half=True, v_head_size=16), "cuda", ("cudnn", "memory-efficient", "math")),
        (Meaning(), "cuda", ("memory-efficient", "math")),
        (Meaning(half=True), "cpu", ("cpu",)),
    ],
)
def test_the_kernels_within_reach(meaning: Meaning, provider: str, kernels: tuple[str, ...]) -> None:
    model = loaded(render(meaning))
    cost = choose(model, only_block(model), "mha", Settings(provider)).cost  # type: ignore[arg-type]
    assert cost is not None
    assert cost.kernels == kernels


def test_short_sequences_of_float32_are_left_to_math() -> None:
    model, block = unpacked(qkv=", ".join(f"float[1, 2, 64, 8] {name}" for name in "qkv"))
    cost = choose(model, block, "mha").cost
    assert cost is not None
    assert cost.kernels == ("math",)
