from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import NO_GRAPH, recorded, recording

from explorer.profile.attribution import trace_of
from explorer.profile.recording import GpuWork, Launch, NodeRun, Recording, RunSpan
from explorer.profile.trace import UNATTRIBUTED
from explorer.profile.values import Region


def times(trace):
    return {node.name: node.time_us for node in trace.nodes}


@pytest.mark.parametrize(
    ("name", "nodes", "busy_us", "attention_us"),
    [("original", 102, 278.1, None), ("mha", 84, 229.9, 13.57), ("attention", 84, 232.4, 16.82)],
)
def test_all_work_of_the_h200_is_attributed(name, nodes, busy_us, attention_us):
    trace = trace_of(recorded(name), NO_GRAPH, ())
    assert (trace.method, trace.runs, len(trace.nodes)) == ("cupti", 2, nodes)
    assert trace.unattributed_us == 0
    assert trace.busy_us == pytest.approx(busy_us, abs=0.1)
    assert sum(times(trace).values()) == pytest.approx(trace.busy_us)  # one stream: nothing overlaps
    ops = {op.op_type: op.time_us for op in trace.ops}
    attention = ops.get("MultiHeadAttention", ops.get("Attention"))
    assert attention == (attention_us if attention_us is None else pytest.approx(attention_us, abs=0.01))
    assert trace.idle_us + trace.busy_us < trace.wall_us
    assert trace.idle_us > 0.5 * trace.busy_us  # short runs like these wait for the host
    assert trace.arena_held_bytes >= trace.arena_peak_bytes > 2**25


def test_the_parts_of_an_unfused_block_of_the_h200():
    prefix = "/transformer_blocks.0/attn/"
    roles = {"MatMul": "qk", "Cast": "cast", "Mul_4": "scale", "Softmax": "softmax", "Cast_1": "cast", "MatMul_1": "pv"}
    region = Region("block", tuple((prefix + name, role) for name, role in roles.items()), ())
    trace = trace_of(recorded("original"), NO_GRAPH, [region])
    (block,) = trace.regions
    assert (block.block, block.count) == ("block", 6)
    parts = {part.op_type: part.time_us for part in block.parts}
    assert parts == pytest.approx({"cast": 6.75, "scale": 4.5, "softmax": 4.3, "qk": 3.7, "pv": 3.4}, abs=0.1)
    assert block.time_us == pytest.approx(sum(parts.values()))


def test_kernels_copies_and_shapes_of_the_h200():
    trace = trace_of(recorded("mha"), NO_GRAPH, ())
    attention = next(node for node in trace.nodes if node.op_type == "MultiHeadAttention")
    assert attention.inputs == ("float16[2,256,1024]",) * 3
    assert [trace.kernels[at].name[:22] for at in attention.kernels] == ["cudnn_generated_fort_n"]
    assert {copies.kind: (copies.count, copies.size_bytes) for copies in trace.copies} == {
        "device to device": (4, 131072),
        "memset": (2, 8),
    }
    assert next(node for node in trace.nodes if node.name == "/rotary_embed/Gather").provider == "cpu"
    assert {piece.lane for piece in trace.timeline} == {"host", "stream 599"}


def test_work_belongs_to_the_innermost_node():
    trace = trace_of(
        recording(
            runs=[(0, 100)],
            nodes=[("loop", 5, 60), ("step", 10, 20), ("step", 30, 40), ("after", 70, 80)],
            launches=[(1, 6, 8), (2, 12, 14), (3, 32, 34), (4, 50, 52), (5, 72, 74)],
            work=[(1, 101, 102), (2, 102, 104), (3, 104, 108), (4, 108, 116), (5, 116, 132)],
        ),
        NO_GRAPH,
        (),
    )
    assert times(trace) == {"loop": 9, "step": 6, "after": 16}
    assert [(node.name, node.host_time_us, node.launches) for node in trace.nodes] == [
        ("loop", 35, 2),  # without its body's
        ("step", 20, 2),
        ("after", 10, 1),
    ]


