"""New names for values and nodes of a protobuf graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx

from explorer.model.survey import bodies, own_values


class Names:
    """Hands out names that nobody has; `taken` are those that somebody has."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self._tried: dict[str, int] = {}

    def unique(self, wish: str) -> str:
        """`wish`, or if someone has it `wish_2`, `wish_3`, …; taken from now on."""
        name = wish
        while name in self.taken:
            self._tried[wish] = self._tried.get(wish, 1) + 1
            name = f"{wish}_{self._tried[wish]}"
        self.taken.add(name)
        return name


def rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str], fresh: Callable[[str], str]) -> None:
    """Give the values that `nodes` read and compute their new `names`; bodies name their own as `fresh` says."""
    for node in nodes:
        for field in (node.input, node.output):
            for at, name in enumerate(field):
                if name in names:
                    field[at] = names[name]
        for attribute in node.attribute:
            for body in bodies(attribute):
                rename_graph(body, names, fresh)


def rename_graph(graph: onnx.GraphProto, outer: Mapping[str, str], fresh: Callable[[str], str]) -> None:
    """The same for the body `graph` of some node: `outer` are the new names around it."""
    names = {**outer, **{name: fresh(name) for name in own_values(graph)}}
    stored = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
    for named in (*graph.input, *stored, *graph.output, *graph.value_info):
        named.name = names.get(named.name, named.name)
    rename(graph.node, names, fresh)
