"""Distances from the truth, and what they are judged by."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from explorer.verify.judge import compare, errors, judge_masked, near, received
from explorer.verify.verdict import (
    ALLOWED_FACTOR,
    ALLOWED_FLOOR,
    CaseVerdict,
    Comparison,
    Errors,
    MaskedRows,
    Received,
    Verdict,
    allowed_error,
)

NAN, INF = math.nan, math.inf


class TestErrors:
    def test_the_largest_distance_and_where_it_is(self):
        found = errors(np.array([[1.0, 2.0], [3.0, -4.5]], np.float32), np.array([[1.0, 2.25], [3.0, -4.0]]))
        assert found == Errors(0.5, 0.125, 0, (1, 1))

    def test_what_is_not_finite_is_counted_and_found_first(self):
        found = errors(np.array([1.0, NAN, INF, 9.0]), np.array([1.0, 2.0, 3.0, 4.0]))
        assert (found.nonfinite, found.worst, found.max_abs, found.relative) == (2, (1,), 5.0, 1.25)

    def test_where_the_truth_is_not_finite_nothing_is_wrong(self):
        assert errors(np.array([1.0, NAN, 7.0]), np.array([1.0, NAN, INF])) == Errors(0.0, 0.0, 0, (0,))
        assert errors(np.array([NAN, 7.0]), np.array([NAN, INF])) == Errors(0.0, 0.0, 0)

    def test_another_shape_is_infinitely_far(self):
        assert errors(np.ones((2, 3)), np.ones((3, 2))) == Errors(INF, INF, 6)

    def test_nothing_finite(self):
        found = errors(np.array([NAN, NAN]), np.array([1.0, 2.0]))
        assert math.isnan(found.relative)
        assert (found.nonfinite, found.worst) == (2, (0,))

    def test_a_truth_of_zeros(self):
        assert errors(np.array([0.25, 0.0]), np.zeros(2)) == Errors(0.25, 0.25, 0, (0,))


class TestCompare:
    def test_both_are_judged_by_the_truth_and_their_distance_is_told(self):
        original, fused = np.array([1.0, 4.5], np.float32), np.array([1.0, 4.25], np.float32)
        item = compare("y", "float32", original, fused, np.array([1.0, 4.0]))
        assert (item.original.relative, item.fused.relative) == (0.125, 0.0625)
        assert item.apart == 0.25 / 4.5
        assert item.allowed == allowed_error(item.original, "float32")
        assert item.passed

    def test_without_a_finite_truth_the_original_is_the_truth(self):
        original = np.array([1.0, 2.0, NAN])
        assert compare("y", "float32", original, np.array([1.0, 2.0, 5.0]), np.array([1.0, NAN, NAN])).passed
        assert not compare("y", "float32", original, np.array([1.0, NAN, NAN]), np.array([1.0, NAN, NAN])).passed
        assert not compare("y", "float32", original, np.array([1.0, 2.5, NAN]), np.array([1.0, NAN, NAN])).passed

    def test_what_is_skipped_counts_for_nothing(self):
        original, fused, truth = np.array([1.0, 2.0]), np.array([1.0, NAN]), np.array([1.0, 2.0])
        assert not compare("y", "float32", original, fused, truth).passed
        assert compare("y", "float32", original, fused, truth, np.array([False, True])).passed


def test_near_is_within_a_twentieth_in_every_float():
    own = {"y": np.array([1.0, 2.0]), "n": np.array([5])}
    assert near(own, {"y": np.array([1.0, 2.1]), "n": np.array([7])})
    assert not near(own, {"y": np.array([1.0, 2.2]), "n": np.array([5])})
    assert not near({**own, "z": np.array([1.0])}, {**own, "z": np.array([2.0])})


class TestMaskedRows:
    """Four elements, of which the last two belong to queries that see no key."""

    def judged(self, original, fused, formula, dtype="float32") -> MaskedRows:
        arrays = (np.array([1.0, -2.0, *item]) for item in (original, fused, formula))
        return judge_masked(2, (0, 0), np.array([False, False, True, True]), *arrays, dtype)

    @pytest.mark.parametrize(
        ("original", "fused", "formula", "passed"),
        [
            ([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], True),
            ([0.5, 0.5], [0.0, 0.0], [0.5, 0.5], False),
            ([0.5, 0.5], [0.5, 0.5], [NAN, NAN], True),
            ([0.5, 0.5], [NAN, 0.5], [NAN, NAN], False),
            ([NAN, NAN], [0.3, NAN], [NAN, NAN], True),
            (
                [0.5, 0.5],
                [0.9, 0.1],
                [0.9, 0.1],
                True,
            ),  # the original's type swallows the logits
            ([0.5, 0.5], [0.5, 0.5], [0.9, 0.1], True),
            ([0.5, 0.5], [0.0, 0.0], [0.9, 0.1], False),  # an original far from the formula is no excuse
            ([0.51, 0.5], [0.49, 0.5], [0.5, 0.5], True),  # both are as far from it
            ([0.51, 0.5], [0.46, 0.5], [0.5, 0.5], False),
        ],
    )
    def test_it_must_be_what_the_original_or_the_formula_gives(self, original, fused, formula, passed):
        assert self.judged(original, fused, formula).passed is passed

    def test_it_fails_the_comparison(self):
        rows = MaskedRows(1, 0, 0, 0.5, 1e-6)
        fine = Comparison("y", "attn", "float32", (2,), Errors(0, 0, 0), Errors(0, 0, 0), 1e-6)
        assert fine.passed
        assert not Comparison("y", "attn", "float32", (2,), Errors(0, 0, 0), Errors(0, 0, 0), 1e-6, masked=rows).passed


def test_what_a_block_received_is_described():
    assert received("key", "k", "float16", np.array([[1, NAN], [-3, INF]], np.float16)) == Received(
        "key", "k", "float16", (2, 2), -3.0, 1.0, 2
    )
    assert received("mask", "m", "bool", np.array([True, False])) == Received("mask", "m", "bool", (2,), 0.0, 1.0, 0)
    nothing = received("value", "v", "float32", np.array([NAN]))
    assert math.isnan(nothing.low)


def comparison(original: Errors, fused: Errors, dtype: str = "float32", **more) -> Comparison:
    return Comparison(more.pop("name", "y"), more.pop("block", ""), dtype, (1,), original, fused,
                      allowed_error(original, dtype), **more)  # fmt: skip


GOOD = comparison(Errors(1e-6, 1e-6, 0), Errors(2e-6, 2e-6, 0), block="attn-1", label="attn0", case="seed 7")
BAD = comparison(Errors(1e-6, 1e-6, 0), Errors(1, 1, 0, (3,)), case="seed 7")
CASE = CaseVerdict("seed 7", (("x", (2, 3)),), 7, "by hand", (GOOD,), (BAD,))


class TestJudgement:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_the_margin(self, dtype):
        original = Errors(1e-3, 1e-3, 0)
        allowed = ALLOWED_FACTOR * 1e-3 + ALLOWED_FLOOR[dtype]
        assert allowed_error(original, dtype) == allowed
        assert comparison(original, Errors(1, allowed, 0), dtype).passed
        assert not comparison(original, Errors(1, allowed * 1.0001, 0), dtype).passed

    def test_no_new_infinities(self):
        assert comparison(Errors(0, 0, 2), Errors(0, 0, 2)).passed
        assert not comparison(Errors(0, 0, 2), Errors(0, 0, 3)).passed
        assert not comparison(Errors(NAN, NAN, 4), Errors(NAN, NAN, 4)).passed

    def test_a_problem_fails_whatever_the_numbers(self):
        assert not comparison(Errors(0, 0, 0), Errors(0, 0, 0), problem="it does not run").passed

    def test_nothing_compared_is_not_passed(self):
        assert not Verdict((), "cpu").passed
        verdict = Verdict((CaseVerdict("seed 0", (), 0),), "cpu")
        assert not verdict.passed
        assert "Nothing was compared" in verdict.suggestion


class TestVerdict:
    def test_the_worst_of_the_cases_is_shown(self):
        worse = comparison(Errors(1e-6, 1e-6, 0), Errors(3e-6, 3e-6, 0), block="attn-1", case="length 1")
        nan = comparison(Errors(1e-6, 1e-6, 0), Errors(NAN, NAN, 1), case="length 1")
        other = CaseVerdict("length 1", (("x", (2, 1)),), 7, "otherwise", (worse,), (nan,))
        verdict = Verdict((CASE, other), "cpu")
        assert verdict.blocks == (worse,)
        assert verdict.outputs == (nan,)
        assert (verdict.shapes, verdict.seed, verdict.truth) == ((("x", (2, 3)),), 7, "by hand")

    def test_a_block_that_fails_in_any_case_is_to_be_left(self):
        failed = comparison(Errors(0, 0, 0), Errors(1, 1, 0), block="attn-1", label="attn0", case="length 1")
        verdict = Verdict((CaseVerdict("a", (), 0, "", (GOOD,)), CaseVerdict("b", (), 0, "", (failed,))), "cpu")
        assert not verdict.passed
        assert verdict.failed_blocks == ("attn-1",)
        assert verdict.suggestion.startswith("Leave unfused: attn0 (at length 1);")

    def test_where_only_the_outputs_fail_nobody_knows_which(self):
        verdict = Verdict((CASE,), "cpu")
        assert verdict.failed_blocks == ()
        assert "gives other outputs: unfuse half of the blocks" in verdict.suggestion

    def test_a_case_that_the_fused_model_refuses_fails(self):
        right = CaseVerdict("seed 0", (), 0, "", (GOOD,))
        refused = CaseVerdict("length 1", (), 0, refusal="a sentence", refused_by="fused")
        assert not Verdict((right, refused), "cpu").passed
        assert "does not run at length 1 (it says: a sentence)" in Verdict((right, refused), "cpu").suggestion

    def test_a_case_that_the_original_refuses_says_nothing(self):
        right = CaseVerdict("seed 0", (), 0, "", (GOOD,))
        refused = CaseVerdict("length 1", (), 0, refusal="a sentence", refused_by="original")
        assert Verdict((right, refused), "cpu").passed
        assert Verdict((right, refused), "cpu").suggestion == ""

    def test_the_document(self):
        verdict = Verdict((CASE,), "cpu", ("a note",))
        document = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
        assert document["schema"] == 2
        assert document["passed"] is False
        assert document["blocks"][0]["passed"] is True
        assert document["outputs"][0]["passed"] is False
        assert document["outputs"][0]["fused"] == {"max_abs": 1, "relative": 1, "nonfinite": 0, "worst": [3]}
        assert document["outputs"][0]["allowed"] == BAD.allowed
        assert document["shapes"] == document["cases"][0]["shapes"] == {"x": [2, 3]}
        assert (document["seed"], document["provider"], document["truth"]) == (7, "cpu", "by hand")
        assert document["notes"] == ["a note"]
        assert document["failed_blocks"] == []
        assert document["suggestion"] == verdict.suggestion
        (case,) = document["cases"]
        assert (case["words"], case["passed"], case["refused_by"]) == ("seed 7", False, "")
        assert case["outputs"] == document["outputs"]

    def test_the_report_of_one_block(self):
        taken = Received("query", "q", "float32", (2, 3), -1.0, NAN, 1)
        one = comparison(Errors(1e-6, 1e-6, 0), Errors(2e-6, 2e-6, 0), block="attn-1", label="attn0", received=(taken,))
        other = comparison(Errors(0, 0, 0), Errors(1, 1, 0, (0,)), block="attn-1", label="attn0")
        verdict = Verdict(
            (
                CaseVerdict("seed 0", (("x", (2, 3)),), 0, "", (one,)),
                CaseVerdict("length 1", (("x", (2, 1)),), 0, "", (other,)),
                CaseVerdict("length 7", (("x", (2, 7)),), 0, refusal="no", refused_by="original"),
            ),
            "cpu",
        )
        report = json.loads(json.dumps(verdict.block_report("attn-1"), allow_nan=False))
        assert (report["schema"], report["block"], report["label"], report["passed"]) == (2, "attn-1", "attn0", False)
        first, second = report["cases"]
        assert (first["words"], first["seed"], first["shapes"]) == ("seed 0", 0, {"x": [2, 3]})
        assert first["received"][0] == {
            "role": "query", "name": "q", "dtype": "float32", "shape": [2, 3], "low": -1.0, "high": None, "nonfinite": 1
        }  # fmt: skip
        assert (second["passed"], second["fused"]["worst"]) == (False, [0])
        with pytest.raises(KeyError):
            verdict.block_report("attn-2")
