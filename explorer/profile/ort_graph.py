"""The graph as ONNX Runtime runs it, read from the optimized model that it writes: the nodes that a trace speaks of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, NodeProto

from explorer.profile.values import Counts, counts

MEMCPY = frozenset({"MemcpyFromHost", "MemcpyToHost"})
"""Operators of nodes that ONNX Runtime puts in to move tensors between devices."""


@dataclass(frozen=True, slots=True)
class OrtNode:
    """A node, with the values that it reads and computes ("" for one left out) and its attributes that are numbers."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class OrtGraph:
    """All nodes, those of bodies too, and the names of stored values (initializers) and of the graphs' outputs."""

    nodes: tuple[OrtNode, ...]
    constants: frozenset[str]
    outputs: frozenset[str]

    @property
    def ops(self) -> Counts:
        """How often each op type occurs, the most frequent first."""
        return counts(node.op_type for node in self.nodes)

    @property
    def memcpy_nodes(self) -> int:
        """Nodes that ONNX Runtime put in to move tensors between devices."""
        return sum(node.op_type in MEMCPY for node in self.nodes)


def read(path: str | Path, executed: Iterable[tuple[str, str]] = ()) -> OrtGraph:
    """The graph in a model file; its external data is not read.

    `executed`: (name, op type) of the nodes of a run, without those of bodies, in order. Nodes of the file that have no
    name get the one that they ran under.
    """
    model = onnx.load(path, load_external_data=False)
    _name_as_run(model.graph, executed)
    graphs = tuple(_graphs(model.graph))
    constants = (tensor.name for graph in graphs for tensor in graph.initializer)
    outputs = (value.name for graph in graphs for value in graph.output)
    nodes = tuple(_node(node) for graph in graphs for node in graph.node)
    return OrtGraph(nodes, frozenset(constants), frozenset(outputs))


def _name_as_run(graph: GraphProto, executed: Iterable[tuple[str, str]]) -> None:
    """ONNX Runtime calls nodes without a name, which it makes when it inlines functions, by operator and a number.

    But it writes nodes in the order in which it runs them, so those of one operator can be told by their order.
    """
    known = {node.name for node in graph.node}
    ran, written = defaultdict[str, list[str]](list), defaultdict[str, list[NodeProto]](list)
    for name, op_type in executed:
        if name not in known:
            ran[op_type].append(name)
    for node in graph.node:
        if not node.name:
            written[node.op_type].append(node)
    for op_type, nodes in written.items():
        if len(nodes) == len(ran[op_type]):
            for node, name in zip(nodes, ran[op_type], strict=True):
                node.name = name


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(body)


def _node(node: NodeProto) -> OrtNode:
    attributes = tuple((attribute.name, number) for attribute in node.attribute for number in _number(attribute))
    return OrtNode(node.name, node.op_type, node.domain, tuple(node.input), tuple(node.output), attributes)


def _number(attribute: AttributeProto) -> Iterator[float]:
    if attribute.type == AttributeProto.INT:
        yield float(attribute.i)
    elif attribute.type == AttributeProto.FLOAT:
        yield attribute.f
