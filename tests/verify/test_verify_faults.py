"""Faults put into a right fusion: each is caught, in the comparisons and cases where it shows, and only there."""

from __future__ import annotations

import pytest
from attention_texts import FUSED, causal, model, padded

from explorer.attention import recognise
from explorer.verify import Verdict, verify

ALL = {"seed 0", "seed 1", "a fully padded row", "batch 1", "length 1", "length 7"}


@pytest.fixture
def judged(worker, tmp_path):
    """The verdict on a text in which `old` became `new` after the fusion."""

    def judged(texts: tuple[str, str], old: str = "", new: str = "") -> Verdict:
        before, after = texts
        assert old in after
        original = model(tmp_path, "original", before)
        fused = model(tmp_path, "fused", after.replace(old, new))
        return verify(worker, original, fused, recognise(original), provider="cpu")

    return judged


def failing(verdict: Verdict, part: str) -> set[str]:
    """The cases in which the block ("blocks") or the model's output ("outputs") fails."""
    return {item.case for case in verdict.cases for item in getattr(case, part) if not item.passed}


def test_a_right_fusion_passes_in_every_case(judged):
    verdict = judged(padded())
    assert verdict.passed
    assert {case.words for case in verdict.cases} == ALL
    assert all(len(case.blocks) == len(case.outputs) == 1 for case in verdict.cases)
    assert (verdict.failed_blocks, verdict.suggestion) == ((), "")
    assert judged(causal()).passed


# One key cannot show a wrong scale or order, one batch entry (of which nothing is hidden) no wrong mask
MANY = ALL - {"length 1"}
VALUE = "(xq, k, v, , , expanded)"


@pytest.mark.parametrize(
    ("texts", "old", "new", "where"),
    [
        (padded(), "scale = 0.5", "scale = 0.55", MANY),
        (padded(), "Expand (bias", "Expand (upside_down", MANY - {"batch 1"}),
        (padded(), VALUE, "(xq, k, v)", MANY - {"batch 1"}),
        (padded(), VALUE, "(xq, k, swapped_v, , , expanded)", ALL),
        (padded(), VALUE, "(xq, swapped_k, v, , , expanded)", MANY),
        (padded(), VALUE, "(xq, v, k, , , expanded)", ALL),
        (causal(), "(seen, zero, low)", "(seen_too_far, zero, low)", MANY - {"a fully padded row"}),
        (causal(), "(seen, zero, low)", "(seen, low, zero)", MANY - {"a fully padded row"}),
    ],
    ids=["scale", "mask sign", "no mask", "V heads", "K heads", "K and V", "causal off by one", "anticausal"],
)
def test_a_wrong_fusion_fails_where_it_can_be_seen(judged, texts, old, new, where):
    more = """
        turn = Constant <value = int64[2] {1, 0}> ()
        swapped_k = Gather <axis = 1> (k, turn) swapped_v = Gather <axis = 1> (v, turn)
    """
    if "bias" in texts[1]:
        more += "upside_down = Neg (bias)"
    if "triangle" in texts[1]:
        more += """
            next = Constant <value = int64 {1}> () further = Trilu <upper = 0> (ones, next)
            seen_too_far = Cast <to = 9> (further)
        """
    at = "\n    rows = Shape"
    verdict = judged((texts[0], texts[1].replace(at, more + at)), old, new)
    assert not verdict.passed
    assert failing(verdict, "blocks") == failing(verdict, "outputs") == where
    (block,) = verdict.blocks
    assert block.original.relative < 1e-6, "the original is innocent"
    assert block.fused.relative > 1e3 * block.allowed or (block.masked is not None and not block.masked.passed)
    assert verdict.failed_blocks == (block.block,)
    assert verdict.suggestion.startswith("Leave unfused: attn0 (at ")


ONE_ROW = """
    at_least = Constant <value = int64 {1}> () s = Squeeze (rows) less = Sub (s, at_least)
"""