def test_nodes_of_the_same_name_in_different_bodies_are_different_nodes():
    trace = trace_of(
        recording([(0, 100)], [("a", 0, 30), ("x", 5, 10), ("b", 40, 70), ("x", 45, 55)], method="node-timer"),
        NO_GRAPH,
        (),
    )
    assert [(node.name, node.time_us) for node in trace.nodes] == [("a", 25), ("x", 5), ("b", 20), ("x", 10)]
    assert trace.busy_us == 60


def test_a_body_may_end_a_rounding_later_but_what_follows_at_once_is_no_body():
    nodes = [("loop", 0, 10), ("step", 5, 11), ("next", 20, 30), ("last", 30, 31)]
    trace = trace_of(recording([(0, 50)], nodes, method="node-timer"), NO_GRAPH, ())
    assert times(trace) == {"loop": 4, "step": 6, "next": 10, "last": 1}


def test_shapes_are_those_of_the_last_execution():
    nodes = [("n", at, at + 5, "Relu", "cpu", (f"float32[{at}]",), (f"float32[{at},1]",)) for at in (10, 20, 30)]
    (node,) = trace_of(recording([(0, 50)], nodes, method="node-timer"), NO_GRAPH, ()).nodes
    assert (node.inputs, node.outputs) == (("float32[30]",), ("float32[30,1]",))


def test_work_that_is_nobodys_is_told_and_earlier_work_is_left_out():
    trace = trace_of(
        recording(
            runs=[(100, 200), (300, 400)],
            nodes=[("n", 110, 120), ("n", 310, 320)],
            launches=[(5, 50, 60), (6, 111, 113), (7, 150, 152), (9, 311, 313)],
            work=[(4, 105, 106), (5, 130, 140), (6, 140, 141), (7, 141, 144), (8, 160, 168), (9, 330, 331)],
        ),
        NO_GRAPH,
        (),
    )
    assert times(trace) == {"n": 1}
    assert trace.unattributed_us == (3 + 8) / 2  # 7 between nodes; 8 without its launch; 4 and 5 came earlier
    assert trace.unattributed_share == pytest.approx(5.5 / 6.5)
    assert trace.busy_us == (1 + 3 + 8 + 1) / 2
    assert (trace.idle_us, trace.longest_gap_us) == (16 / 2, 16)


def test_without_any_launch_nothing_is_attributed():
    trace = trace_of(recording([(0, 50)], [("n", 0, 40)], (), [(3, 20, 30)]), NO_GRAPH, ())
    assert (trace.unattributed_us, trace.unattributed_share) == (10, 1)
    assert [piece.node for piece in trace.timeline if piece.lane != "host"] == [UNATTRIBUTED]


def test_a_launch_in_the_last_microsecond_of_a_node_is_its():
    """ONNX Runtime rounds down: the node may have ended almost 2 µs later than start and duration say."""
    found = trace_of(recording([(0, 50)], [("n", 10, 20)], [(1, 20, 21)], [(1, 30, 40)]), NO_GRAPH, ())
    assert times(found) == {"n": 10}
    missed = trace_of(recording([(0, 50)], [("n", 10, 20)], [(1, 21, 22)], [(1, 30, 40)]), NO_GRAPH, ())
    assert missed.unattributed_us == 10


@pytest.mark.parametrize(("method", "cpu_us"), [("launch-blocking", 0), ("node-timer", 7)])
def test_without_cupti_times_are_the_node_timers(method, cpu_us):
    nodes = [("gpu", 10, 20, "MatMul", "cuda"), ("cpu", 30, 37, "Shape", "cpu")]
    trace = trace_of(recording([(0, 50)], nodes, method=method), NO_GRAPH, ())
    assert times(trace) == {"gpu": 10, "cpu": cpu_us}
    assert [node.host_time_us for node in trace.nodes] == [10, 7]
    assert trace.busy_us == 10 + cpu_us
    assert (trace.idle_us, trace.unattributed_us, trace.kernels, trace.copies) == (0, 0, (), ())


