from __future__ import annotations

import json

import pytest

from explorer.errors import InputError
from explorer.profile.values import KernelDispatch, Latency, OpTime, Placement, Profile, Ratio, Variant, counts

VARIANT = Variant(
    name="original",
    latency=Latency((2.0, 1.0, 3.0)),
    load_s=0.5,
    first_run_ms=9.0,
    optimization="all",
    ops=(("Cast", 2), ("MatMul", 2), ("Softmax", 1)),
    ops_optimized=(("MatMul", 2),),
    op_times=(OpTime("MatMul", 12.5, 2.0),),
    op_times_note="Mean of 5 runs.",
    kernels=(KernelDispatch("a", "Attention", "MATH", "fp32"),),
    placement=(Placement("CPUExecutionProvider", (("MatMul", 2),)),),
)
PROFILE = Profile(
    provider="cpu",
    provider_note="On the CPU, as asked.",
    environment=(("onnxruntime", "1.31.1"),),
    shapes=(("x", (2, 938, 100)), ("n", ())),
    runs=3,
    warmup=6,
    seed=0,
    variants=(VARIANT,),
    ratio=Ratio(2.0, 1.9, 2.1),
    notes=("A note.",),
)


def test_a_profile_survives_json_and_hashes():
    assert Profile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE
    assert len({PROFILE, Profile.from_json(PROFILE.to_json())}) == 1


def test_the_document_has_a_schema_and_derived_numbers_with_units():
    document = PROFILE.to_json()
    variant = document["variants"][0]
    assert document["schema"] == 1
    assert document["shapes"] == {"x": [2, 938, 100], "n": []}
    assert variant["latency"]["median_ms"] == 2.0
    assert (variant["casts_exported"], variant["casts_optimized"]) == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "Expected a profile of schema 1, found schema 2"),
        ({"schema": None}, "found schema None"),
        ({"variants": [{}]}, "Expected a complete profile, found KeyError: 'name'"),
        ({"ratio": {"value": 1}}, "Expected a complete profile, found TypeError"),
    ],
)
def test_a_document_that_is_no_profile_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Profile.from_json(PROFILE.to_json() | change)


def test_counts_put_the_most_frequent_first():
    assert counts(["B", "Cast", "A", "Cast"]) == (("Cast", 2), ("A", 1), ("B", 1))
    assert counts([]) == ()