def test_a_fusion_that_is_wrong_at_length_one_alone(judged):
    spoiled = ONE_ROW + "capped = Min (less, at_least) f = Cast <to = 1> (capped) w = Mul (v, f)"
    verdict = judged((padded()[0], padded()[1].replace(FUSED, spoiled + FUSED)), VALUE, "(xq, k, w, , , expanded)")
    assert failing(verdict, "blocks") == failing(verdict, "outputs") == {"length 1"}
    assert "attn0 (at length 1)" in verdict.suggestion


def test_a_fusion_that_does_not_run_at_length_one(judged):
    """It reads the second key."""
    spoiled = """second = Gather <axis = 2> (v, unit) nothing = Sub (second, second) w = Add (v, nothing)"""
    verdict = judged((padded()[0], padded()[1].replace(FUSED, spoiled + FUSED)), VALUE, "(xq, k, w, , , expanded)")
    assert failing(verdict, "blocks") == {"length 1"}
    assert failing(verdict, "outputs") == set()
    (refused,) = [case for case in verdict.cases if case.refused_by]
    assert (refused.words, refused.refused_by, refused.outputs) == ("length 1", "fused", ())
    assert "Gather" in refused.refusal
    assert not refused.passed
    (block,) = refused.blocks
    assert "the fused block does not run: ONNX Runtime" in block.problem
    assert verdict.blocks == (block,), "the worst of its cases"


# Padding that is hidden by −inf
ENDLESS = """
    hides = Cast <to = 9> (hidden) none = Sub (one, one) endless = Log (none)
    all_or_nothing = Where (hides, endless, none)
"""


class TestQueriesThatSeeNoKey:
    def test_nan_for_numbers_fails_in_the_padded_row_alone(self, judged):
        """With −inf for −10,000 the padding is hidden as well, but a row of nothing else is 0/0."""
        after = padded()[1].replace("bias = Mul (hidden, low)", "bias = Mul (hidden, low)" + ENDLESS)
        verdict = judged((padded()[0], after), "Expand (bias", "Expand (all_or_nothing")
        assert failing(verdict, "blocks") == failing(verdict, "outputs") == {"a fully padded row"}
        (block,) = verdict.blocks
        assert block.masked.count == 2 * 32, "of both heads"
        assert (block.masked.original_nan, block.masked.fused_nan) == (0, 64)
        assert not block.masked.passed
        assert block.fused.relative < 1e-6, "all others are right"

    def test_numbers_for_nan_pass_and_are_noted(self, judged):
        verdict = judged((self.endless(), padded()[1]))
        (padded_row,) = [case for case in verdict.cases if case.words == "a fully padded row"]
        (block,) = padded_row.blocks
        assert (block.masked.original_nan, block.masked.fused_nan) == (64, 0)
        assert verdict.passed
        assert any("gives NaN for queries whose mask hides every key" in note for note in verdict.notes)

    def test_nan_for_nan_is_the_same(self, judged):
        after = padded()[1].replace("bias = Mul (hidden, low)", ENDLESS).replace("(bias, full", "(all_or_nothing, full")
        verdict = judged((self.endless(), after))
        assert verdict.passed
        assert verdict.notes == ()

    def endless(self) -> str:
        before = padded()[0].replace("bias = Mul (hidden, low)", ENDLESS)
        return before.replace("(scaled, bias)", "(scaled, all_or_nothing)")

    def test_zeros_for_a_mean_fail(self, judged):
        """What an operator gives that defines such rows as zeros."""
        gate = "any_key = ReduceMax <axes = [1, 3], keepdims = 0> (kept) gate = Unsqueeze (any_key, unit)\n"
        zeroed = gate + FUSED.replace("context =", "whole =") + "context = Mul (whole, gate)\n"
        verdict = judged((padded()[0], padded()[1].replace(FUSED, zeroed)))
        assert failing(verdict, "blocks") == failing(verdict, "outputs") == {"a fully padded row"}
        (block,) = verdict.blocks
        assert block.masked.fused_nan == 0
        assert block.masked.error > 100 * block.masked.allowed
