"""Where everything is drawn: a layered layout, top to bottom, at a fixed row pitch.

Three small steps, each deterministic:

1. *Rows.* Longest path from the inputs; what is only needed later slides down to where it is needed.
2. *Order.* Edges longer than one row get a bend in each row they cross; barycentre sweeps then order each row, starting
   from the order in which the nodes read their inputs (Q left of K left of V).
3. *Columns.* Chains and long edges become straight, branches symmetric: see `columns`.

One unit is one row pitch, in both directions; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from explorer.view.columns import columns, settle

ORDER_SWEEPS = 8
GAP = 0.7
"""Free space between two boxes in a row."""
PART_GAP = 3.0
BEND_GAP = 0.45
"""… and beside a line that passes."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Layout:
    """Centres of the nodes, and for each edge the points it passes, ends included."""

    positions: Mapping[str, Point]
    routes: Mapping[tuple[str, str], tuple[Point, ...]]
    rows: int


def layered(graph: nx.DiGraph, width: Callable[[str], float]) -> Layout:
    """Lay out an acyclic graph; `width(node)` is the width of its box in row pitches.

    Parts that no line joins (what feeds only ports) stand one below the other to the right of the largest.
    """
    parts = [_connected(part, width) for part in _parts(graph)]
    positions: dict[str, Point] = {}
    routes: dict[tuple[str, str], tuple[Point, ...]] = {}
    edge, row = 0.0, 0
    for index, part in enumerate(parts):
        left = min(x - width(node) / 2 for node, (x, _) in part.positions.items())
        right = max(x + width(node) / 2 for node, (x, _) in part.positions.items())
        across, down = edge - left, row
        positions |= {node: (x + across, y + down) for node, (x, y) in part.positions.items()}
        routes |= {ends: tuple((x + across, y + down) for x, y in route) for ends, route in part.routes.items()}
        if index == 0:
            edge = right - left + PART_GAP
        else:
            row += part.rows + 1
    rows = 1 + int(max((y for _, y in positions.values()), default=-1.0))
    return Layout({node: positions[node] for node in graph}, {ends: routes[ends] for ends in graph.edges}, rows)


def _parts(graph: nx.DiGraph) -> list[nx.DiGraph]:
    """The connected parts, the largest first, with nodes and inputs in the order of `graph`."""
    parts = []
    place = {node: index for index, node in enumerate(graph)}
    for members in nx.weakly_connected_components(graph):
        part: nx.DiGraph = nx.DiGraph()
        part.add_nodes_from(sorted(members, key=place.__getitem__))
        part.add_edges_from((source, node) for node in part for source in graph.predecessors(node))
        parts.append(part)
    return sorted(parts, key=len, reverse=True)


def _connected(graph: nx.DiGraph, width: Callable[[str], float]) -> Layout:
    alone = _alone(graph)
    rows = _rows(graph, alone)
    chains = {edge: _chain(edge, rows) for edge in graph.edges}
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    net = _Net.of(graph, rows, links)
    layers = _order(net, _initial_layers(graph, rows, chains))

    def is_bend(node: _Node) -> bool:
        return isinstance(node, tuple)

    def distance(left: _Node, right: _Node) -> float:
        halves = sum(width(node) / 2 for node in (left, right) if not isinstance(node, tuple))
        return halves + (BEND_GAP if is_bend(left) or is_bend(right) else GAP)

    def spine(neighbours: Sequence[_Node]) -> Sequence[_Node]:
        return [node for node in neighbours if not is_bend(node) and node not in alone] or neighbours

    # Nodes line up along the main path: a passing line or a side chain gives way wherever another neighbour is there.
    above = {node: spine(neighbours) for node, neighbours in net.above.items()}
    below = {node: spine(neighbours) for node, neighbours in net.below.items()}
    x = columns(
        layers,
        {node: [n for n in neighbours if node in below[n]] for node, neighbours in above.items()},
        {node: [n for n in neighbours if node in above[n]] for node, neighbours in below.items()},
        distance=distance,
        is_bend=is_bend,
    )
    settle(layers, links, x, distance)
    place = {node: (x[node], float(net.row[node])) for layer in layers for node in layer}
    return Layout(
        positions={node: place[node] for node in graph},
        routes={edge: tuple(place[node] for node in chain) for edge, chain in chains.items()},
        rows=len(layers),
    )


_Bend = tuple[str, str, int]
_Node = str | _Bend