def test_the_note_says_what_is_missing():
    assert "CUPTI" in trace_of(recording([(0, 9)], []), NO_GRAPH, ()).note
    assert "no room for 12 records" in trace_of(recording([(0, 9)], [], dropped=12), NO_GRAPH, ()).note
    assert "CUDA_LAUNCH_BLOCKING" in trace_of(recording([(0, 9)], [], method="launch-blocking"), NO_GRAPH, ()).note


def test_a_node_that_only_an_earlier_run_had_comes_last():
    nodes = [("a", 0, 4), ("then", 5, 9), ("a", 100, 108), ("else", 110, 120)]
    trace = trace_of(recording([(0, 50), (90, 150)], nodes, method="node-timer"), NO_GRAPH, ())
    assert [(node.name, node.time_us) for node in trace.nodes] == [("a", 6), ("else", 5), ("then", 2)]
    assert [(piece.node, piece.start_us) for piece in trace.timeline] == [(0, 10), (1, 20)]


# A schedule is what is meant: nodes that launch work. It is rendered as the records and events of it, which carry times
# only, whole microseconds for nodes; attributed; and compared with what was meant.


@dataclass(frozen=True)
class Work:
    kind: str
    name: str
    stream: int
    delay_ns: int
    length_ns: int
    size_bytes: int
    recorded: bool = True


@dataclass(frozen=True)
class Node:
    before: tuple[Work, ...]
    body: tuple[Node, ...]
    after: tuple[Work, ...]


@dataclass
class Rendered:
    """What is written down of a schedule, and what it must come to."""

    waits: object
    now_ns: int
    ids: int = 5
    nodes: list = field(default_factory=list)
    launches: list = field(default_factory=list)
    work: list = field(default_factory=list)
    meant: dict = field(default_factory=dict)  # key or None → work
    of_run: list = field(default_factory=list)

    def launch(self, work, key):
        self.now_ns += next(self.waits)
        start_ns, end_ns = self.now_ns, self.now_ns + 2000 + next(self.waits)
        self.now_ns = end_ns
        self.ids += 1
        begun_ns = start_ns + work.delay_ns
        done = GpuWork(
            work.kind, work.name, self.ids, work.stream, begun_ns, begun_ns + work.length_ns, work.size_bytes
        )
        self.launches.append(Launch(self.ids, start_ns, end_ns))
        self.work.append(done)
        self.meant.setdefault(key, []).append(done)
        self.of_run[-1].append(done)

    def node(self, node, key):
        self.now_ns += next(self.waits)
        start_ns = self.now_ns
        for work in node.before:
            self.launch(work, key)
        for at, inner in enumerate(node.body):
            self.node(inner, (*key, f"n{at}"))
        for work in node.after:
            self.launch(work, key)
        self.now_ns += 2000 + next(self.waits)
        self.meant.setdefault(key, [])
        start_us, length_us = start_ns // 1000, (self.now_ns - start_ns) // 1000
        self.nodes.append(NodeRun(key[-1], "Op", "cuda", start_us * 1000, (start_us + length_us) * 1000, (), ()))


works = st.builds(
    Work,
    kind=st.sampled_from(["kernel", "kernel", "memset", "host to device"]),
    name=st.sampled_from(["void a::f<float>(int)", "g"]),
    stream=st.integers(1, 3),
    delay_ns=st.integers(0, 40_000),
    length_ns=st.integers(1, 9_000),
    size_bytes=st.integers(0, 99),
)
some = st.lists(works, max_size=2).map(tuple)
leaves = st.builds(Node, some, st.just(()), some)
inner = st.builds(Node, some, st.lists(leaves, max_size=2).map(tuple), some)
nodes = st.builds(Node, some, st.lists(inner, max_size=2).map(tuple), some)


def covered_ns(work):
    """How long anything was going on, found the slow way: stretch by stretch between all starts and ends."""
    edges = sorted({edge for done in work for edge in (done.start_ns, done.end_ns)})
    return sum(
        end - start
        for start, end in pairwise(edges)
        if any(done.start_ns <= start and end <= done.end_ns for done in work)
    )


