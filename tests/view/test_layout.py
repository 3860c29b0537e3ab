"""Layout and folding, as data."""

from copy import deepcopy
from itertools import pairwise

import networkx as nx
from fake import HOSTILE, graph_info
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.view.graph import PORT_FANOUT, visible_graph
from explorer.view.layout import GAP, layered
from explorer.view.scene import scene


def width(node):
    return 2.0 + len(str(node)) % 3


def overlaps(layout):
    """Pairs of boxes in one row that touch."""
    rows = {}
    for node, (x, y) in layout.positions.items():
        rows.setdefault(y, []).append((x, node))
    found = []
    for row in rows.values():
        row.sort(key=lambda entry: entry[0])
        for (left, a), (right, b) in pairwise(row):
            if right - left < width(a) / 2 + width(b) / 2 + GAP - 1e-6:
                found.append((a, b))
    return found


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 24))
    graph = nx.DiGraph()
    graph.add_nodes_from(f"n{index}" for index in range(count))
    for target in range(1, count):
        for source in draw(st.sets(st.integers(0, target - 1), max_size=3)):
            graph.add_edge(f"n{source}", f"n{target}")
    return graph


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_any_acyclic_graph_is_drawn_downwards_without_overlap(graph):
    layout = layered(graph, width)
    assert set(layout.positions) == set(graph)
    assert not overlaps(layout)
    for (source, target), route in layout.routes.items():
        assert (route[0], route[-1]) == (layout.positions[source], layout.positions[target])
        assert [y for _, y in route] == list(range(int(route[0][1]), int(route[-1][1]) + 1))
        assert len(route) >= 2


@given(graphs())
@settings(max_examples=20, deadline=None)
def test_layout_is_deterministic(graph):
    assert layered(graph, width) == layered(deepcopy(graph), width)


def test_an_empty_graph_has_an_empty_layout():
    assert layered(nx.DiGraph(), width).positions == {}


def test_query_key_and_value_stand_in_order_and_the_block_below_is_a_column():
    graph = visible_graph(graph_info(1))
    positions = layered(graph, lambda node: 3.0).positions
    q, k, v = (positions[f"node:n0_{letter}:MatMul"] for letter in "qkv")
    assert q[1] == k[1] == v[1]
    assert q[0] < k[0] < v[0]
    column = {positions[f"node:n0_{part}"][0] for part in ("qk:MatMul", "up:Cast", "soft:Softmax", "out:MatMul")}
    assert len(column) == 1
    assert q[0] < positions["node:n0_qk:MatMul"][0] < k[0]


def test_weights_are_folded_and_edges_carry_tensor_names():
    info = graph_info(1)
    graph = visible_graph(info)
    assert sorted(item.kind for _, item in graph.nodes(data="item")) == ["input"] + ["node"] * 10 + ["output"]
    assert graph.edges["node:n0_q:MatMul", "node:n0_qk:MatMul"]["tensors"] == ("n0_q",)
    assert not any("hundred" in item for item in graph)


def test_what_feeds_many_nodes_ends_in_ports():
    from fake import model
    from onnx import TensorProto, helper

    from explorer.model.describe import describe

    count = PORT_FANOUT + 1
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="r")]
    nodes += [helper.make_node("Abs", ["r"], [f"a{index}"], name=f"a{index}") for index in range(count)]
    value = helper.make_tensor_value_info
    outputs = [value(f"a{index}", TensorProto.FLOAT, [1]) for index in range(count)]
    proto = helper.make_model(helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [1])], outputs))
    graph = visible_graph(describe(model(proto)))
    ports = [item for _, item in graph.nodes(data="item") if item.kind == "port"]
    assert len(ports) == count
    assert {item.tensor for item in ports} == {"r"}
    assert graph.out_degree("node:r") == 0


def test_a_graph_of_hostile_names_is_laid_out():
    info = graph_info(2, name=HOSTILE)
    assert len(scene(info, ()).boxes) == len(scene(graph_info(2), ()).boxes)