@dataclass(frozen=True, slots=True)
class _Net:
    """Nodes and bends with their row and their neighbours one row above and one below."""

    row: dict[_Node, int]
    above: dict[_Node, list[_Node]]
    below: dict[_Node, list[_Node]]

    @staticmethod
    def of(graph: nx.DiGraph, rows: Mapping[str, int], links: Sequence[tuple[_Node, _Node]]) -> _Net:
        row: dict[_Node, int] = {node: rows[node] for node in graph}
        above: dict[_Node, list[_Node]] = {node: [] for node in graph}
        below: dict[_Node, list[_Node]] = {node: [] for node in graph}
        for source, target in links:
            for node in (source, target):
                if isinstance(node, tuple):
                    row[node] = node[2]
                    above.setdefault(node, [])
                    below.setdefault(node, [])
            above[target].append(source)
            below[source].append(target)
        return _Net(row, above, below)


def _alone(graph: nx.DiGraph) -> set[str]:
    """Nodes of side chains: they start by themselves (a port, its Slice, its Unsqueeze) and feed one node each."""
    alone: set[str] = set()
    for node in nx.topological_sort(graph):
        if all(source in alone and graph.out_degree(source) == 1 for source in graph.predecessors(node)):
            alone.add(node)
    return alone


def _rows(graph: nx.DiGraph, alone: set[str]) -> dict[str, int]:
    """A row for each node, every edge pointing down: as high as possible, except for what is only needed later.

    Side chains and nodes that fan out sit just above their first reader, and so does what only feeds those; the
    branches of an attention block, fixed at both ends, stay side by side.
    """
    order = list(nx.topological_sort(graph))
    row: dict[str, int] = {}
    for node in order:
        row[node] = max((row[source] + 1 for source in graph.predecessors(node)), default=0)
    late: set[str] = set()
    for node in reversed(order):
        readers = list(graph.successors(node))
        sources = graph.in_degree(node)
        if readers and (node in alone or len(readers) > sources or (sources == 1 and late.issuperset(readers))):
            late.add(node)
            row[node] = min(row[reader] for reader in readers) - 1
    top = min(row.values(), default=0)
    return {node: row[node] - top for node in graph}


def _chain(edge: tuple[str, str], rows: Mapping[str, int]) -> list[_Node]:
    source, target = edge
    return [source, *((source, target, row) for row in range(rows[source] + 1, rows[target])), target]


def _initial_layers(
    graph: nx.DiGraph, rows: Mapping[str, int], chains: Mapping[tuple[str, str], list[_Node]]
) -> list[list[_Node]]:
    """Nodes and bends of each row as a walk from the outputs upwards meets them, each node's inputs left to right."""
    layers: list[list[_Node]] = [[] for _ in range(max(rows.values(), default=-1) + 1)]
    placed: set[str] = set()
    stack = [node for node in reversed(list(graph)) if graph.out_degree(node) == 0][::-1]
    while stack:
        node = stack.pop()
        if node in placed:
            continue
        placed.add(node)
        layers[rows[node]].append(node)
        sources = list(graph.predecessors(node))
        for source in sources:
            for bend in chains[source, node][1:-1]:
                layers[bend[2]].append(bend)  # type: ignore[index]  # the inner part of a chain is bends
        stack.extend(reversed(sources))
    return layers


def _order(net: _Net, layers: list[list[_Node]]) -> list[list[_Node]]:
    """Order each row by the mean place of its neighbours, down and up, keeping the order with the fewest crossings."""
    best, fewest = layers, _crossings(net, layers)
    for sweep in range(ORDER_SWEEPS):
        down = sweep % 2 == 0
        toward = net.above if down else net.below
        current = [list(layer) for layer in layers]
        place: dict[_Node, float] = {}
        for layer in current if down else reversed(current):
            centre = (len(layer) - 1) / 2
            wish = {
                node: (sum(place[n] for n in toward[node]) / len(toward[node]) if toward.get(node) else index - centre)
                for index, node in enumerate(layer)
            }
            layer.sort(key=wish.__getitem__)
            place.update((node, index - centre) for index, node in enumerate(layer))
        layers = current
        crossings = _crossings(net, layers)
        if crossings < fewest:
            best, fewest = layers, crossings
        if fewest == 0:
            break
    return best


def _crossings(net: _Net, layers: Sequence[Sequence[_Node]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        place = {node: index for index, node in enumerate(lower)}
        tree = [0] * (len(lower) + 1)  # Fenwick tree: how many edges so far end at or left of a place
        seen = 0
        for node in upper:
            ends = sorted(place[n] for n in net.below.get(node, ()))
            for end in ends:
                index, left = end + 1, 0
                while index:
                    left += tree[index]
                    index &= index - 1
                total += seen - left
            for end in ends:
                seen += 1
                index = end + 1
                while index <= len(lower):
                    tree[index] += 1
                    index += index & -index
    return total
