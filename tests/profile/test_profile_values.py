from __future__ import annotations

import json

import pytest
from profile_values import FUSED, ORIGINAL, PROFILE, TRACE, measurement, point, profile, refused

from explorer.errors import ExportError, InputError
from explorer.profile.values import Latency, Profile, counts


def test_a_profile_survives_json_and_hashes():
    assert Profile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE
    assert len({PROFILE, Profile.from_json(PROFILE.to_json())}) == 1


def test_a_saved_profile_is_loaded_and_not_replaced_unasked(tmp_path):
    path = PROFILE.save(tmp_path / "p.json")
    assert Profile.load(path) == PROFILE
    with pytest.raises(ExportError, match="exists"):
        PROFILE.save(path)
    other = profile(point(measurement("other")))
    assert Profile.load(other.save(path, overwrite=True)) == other


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}"], ids=len
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="found none that can be read"):
        Profile.load(path)
    with pytest.raises(InputError, match="found none that can be read"):
        Profile.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a profile of schema 2, found schema 'None'"),
        (PROFILE.to_json() | {"schema": 1}, "found schema '1'"),
        (PROFILE.to_json() | {"variants": [{}]}, r"found that the profile.variants\[0\] has no 'name'"),
        (PROFILE.to_json() | {"provider": "tpu"}, "provider should be 'cuda' or 'cpu', found 'tpu'"),
        (PROFILE.to_json() | {"strings": None}, "has no list 'strings' of strings"),
    ],
)
def test_a_document_that_is_no_profile_is_refused(document, message):
    with pytest.raises(InputError, match=message):
        Profile.from_json(document)


def traced(**changes):
    trace = {name: getattr(TRACE, name) for name in TRACE.__slots__} | changes
    return profile(point(measurement("a", trace=type(TRACE)(**trace))))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (profile(variants=()), "its variants are none"),
        (profile(point(measurement("a"), measurement("a"))), "its variants are a, a"),
        (profile(point(measurement("a")), point(measurement("b"))), "a point does not measure the profile's variants"),
        (profile(point(measurement("a"), shapes=(("x", (2, -1)),))), "negative size"),
        (profile(point(measurement("a", ()))), "no runs"),
        (profile(point(measurement("a", (1.0, 0.0)))), "took no time"),
        (profile(point(measurement("a", refusal="No."))), "both times and a refusal"),
        (profile(point(refused("a", ""))), "or neither"),
        (traced(kernels=()), "the trace of a speaks of nodes or kernels that it does not have"),
        (traced(nodes=()), "the trace of a speaks of nodes"),
    ],
)
def test_a_profile_that_does_not_hold_together_is_refused(damaged, message):
    with pytest.raises(InputError, match=message):
        Profile.from_json(damaged.to_json())


def test_variants_and_measurements_are_found_by_name():
    assert PROFILE.variant("fused").name == "fused"
    assert PROFILE.points[0].of("fused") is FUSED
    with pytest.raises(KeyError):
        PROFILE.variant("other")
    with pytest.raises(KeyError):
        PROFILE.points[0].of("other")


def test_casts_are_read_off_the_counts():
    assert (PROFILE.variants[0].casts_exported, PROFILE.variants[0].casts_optimized) == (2, 4)


def test_a_latency_keeps_its_runs_in_their_order():
    assert ORIGINAL.latency == Latency((2.0, 1.0, 3.0, 2.0, 1.0, 3.0))
    assert ORIGINAL.latency.median_ms == 2.0


def test_counts_put_the_most_frequent_first():
    assert counts(["B", "Cast", "A", "Cast"]) == (("Cast", 2), ("A", 1), ("B", 1))
    assert counts([]) == ()
