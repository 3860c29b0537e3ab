from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from recorded_runs import NO_GRAPH, recorded, recording

from explorer.profile.attribution import trace_of
from explorer.profile.perfetto import chrome_trace
from explorer.profile.values import Measurement, Point, Profile, Region

BLOCK = "/transformer_blocks.0/attn"
REGION = Region("b0", ((f"{BLOCK}/MultiHeadAttention", ""),), ())


def profile(**traces):
    measurements = tuple(Measurement(name, 1.0, None, None, trace, (), "") for name, trace in traces.items())
    return Profile(
        provider="cuda",
        provider_note="",
        environment=(("onnxruntime", "1.31.1"),),
        labels=(("b0", "layer 0"),),
        source="abc",
        runs=1,
        seed=0,
        variants=(),
        points=(Point((("x", (2, 256, 100)), ("t", ())), 1, True, (), measurements),),
        notes=(),
    )


@pytest.fixture(scope="module")
def exported():
    mha, original = (trace_of(recorded(name), NO_GRAPH, [REGION]) for name in ("mha", "original"))
    return chrome_trace(profile(original=original, none=None, mha=mha)), mha


def of(exported, phase, pid):
    return [event for event in exported["traceEvents"] if event["ph"] == phase and event["pid"] == pid]


def test_each_variant_and_shape_is_a_process_and_each_lane_a_thread(exported):
    found, _ = exported
    names = [
        (event["name"], event["pid"], event["args"].get("name")) for event in found["traceEvents"] if event["ph"] == "M"
    ]
    assert ("process_name", 1, "original · x 2×256×100, t scalar") in names
    assert ("process_name", 2, "mha · x 2×256×100, t scalar") in names
    assert [name for kind, pid, name in names if (kind, pid) == ("thread_name", 2)] == ["host", "stream 599"]
    assert found["otherData"] == {"onnxruntime": "1.31.1", "provider": "cuda", "source": "abc"}
    json.dumps(found, allow_nan=False)


def test_each_gpu_slice_carries_its_node_and_block(exported):
    found, trace = exported
    gpu = [event for event in of(found, "X", 2) if event["tid"] == 1]
    assert len(gpu) == sum(piece.lane != "host" for piece in trace.timeline)
    assert all(event["args"]["node"] for event in gpu)
    (kernel,) = (
        event for event in gpu if event["args"]["node"] == f"{BLOCK}/MultiHeadAttention" and "sdpa" in event["name"]
    )
    assert kernel["args"] == {
        "node": f"{BLOCK}/MultiHeadAttention",
        "op_type": "MultiHeadAttention",
        "provider": "cuda",
        "block": "layer 0",
        "inputs": ", ".join(["float16[2,256,1024]"] * 3),
        "outputs": "float16[2,256,1024]",
    }
    assert kernel["cat"] == "kernel"
    assert Counter(event["cat"] for event in gpu)["device to device"] == 4


def test_arrows_lead_from_the_host_to_the_gpu(exported):
    found, _ = exported
    starts, ends = of(found, "s", 2), of(found, "f", 2)
    gpu = [event for event in of(found, "X", 2) if event["tid"] == 1]
    assert len(starts) == len(ends) == len(gpu)
    assert len({event["id"] for event in found["traceEvents"] if event["ph"] == "s"}) == len(
        [event for event in found["traceEvents"] if event["ph"] == "s"]
    )
    host = {event["ts"] for event in of(found, "X", 2) if event["tid"] == 0}
    for start, end in zip(starts, ends, strict=True):
        assert (start["id"], start["tid"]) == (end["id"], 0)
        assert start["ts"] in host
        assert start["ts"] <= end["ts"]


def test_a_node_that_runs_several_times_is_left_by_its_latest_start():
    trace = trace_of(
        recording([(0, 99)], [("n", 0, 9), ("n", 20, 29)], [(1, 2, 4), (2, 22, 24)], [(1, 5, 6), (2, 50, 51)]),
        NO_GRAPH,
        (),
    )
    found = chrome_trace(profile(one=trace))
    assert [event["ts"] for event in of(found, "s", 1)] == [0, 20]


def test_nobodys_work_has_no_arrow_and_no_arguments():
    trace = trace_of(recording([(0, 99)], [], [(1, 2, 4)], [(1, 5, 6)]), NO_GRAPH, ())
    found = chrome_trace(profile(one=trace))
    (kernel,) = of(found, "X", 1)
    assert (kernel["name"], kernel["args"]) == ("kernel", {})
    assert of(found, "s", 1) == []


def test_a_profile_without_traces_has_no_events():
    assert chrome_trace(profile(one=None))["traceEvents"] == []
    assert chrome_trace(replace(profile(), points=()))["traceEvents"] == []
