"""Sentences, panels and the shapes field."""

import re
from dataclasses import replace
from typing import get_args

import pytest
from fake import HOSTILE, block, graph_info, verdict

from explorer.attention.block import Factor, Mask, MaskTerm, Obstacle, Operand, Role, View
from explorer.errors import InputError
from explorer.profile.words import ROLES
from explorer.view import panels, words
from explorer.view.shapes import parse_field
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
    mask = Mask("padding", (MaskTerm("additive", "bias", (1, 1, 1, "keys"), ("B", "N", "S", "T"), "float32"),))
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


def test_words_for_what_few_blocks_have():
    said = words.sentences(
        block(0, factor=Factor("temperature", (2, 1, 1), ("N", "S", "T"), "float16"), nan_guard=True)
    )
    assert "Logits are multiplied by temperature, too." in said
    assert "A query that may see no key gets zeros." in said
    plain = " ".join(words.sentences(block(0)))
    assert "too." not in plain
    assert "zeros" not in plain


def test_an_element_type_of_the_softmax_that_takes_no_casts():
    said = words.sentences(block(0, region=(), softmax_dtype="float32"))
    assert "The softmax runs in float32, the data is float16." in said
    for other in ("float16", ""):
        assert not any("softmax runs" in text for text in words.sentences(block(0, region=(), softmax_dtype=other)))


def test_every_role_has_a_word():
    assert set(get_args(Role)) <= {*ROLES}


def test_obstacles_name_the_place():
    assert words.obstacle(Obstacle("c", "node", "this", "that", "do so")) == "node: expected this, found that; do so."
    assert words.obstacle(Obstacle("c", "", "this", "that")) == "Expected this, found that."


def test_counts_show_what_a_fusion_is_about():
    rows = words.counts({"Cast": 4, "Softmax": 2, "Add": 3}, {"MultiHeadAttention": 2, "Add": 3})
    assert rows == (
        ("Cast", 4, 0), ("Softmax", 2, 0), ("MatMul", 0, 0), ("Transpose", 0, 0),
        ("MultiHeadAttention", 0, 2), ("All nodes", 9, 5),
    )  # fmt: skip


def test_the_inputs_of_a_verdict_are_named_those_that_the_original_does_not_take_too():
    assert words.cases(verdict())[-1].startswith("Not compared on length 1: the original does not run there: no ")
    (case,) = (case for case in verdict().cases if not case.refused_by)
    refused = replace(case, blocks=(), outputs=(), refusal="an error", refused_by="fused")
    said = replace(verdict(), cases=(case, refused))
    assert "Not compared on seed 0: the fused model does not run there: an error" in words.cases(said)
    assert words.verdict_line(said) == "Failed: the fused model does not run on inputs on which the original does."


def test_the_verdict_is_judged_in_a_sentence():
    assert words.verdict_line(verdict()).startswith("Passed: all 2")
    assert words.verdict_line(verdict(passed=False)).startswith("Failed: 2 of 2")
    assert words.comparison(verdict().blocks[0], {"": "attn0"})[-2:] == ("✓ pass", "seed 0")
    assert "explorer-failed" in panels.verdict(verdict(passed=False), {}, "")


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
        panels.block(block(0), "fusable", [], [], [HOSTILE]),
        panels.block(item, "blocked", [(HOSTILE, HOSTILE, (trouble,)), (HOSTILE, HOSTILE, ())], [trouble]),
        panels.node(info.nodes[0], info),
        panels.about(HOSTILE, info, 2, (HOSTILE,)),
        panels.verdict(verdict(block_id=HOSTILE, name=HOSTILE), {}, ""),
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


def cells(**changes):
    (row,) = table_rows([(block(0, **changes), "fusable", 2)])
    return dict(zip(COLUMNS, row["cells"], strict=True))


def test_the_table_gets_plain_text():
    assert cells(label=HOSTILE) == {
        "Block": HOSTILE.replace("\u202e", "\ufffd"), "Status": "◆ fusable", "Heads": "2 × 64",
        "Scale": "100", "Mask": "none", "Casts": "2", "Type": "fp16 → fp32",
    }  # fmt: skip


def test_the_table_shows_keys_and_values_where_they_differ():
    row = cells(kv_num_heads=1, v_head_size=32, softcap=50.0, dtype="bfloat16", softmax_dtype="bfloat16")
    assert (row["Heads"], row["Scale"], row["Type"]) == ("2/1 × 64/32", "100, cap 50", "bf16")
    row = cells(num_heads=None, kv_num_heads=None, v_head_size=None, scale=None, dtype="", softmax_dtype="")
    assert (row["Heads"], row["Scale"], row["Type"]) == ("? × 64", "?", "?")


def test_escaping():
    assert as_html("<\"&'") == "&lt;&quot;&amp;&#x27;"
    assert as_plot("<b>$x$") == "&lt;b&gt;&#36;x&#36;"
    assert as_html("a\nb\u202e") == "a\ufffdb\ufffd"
    assert middle("abcdefghij", 5) == "ab…ij"
    assert tail("/model/layers.3/attn/Split_output_1", 20) == "…Split_output_1"
    assert tail("short", 20) == "short"


def test_the_shapes_field():
    assert parse_field("  ") == ({},)
    assert parse_field("x=2x938x100, mask=2x938") == ({"x": (2, 938, 100), "mask": (2, 938)},)
    assert parse_field("x=2x256..1024x100 time=2x64") == tuple(
        {"x": (2, size, 100), "time": (2, 64)} for size in (256, 512, 1024)
    )
    for wrong in ("x", "=2", "x=2xa", "x=0", "x=9..3"):
        with pytest.raises(InputError, match="NAME="):
            parse_field(wrong)
