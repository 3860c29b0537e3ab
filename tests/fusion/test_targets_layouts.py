"""A target with a layout in its name is written in that layout, whatever it costs, and means the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from attention_cases import cases
from attention_graphs import Meaning, Spelling, render
from attention_reading import assert_fuses, loaded, only_block
from hypothesis import HealthCheck, assume, given, settings
from hypothesis.strategies import sampled_from
from target_graphs import (
    attention,
    codes,
    fused,
    grouped,
    heads,
    packed,
    random_feeds,
    results,
    side_by_side,
    unpacked,
    written,
)  # fmt: skip

from explorer.attention import recognise
from explorer.errors import BlockError
from explorer.fusion import OPERATORS, PROVENANCE, TARGETS, Plan, apply, choose

FORCED = ("mha/bsd", "mha/bnsh", "attention/bsd", "attention/bnsh")


def test_all_names() -> None:
    assert tuple(OPERATORS) == ("mha", "gqa", "attention")
    assert tuple(TARGETS) == (*OPERATORS, *FORCED)
    assert all(name == target.name for name, target in TARGETS.items())


@pytest.mark.parametrize(
    ("target", "from_bsd", "from_bnsh"),
    [
        (
            "mha/bsd",
            ["y = MultiHeadAttention(q, k, v)"],
            [
                "%1 = Transpose(q)", "%2 = Reshape(%1)", "%3 = Transpose(k)", "%4 = Reshape(%3)", "%5 = Transpose(v)",
                "%6 = Reshape(%5)", "%7 = MultiHeadAttention(%2, %4, %6)", "%8 = Reshape(%7)", "y = Transpose(%8)",
            ],
        ),
        (
            "mha/bnsh",
            [
                "%1 = Reshape(k)", "%2 = Transpose(%1)", "%3 = Reshape(v)", "%4 = Transpose(%3)",
                "y = MultiHeadAttention(q, %2, %4)",
            ],
            [
                "%1 = Transpose(q)", "%2 = Reshape(%1)", "%3 = MultiHeadAttention(%2, k, v)", "%4 = Reshape(%3)",
                "y = Transpose(%4)",
            ],
        ),
        (
            "attention/bsd",
            ["y = Attention(q, k, v)"],
            [
                "%1 = Transpose(q)", "%2 = Reshape(%1)", "%3 = Transpose(k)", "%4 = Reshape(%3)", "%5 = Transpose(v)",
                "%6 = Reshape(%5)", "%7 = Attention(%2, %4, %6)", "%8 = Reshape(%7)", "y = Transpose(%8)",
            ],
        ),
        (
            "attention/bnsh",
            [
                "%1 = Reshape(q)", "%2 = Transpose(%1)", "%3 = Reshape(k)", "%4 = Transpose(%3)", "%5 = Reshape(v)",
                "%6 = Transpose(%5)", "%7 = Attention(%2, %4, %6)", "%8 = Transpose(%7)", "y = Reshape(%8)",
            ],
            ["y = Attention(q, k, v)"],
        ),
    ],
)  # fmt: skip
def test_the_layout_is_the_one_asked_for(target: str, from_bsd: list[str], from_bnsh: list[str]) -> None:
    for (model, block), expected in (packed(opset=23), from_bsd), (unpacked(opset=23), from_bnsh):
        result = fused(model, block, target)
        assert [_without_numbers(line) for line in written(model, result)] == expected
        cost = choose(model, block, target).cost
        assert cost is not None
        assert (cost.layout_nodes, cost.layout) == (len(expected) - 1, target.partition("/")[2])


def _without_numbers(line: str) -> str:
    """A line of `written` without attributes and shapes: "%2 = Reshape(%1)"."""
    return f"{line.partition(')')[0].partition(', [')[0]})"


@pytest.mark.parametrize("target", FORCED)
def test_each_layout_computes_the_same(target: str) -> None:
    model, block = packed(opset=23)
    feeds = random_feeds(model, b=2, s=3, t=5)
    truth = side_by_side(attention(**{name: heads(array, 2) for name, array in feeds.items()}, scale=1))
    np.testing.assert_allclose(results(fused(model, block, target), feeds), truth, atol=1e-5)
    model, block = grouped(opset=23)
    feeds = random_feeds(model, b=2, s=3)
    q, k, v = heads(feeds["q"], 4), heads(feeds["k"], 2), heads(feeds["v"], 2)
    truth = side_by_side(attention(q, k, v, scale=1))
    np.testing.assert_allclose(results(fused(model, block, target), feeds), truth, atol=1e-5)


@settings(
    deadline=None, max_examples=150, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(case=cases(), target=sampled_from(FORCED))
def test_any_spelling_in_any_layout(case: tuple[Meaning, Spelling], target: str) -> None:
    meaning, spelling = case
    model = loaded(render(meaning, spelling))
    block = only_block(model)
    assume(not block.obstacles)
    assert_fuses(model, block, meaning, spelling, {}, target)


@pytest.mark.parametrize("source", [packed, unpacked, grouped])
def test_without_a_layout_it_is_the_cheapest(source) -> None:
    model, block = source(opset=23)
    for operator in ("mha", "attention"):
        plain, *forced = (choose(model, block, name) for name in (operator, f"{operator}/bsd", f"{operator}/bnsh"))
        cheapest = min(forced, key=lambda choice: (choice.cost.transposes, choice.cost.layout_nodes))
        assert plain.cost == cheapest.cost
        assert plain.exact == cheapest.exact == cheapest.target
        assert [choice.exact for choice in forced] == [f"{operator}/bsd", f"{operator}/bnsh"]


def test_what_has_one_layout_is_called_without_it() -> None:
    model, block = grouped(opset=23)
    assert choose(model, block, "gqa").exact == "gqa"
    assert choose(*packed(), "gqa").exact == ""


def test_auto_leaves_the_layout_to_the_operator() -> None:
    assert choose(*packed(opset=23), "auto").target in OPERATORS


def test_keys_and_values_in_bnsh_are_of_one_shape() -> None:
    model = loaded(render(Meaning(v_head_size=6), Spelling()))
    block = only_block(model)
    assert codes(model, block, "mha/bnsh") == ["head-size"]
    assert codes(model, block, "mha/bsd") == codes(model, block, "mha") == []
    (obstacle,) = choose(model, block, "mha/bnsh").obstacles
    assert str(obstacle) == "expected one head size for keys and values in BNSH, found 8, and 6 for values"
    with pytest.raises(BlockError, match="cannot become mha/bnsh: expected one head size"):
        apply(model, [block], Plan(model.digest).with_fusion(block, "mha/bnsh"))


def test_the_layout_is_part_of_the_plan_and_of_the_provenance() -> None:
    model, block = packed()
    plan = Plan(model.digest).with_fusion(block, "mha/bnsh")
    assert plan.digest != Plan(model.digest).with_fusion(block, "mha").digest
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    result = apply(model, [block], again)
    (node,) = (node for node in result.nodes if node.op_type == "MultiHeadAttention")
    assert node.metadata_props[f"{PROVENANCE}target"] == "mha/bnsh"
    (read,) = recognise(result)
    assert read.fused_as == TARGETS["mha/bnsh"].operator


def test_the_words_name_the_layout() -> None:
    words = choose(*packed(), "mha/bnsh").words
    assert words.startswith("MultiHeadAttention, Q in BSD, K and V in BNSH, with 4 layout nodes, 2 of which move data;")
