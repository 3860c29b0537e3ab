from __future__ import annotations

from dataclasses import replace

import pytest
from profile_values import PROFILE, TRACE, measurement, point, profile, refused, variant

from explorer.errors import InputError
from explorer.profile.compare import Difference, OpChange, compare
from explorer.profile.values import Dispatch, Ratio

SHAPES = (("n", ()), ("x", (2, 938, 100)))
OTHER = (("x", (2, 9, 100)),)


def test_a_profile_compared_with_itself_has_not_changed():
    found = compare(PROFILE, PROFILE)
    assert (found.conditions, found.graphs, found.only_before, found.only_after) == ((), (), (), ())
    assert [change.variant for change in found.changes] == ["original", "fused"] * 2
    original, fused, _, refused = found.changes
    assert original.ratio.sign == 0
    assert (original.before_ms, original.after_ms, original.shapes) == (2.0, 2.0, SHAPES)
    assert original.ratio.value == 1.0
    assert original.ratio.low < 1 < original.ratio.high  # the runs of two profiles are no pairs
    assert [(op.op_type, op.before_us == op.after_us) for op in original.ops] == [
        ("Cast", True),
        ("MatMul", True),
        ("Shape", True),
    ]
    assert (fused.ops, fused.dispatch) == ((), ())
    assert (refused.before_ms, refused.ratio) == (None, None)


def test_what_differs_is_said_of_each_side():
    before = profile(
        point(measurement("a"), measurement("gone")), point(measurement("a"), measurement("gone"), shapes=OTHER)
    )
    after = replace(
        profile(point(measurement("new"), measurement("a", (1.0,)), shapes=SHAPES)),
        environment=(("gpu", "NVIDIA H200"), ("driver", "580")),
        variants=(variant("new"), variant("a", plan="00ff", cuda_graph=True, ops=(("Cast", 1),), memcpy_nodes=4)),
        runs=1,
        seed=7,
    )
    found = compare(before, after)
    assert found.conditions == (
        Difference("runs", "6", "1"),
        Difference("onnxruntime", "1.31.1", ""),
        Difference("driver", "", "580"),
    )
    assert found.graphs == (
        Difference("a: plan", "", "00ff"),
        Difference("a: CUDA graph", "no", "yes"),
        Difference("a: Casts exported", "2", "1"),
        Difference("a: Memcpy nodes", "1", "4"),
    )
    (change,) = found.changes
    assert (change.variant, change.before_ms, change.after_ms) == ("a", 2.0, 1.0)
    assert change.ratio == Ratio.of(
        before.points[0].of("a").latency, after.points[0].of("a").latency, seed=7, paired=False
    )
    assert found.only_before == (("gone", SHAPES), ("a", OTHER), ("gone", OTHER))
    assert found.only_after == (("new", SHAPES),)


def attention(node: str, seen: str) -> Dispatch:
    return Dispatch(node, "Attention", "fp16", "MATH", seen, "")


def test_operators_and_kernels_that_changed_come_from_traces_of_one_method():
    nodes = (replace(TRACE.nodes[0], time_us=100.0), replace(TRACE.nodes[1], op_type="Attention", time_us=90.0))
    dispatch = attention("one", ""), attention("two", "FLASH_ATTENTION")
    old = measurement("a", trace=TRACE, dispatch=dispatch)
    new = measurement(
        "a", trace=replace(TRACE, nodes=nodes), dispatch=(attention("one", "FLASH_ATTENTION"), dispatch[1])
    )
    (change,) = compare(profile(point(old)), profile(point(new))).changes
    assert change.ops == (
        OpChange("MatMul", 400.0, 100.0),
        OpChange("Cast", 100.25, 0.0),
        OpChange("Attention", 0.0, 90.0),
        OpChange("Shape", 0.0, 0.0),
    )
    assert change.dispatch == (Difference("one", "MATH", "FLASH_ATTENTION"),)

    blocking = replace(new, trace=replace(new.trace, method="launch-blocking"))
    (change,) = compare(profile(point(old)), profile(point(blocking))).changes
    assert (change.ops, len(change.dispatch)) == ((), 1)
    (change,) = compare(profile(point(old)), profile(point(replace(new, trace=None, dispatch=())))).changes
    assert (change.ops, change.dispatch) == ((), ())


@pytest.mark.parametrize("sides", [("a", "b"), ("b", "a")])
def test_a_variant_that_ran_only_once_is_compared_as_far_as_that_goes(sides):
    items = {"a": measurement("v"), "b": refused("v", "No memory.")}
    (change,) = compare(*(profile(point(items[side])) for side in sides)).changes
    assert {change.before_ms, change.after_ms} == {2.0, None}
    assert change.ratio is None


def test_profiles_that_have_nothing_in_common_are_refused():
    other = profile(point(measurement("another")))
    with pytest.raises(InputError, match="found original, fused then and another now"):
        compare(PROFILE, other)
