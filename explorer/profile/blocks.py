"""Which attention block a node of ONNX Runtime's graph works for, and what it does there. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from explorer.profile.ort_graph import OrtGraph, OrtNode
from explorer.profile.values import Region

_OUTSIDE = ""
"""Stands for the block of what the graph is given and gives."""


class Membership:
    """Blocks of a graph's nodes.

    A node of the file keeps its name or, merged with others, the name of what it computes. What ONNX Runtime put in
    (a Cast, a copy between devices) is a block's if all that it reads and all that reads it, beside constants, is
    that block's.
    """

    def __init__(self, graph: OrtGraph, regions: Sequence[Region]) -> None:
        """`graph`: the one that ran; `regions`: the blocks as they are in the file that it was made from."""
        self._of = {name: (region.block, role) for region in regions for name, role in region.nodes if name}
        computed = {value: region.block for region in regions for value in region.outputs if value}
        for node in graph.nodes:
            block = next((computed[value] for value in node.outputs if value in computed), None)
            if block is not None:
                self._of.setdefault(node.name, (block, ""))
        if self._of:
            for name, block in _enclosed(graph, {name: block for name, (block, _) in self._of.items()}):
                self._of[name] = (block, "")

    def of(self, name: str) -> tuple[str, str]:
        """(block, role) of the node with this name; ("", "") if it works for none."""
        return self._of.get(name, ("", ""))


def _enclosed(graph: OrtGraph, blocks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, block) of the nodes without a block that lie, alone or with others of them, between nodes of one block."""
    makers = {value: node for node in graph.nodes for value in node.outputs if value}
    readers: dict[str, list[OrtNode]] = defaultdict(list)
    for node in graph.nodes:
        for value in node.inputs:
            readers[value].append(node)

    def before(node: OrtNode) -> Iterator[OrtNode | None]:
        return (makers.get(value) for value in node.inputs if value and value not in graph.constants)

    def after(node: OrtNode) -> Iterator[OrtNode | None]:
        for value in filter(None, node.outputs):
            yield from readers[value]
            if value in graph.outputs:
                yield None

    reached: set[int] = set()
    for start in graph.nodes:
        if start.name in blocks or id(start) in reached:
            continue
        reached.add(id(start))
        members = [start]
        read_from, read_by = set[str](), set[str]()
        for node in members:  # which grows while it is walked through
            for around, found in ((before(node), read_from), (after(node), read_by)):
                for neighbour in around:
                    if neighbour is None:
                        found.add(_OUTSIDE)
                    elif neighbour.name in blocks:
                        found.add(blocks[neighbour.name])
                    elif id(neighbour) not in reached:
                        reached.add(id(neighbour))
                        members.append(neighbour)
        if len(read_from) == 1 and read_from == read_by and _OUTSIDE not in read_from:
            (block,) = read_from
            yield from ((node.name, block) for node in members)
