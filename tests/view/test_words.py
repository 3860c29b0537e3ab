"""Sentences, panels and the shapes field."""

import re

import pytest
from fake import HOSTILE, block, graph_info, profile, verdict

from explorer.attention.block import Mask, MaskTerm, Obstacle, Operand, View
from explorer.errors import InputError
from explorer.profile import Ratio
from explorer.view import panels, words
from explorer.view.shapes import parse_shapes
from explorer.view.table import COLUMNS, table_rows
from explorer.view.text import as_html, as_plot, middle, tail


def test_a_block_is_said_in_plain_words():
    said = " ".join(words.sentences(block(0)))
    assert "2 heads of 64." in said
    assert "scaled by 100, after a Cast to float32" in said
    assert "2 Casts around the softmax" in said
    assert "No mask." in said
    assert "K arrives already transposed (BNHS): no Transpose feeds the product." in said
    assert "Q and K: rotary embedding (RoPE) upstream" in said


def test_words_for_other_blocks():
    key = Operand((View("kt", ("B", "N", "H", "S")), View("k", ("B", "S", "NH"))))
    mask = Mask("padding", (MaskTerm("additive", "bias", (1, 1, 1, "T"), "float32"),))
    item = block(0, kv_num_heads=1, head_size=64, scale=0.125, mask=mask, softcap=30.0, key=key, v_head_size=32)
    said = " ".join(words.sentences(item))
    assert "2 heads of 64, 1 for keys and values, values of 32." in said
    assert "0.125 = 1/√64" in said
    assert "Padding mask: bias float32." in said
    assert "±30" in said
    assert "K is BSD upstream and reaches the product as BNHS." in said
    assert "not scaled" in " ".join(words.sentences(block(0, scale=1.0)))
    assert "Computed by one operator already" in words.sentences(block(0, fused_as="Attention"))[1]
    assert words.heads(block(0, num_heads=None, head_size=None, kv_num_heads=None, v_head_size=None)) == "? heads of ?"


def test_obstacles_name_the_place():
    assert words.obstacle(Obstacle("c", "node", "this", "that", "do so")) == "node: expected this, found that; do so."
    assert words.obstacle(Obstacle("c", "", "this", "that")) == "Expected this, found that."


def test_counts_show_what_a_fusion_is_about():
    rows = words.counts({"Cast": 4, "Softmax": 2, "Add": 3}, {"MultiHeadAttention": 2, "Add": 3})
    assert rows == (
        ("Cast", 4, 0), ("Softmax", 2, 0), ("MatMul", 0, 0), ("Transpose", 0, 0),
        ("MultiHeadAttention", 0, 2), ("All nodes", 9, 5),
    )  # fmt: skip


def test_the_verdict_is_judged_in_a_sentence():
    assert words.verdict_line(verdict()).startswith("Passed: all 2")
    assert words.verdict_line(verdict(passed=False)).startswith("Failed: 2 of 2")
    assert words.comparison(verdict().blocks[0], {"": "attn0"})[-1] == "✓ pass"
    assert "explorer-failed" in panels.verdict(verdict(passed=False), {}, "")


@pytest.mark.parametrize(
    ("ratio", "start"),
    [
        (Ratio(2, 1.9, 2.1), "Fused is 2.00× as fast"),
        (Ratio(1, 0.9, 1.1), "No measurable"),
        (Ratio(0.5, 0.4, 0.6), "Fused is slower"),
        (None, "One model"),
    ],
)
def test_the_ratio_is_honest_about_its_interval(ratio, start):
    assert words.profile_line(profile(ratio=ratio)).startswith(start)


def test_the_profile_says_where_it_ran_and_what_it_does_not_show():
    shown = panels.profile(profile(), "")
    assert "no CUDA device was found" in shown
    assert "A CPU run shows structure" in shown
    assert "MultiHeadAttention: MATH (fp16) × 1" in shown
    assert "4 → 4" in shown
    assert "Host time of ORT&#x27;s profile." in shown
    assert panels.profile(None, "not <yet>") == "<p>not &lt;yet&gt;</p>"


def tags(text):
    return set(re.findall(r"<(\w+)", text))


OURS = {
    "h3",
    "h4",
    "ul",
    "li",
    "p",
    "span",
    "code",
    "small",
    "ol",
    "details",
    "summary",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "b",
}


def test_panels_escape_everything_of_a_model():
    item = block(0, name=HOSTILE, label=HOSTILE, ort_reason=HOSTILE, fused_as=HOSTILE, dtype=HOSTILE)
    trouble = Obstacle("c", HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    info = graph_info(1, name=HOSTILE)
    shown = [
        panels.block(item, "blocked", [(HOSTILE, HOSTILE, (trouble,)), (HOSTILE, HOSTILE, ())], [trouble]),
        panels.node(info.nodes[0], info),
        panels.about(HOSTILE, info, 2, (HOSTILE,)),
        panels.verdict(verdict(block_id=HOSTILE, name=HOSTILE), {}, ""),
        panels.profile(profile(provider_note=HOSTILE, shapes=((HOSTILE, (1,)),)), ""),
        panels.message(HOSTILE),
        panels.unavailable({HOSTILE: HOSTILE}),
        panels.counts({HOSTILE: 1}, {HOSTILE + "2": 2}),
        panels.plain(HOSTILE),
    ]
    for text in shown:
        assert tags(text) <= OURS
        assert "&lt;img" in text
        assert "\u202e" not in text
        assert 'onerror="' not in text


def test_the_table_gets_plain_text():
    (row,) = table_rows([(block(0, label=HOSTILE, kv_num_heads=1), "fusable", 2)])
    assert row["cells"] == [HOSTILE.replace("\u202e", "\ufffd"), "◆ fusable", "2 / 1", "64", "100", "none", "2"]
    assert len(row["cells"]) == len(COLUMNS)


def test_escaping():
    assert as_html("<\"&'") == "&lt;&quot;&amp;&#x27;"
    assert as_plot("<b>$x$") == "&lt;b&gt;&#36;x&#36;"
    assert as_html("a\nb\u202e") == "a\ufffdb\ufffd"
    assert middle("abcdefghij", 5) == "ab…ij"
    assert tail("/model/layers.3/attn/Split_output_1", 20) == "…Split_output_1"
    assert tail("short", 20) == "short"


def test_the_shapes_field():
    assert parse_shapes("  ") is None
    assert parse_shapes("x=2x938x100, mask=2x938") == {"x": (2, 938, 100), "mask": (2, 938)}
    for wrong in ("x", "x=", "=2", "x=2xa", "x=0"):
        with pytest.raises(InputError, match="NAME=SIZE"):
            parse_shapes(wrong)