@given(
    schedule=st.lists(nodes, max_size=3),
    between=some,
    earlier=some,
    runs=st.integers(1, 3),
    waits=st.lists(st.integers(0, 2_999), min_size=1, max_size=7),
    origin_ns=st.integers(0, 10**6),
    helper=st.randoms(use_true_random=False),
)
def test_a_schedule_is_found_again_from_its_records(schedule, between, earlier, runs, waits, origin_ns, helper):
    rendered = Rendered(cycle(waits), origin_ns)
    rendered.of_run.append([])
    for work in earlier:
        rendered.launch(work, "earlier")
    rendered.of_run.clear()
    spans = []
    for _ in range(runs):
        rendered.of_run.append([])
        rendered.now_ns += 2000
        start_ns = rendered.now_ns
        for at, node in enumerate(schedule):
            rendered.node(node, (f"n{at}",))
            for work in between:
                rendered.launch(work, None)
        rendered.now_ns += 2000
        spans.append(RunSpan(start_ns // 1000 * 1000, rendered.now_ns // 1000 * 1000))
    rendered.meant.pop("earlier", None)
    for records in (rendered.launches, rendered.work):
        helper.shuffle(records)  # CUPTI gives them buffer by buffer
    rendered.nodes.sort(key=lambda node: (node.start_ns, -node.end_ns))

    trace = trace_of(
        Recording(
            "cupti",
            tuple(spans),
            tuple(rendered.nodes),
            tuple(rendered.launches),
            tuple(rendered.work),
            0,
            None,
            None,
            "",
        ),
        NO_GRAPH,
        (),
    )

    nobodys = rendered.meant.pop(None, [])
    assert trace.unattributed_us == pytest.approx(sum(done.end_ns - done.start_ns for done in nobodys) / runs / 1e3)
    assert len(trace.nodes) == len(rendered.meant)
    by_name = {}
    for key, work in rendered.meant.items():
        by_name.setdefault(key[-1], []).append(
            (
                pytest.approx(sum(done.end_ns - done.start_ns for done in work) / runs / 1e3),
                len(work) / runs,
                {"f<float>" if "f" in done.name else "g" for done in work if done.kind == "kernel"},
            )
        )
    for node in trace.nodes:  # several may have a name: each is as one of them was meant
        found = (node.time_us, node.launches, {trace.kernels[at].name for at in node.kernels})
        assert found in by_name[node.name]
        by_name[node.name].remove(found)
    assert trace.busy_us == pytest.approx(sum(map(covered_ns, rendered.of_run)) / runs / 1e3)
    spread_ns = sum(
        max(done.end_ns for done in work) - min(done.start_ns for done in work) for work in rendered.of_run if work
    )
    assert trace.idle_us == pytest.approx(spread_ns / runs / 1e3 - trace.busy_us)
    assert sum(kernel.launches for kernel in trace.kernels) + sum(copies.count for copies in trace.copies) == (
        pytest.approx(sum(map(len, rendered.of_run)) / runs)
    )
    assert sum(copies.size_bytes for copies in trace.copies) == pytest.approx(
        sum(done.size_bytes for work in rendered.of_run for done in work if done.kind != "kernel") / runs
    )
    assert len(trace.timeline) == len(trace.nodes) + len(rendered.of_run[-1])
    assert all(piece.start_us >= 0 for piece in trace.timeline)


def test_records_of_several_threads_and_streams_overlap_freely():
    """Two nodes at once, each on a stream: a launch is the later node's where both could have made it."""
    base = recording([(0, 100)], [("a", 0, 40), ("b", 20, 60)], [(1, 5, 7), (2, 25, 27), (3, 50, 52)])
    streams = (
        GpuWork("kernel", "k", 1, 1, 10_000, 30_000, 0),
        GpuWork("kernel", "k", 2, 2, 28_000, 40_000, 0),
        GpuWork("kernel", "k", 3, 2, 55_000, 60_000, 0),
    )
    trace = trace_of(replace(base, work=streams), NO_GRAPH, ())
    assert times(trace) == {"a": 20, "b": 17}
    assert (trace.busy_us, trace.idle_us) == (35, 15)
    assert [piece.lane for piece in trace.timeline] == ["host", "host", "stream 1", "stream 2", "stream 2"]
