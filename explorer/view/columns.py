"""Where in its row each node goes: the method of Brandes and Köpf (2001), for boxes of different widths.

Every node is aligned with the median of its neighbours in the next row, which chains nodes into vertical blocks; blocks
are then pushed together. Doing so from above and from below, leaning left and leaning right, gives four drawings whose
balance is compact, keeps long edges straight, and is symmetric wherever the graph is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import networkx as nx

SETTLE_SWEEPS = 120
STILL = 0.01
STRAIGHT = 1e-6

Node = TypeVar("Node", bound=Hashable)
Layers = Sequence[Sequence[Node]]
Neighbours = Mapping[Node, Sequence[Node]]


def columns(
    layers: Layers[Node],
    above: Neighbours[Node],
    below: Neighbours[Node],
    *,
    distance: Callable[[Node, Node], float],
    is_bend: Callable[[Node], bool],
) -> dict[Node, float]:
    """The x of every node; two neighbours in a row are at least `distance(left, right)` apart."""
    conflicts = _conflicts(layers, above, is_bend)
    drawings: list[tuple[bool, dict[Node, float]]] = []
    for downwards in (True, False):
        rows = list(layers) if downwards else list(reversed(layers))
        for mirrored in (False, True):
            ordered = [list(reversed(row)) for row in rows] if mirrored else [list(row) for row in rows]
            root = _align(ordered, above if downwards else below, conflicts)
            apart = (lambda a, b: distance(b, a)) if mirrored else distance
            x = _compact(ordered, root, apart)
            drawings.append((mirrored, {node: -value for node, value in x.items()} if mirrored else x))
    return _balance(drawings)


def _conflicts(
    layers: Layers[Node], above: Neighbours[Node], is_bend: Callable[[Node], bool]
) -> set[tuple[Node, Node]]:
    """Links (upper, lower) that cross the inner part of a long edge: the long edge wins the right to be straight."""
    found: set[tuple[Node, Node]] = set()
    for upper, lower in pairwise(layers):
        place = {node: index for index, node in enumerate(upper)}
        left, scanned = -1, 0
        for index, node in enumerate(lower):
            inner = next((n for n in above.get(node, ()) if is_bend(n)), None) if is_bend(node) else None
            if inner is None and index < len(lower) - 1:
                continue
            right = len(upper) if inner is None else place[inner]
            for other in lower[scanned : index + 1]:
                for source in above.get(other, ()):
                    outside = place[source] < left or place[source] > right
                    if outside and not (is_bend(source) and is_bend(other)):
                        found.add((source, other))
            left, scanned = right, index + 1
    return found


def _align(rows: Layers[Node], toward: Neighbours[Node], conflicts: set[tuple[Node, Node]]) -> dict[Node, Node]:
    """The first node of the vertical block that each node belongs to."""
    place = {node: index for row in rows for index, node in enumerate(row)}
    root = {node: node for row in rows for node in row}
    taken: set[Node] = set()
    for row in rows:
        last = -1
        for node in row:
            near = sorted(toward.get(node, ()), key=place.__getitem__)
            for index in sorted({(len(near) - 1) // 2, len(near) // 2} if near else ()):
                other = near[index]
                free = other not in taken and (other, node) not in conflicts and (node, other) not in conflicts
                if root[node] == node and free and place[other] > last:
                    root[node] = root[other]
                    taken.add(other)
                    last = place[other]
    return root


def _compact(rows: Layers[Node], root: Mapping[Node, Node], apart: Callable[[Node, Node], float]) -> dict[Node, float]:
    """Push the blocks as far left as they go, then close the gaps that leaves between them."""
    after: dict[Node, dict[Node, float]] = {block: {} for block in root.values()}
    before: dict[Node, dict[Node, float]] = {block: {} for block in root.values()}
    for row in rows:
        for left, right in pairwise(row):
            a, b = root[left], root[right]
            needed = max(apart(left, right), after[a].get(b, 0.0))
            after[a][b] = before[b][a] = needed
    order = _topological(after, before)
    x: dict[Node, float] = {}
    for block in order:
        x[block] = max((x[left] + gap for left, gap in before[block].items()), default=0.0)
    for block in reversed(order):
        if after[block]:
            x[block] = max(x[block], min(x[right] - gap for right, gap in after[block].items()))
    return {node: x[block] for node, block in root.items()}


def _topological(after: Mapping[Node, Mapping[Node, float]], before: Mapping[Node, Mapping[Node, float]]) -> list[Node]:
    waiting = {block: len(left) for block, left in before.items()}
    ready = [block for block, count in waiting.items() if not count]
    for block in ready:
        for right in after[block]:
            waiting[right] -= 1
            if not waiting[right]:
                ready.append(right)
    return ready


def _balance(drawings: Sequence[tuple[bool, dict[Node, float]]]) -> dict[Node, float]:
    """Line the four drawings up with the narrowest and take the mean of the middle two for each node."""
    spans = [(min(x.values(), default=0.0), max(x.values(), default=0.0)) for _, x in drawings]
    low, high = min(spans, key=lambda span: span[1] - span[0])
    shifts = [
        high - span[1] if mirrored else low - span[0] for (mirrored, _), span in zip(drawings, spans, strict=True)
    ]
    balanced: dict[Node, float] = {}
    for node in drawings[0][1]:
        values = sorted(x[node] + shift for (_, x), shift in zip(drawings, shifts, strict=True))
        balanced[node] = (values[1] + values[2]) / 2
    return balanced


def settle(
    layers: Layers[Node],
    links: Sequence[tuple[Node, Node]],
    x: dict[Node, float],
    distance: Callable[[Node, Node], float],
) -> None:
    """Close the gaps that a balance of four drawings leaves: each straight piece moves, whole, towards what it joins.

    In a tall graph the four drift apart, and their mean can tear a branch from its block with nothing between them.
    """
    neighbours: dict[Node, tuple[Node | None, Node | None]] = {}
    for row in layers:
        neighbours.update(zip(row, zip((None, *row[:-1]), (*row[1:], None), strict=True), strict=True))
    pieces = _pieces(links, x)
    piece_of = {node: index for index, piece in enumerate(pieces) for node in piece}
    ties: list[list[tuple[Node, Node]]] = [[] for _ in pieces]
    for upper, lower in links:
        if piece_of[upper] != piece_of[lower]:
            ties[piece_of[upper]].append((upper, lower))
            ties[piece_of[lower]].append((lower, upper))
    for sweep in range(SETTLE_SWEEPS):
        order = sorted(range(len(pieces)), key=lambda index: x[pieces[index][0]], reverse=sweep % 2 == 0)
        moved = 0.0
        for index in order:
            if ties[index]:
                wish = sum(x[other] - x[own] for own, other in ties[index]) / len(ties[index])
                shift = _room(pieces[index], wish, neighbours, x, distance)
                moved = max(moved, abs(shift))
                for node in pieces[index]:
                    x[node] += shift
        if moved < STILL:
            break


def _room(
    piece: Sequence[Node],
    wish: float,
    neighbours: Mapping[Node, tuple[Node | None, Node | None]],
    x: Mapping[Node, float],
    distance: Callable[[Node, Node], float],
) -> float:
    """As much of a wished shift as the neighbours in all its rows allow."""
    for node in piece:
        left, right = neighbours[node]
        if wish > 0 and right is not None:
            wish = max(0.0, min(wish, x[right] - distance(node, right) - x[node]))
        if wish < 0 and left is not None:
            wish = min(0.0, max(wish, x[left] + distance(left, node) - x[node]))
    return wish


def _pieces(links: Sequence[tuple[Node, Node]], x: Mapping[Node, float]) -> list[list[Node]]:
    """Nodes grouped by the straight vertical pieces that they form."""
    order = {node: index for index, node in enumerate(x)}  # sets have no order of their own: results must not vary
    straight: nx.Graph = nx.Graph()
    straight.add_nodes_from(x)
    straight.add_edges_from(link for link in links if abs(x[link[0]] - x[link[1]]) < STRAIGHT)
    return [sorted(piece, key=order.__getitem__) for piece in nx.connected_components(straight)]
