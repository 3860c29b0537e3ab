"""What of a model is worth drawing: `GraphInfo` → a networkx graph of visible items.

Constants, weights and shape arithmetic are folded away: they are in the hover text of the node that reads them. What
feeds more than a handful of nodes (a mask, a time embedding, AdaLN's shifts and gates) is a small labelled port above
each reader instead of a fan of lines across the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx

from explorer.model.describe import GraphInfo, NodeInfo

Kind = Literal["node", "input", "output", "port"]

PORT_FANOUT = 4
"""The outputs of a node with more visible readers than this are drawn as ports."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing on the canvas. `key`: which node, for a node; `tensor`: which, for an input, an output or a port."""

    id: str
    kind: Kind
    key: str
    op_type: str
    tensor: str


def visible_graph(info: GraphInfo, keep: Collection[str] = ()) -> nx.DiGraph:
    """The graph to draw: nodes are item ids with attribute `item`, edges carry `tensors` (names, in input order).

    Nodes whose keys are in `keep` are never folded. Insertion order is deterministic: inputs, nodes in topological
    order, outputs; the edges into a node are in the order of its inputs.
    """
    graph: nx.DiGraph = nx.DiGraph()
    folded = _folded(info, frozenset(keep))
    nodes = [node for node in info.nodes if node.key not in folded]
    fans_out = _fans_out(info, nodes)
    producers: dict[str, str] = {}

    def add(kind: Kind, key: str = "", op_type: str = "", tensor: str = "") -> str:
        name = f"{tensor} → {key}" if kind == "port" else key or tensor
        item = Item(f"{kind}:{name}", kind, key, op_type, tensor)
        graph.add_node(item.id, item=item)
        return item.id

    def connect(tensor: str, target: str, key: str) -> None:
        source = producers.get(tensor)
        if source is None:
            return
        if tensor in fans_out and key:
            source = add("port", key=key, tensor=tensor)
        if graph.has_edge(source, target):
            graph.edges[source, target]["tensors"] += (tensor,)
        else:
            graph.add_edge(source, target, tensors=(tensor,))

    for name in info.inputs:
        producers[name] = add("input", tensor=name)
    for node in nodes:
        target = add("node", key=node.key, op_type=node.op_type)
        for name in dict.fromkeys(node.inputs):
            connect(name, target, node.key)
        producers.update((name, target) for name in node.outputs if name)
    for name in info.outputs:
        connect(name, add("output", tensor=name), "")
    # An input that ends in ports would hang in the air beside them.
    hanging = [producers[name] for name in info.inputs if name in fans_out and not graph.out_degree(producers[name])]
    graph.remove_nodes_from(hanging)
    return graph


def _folded(info: GraphInfo, keep: frozenset[str]) -> set[str]:
    """Keys of the nodes that are not drawn: what never depends on an input's contents, unless it is a result itself."""
    outputs = set(info.outputs)
    return {
        node.key for node in info.nodes if node.constant and node.key not in keep and outputs.isdisjoint(node.outputs)
    }


def _fans_out(info: GraphInfo, nodes: Sequence[NodeInfo]) -> set[str]:
    """Tensors whose producer (a node, or the graph input itself) has more visible readers than a handful."""
    readers = Counter(name for node in nodes for name in set(node.inputs))
    groups = [(name,) for name in info.inputs] + [node.outputs for node in nodes]
    return {name for group in groups if sum(readers[name] for name in group) > PORT_FANOUT for name in group if name}
