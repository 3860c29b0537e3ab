"""Everything that can be drawn of a model, placed: boxes, the lines between them, the regions of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from explorer.model.describe import GraphInfo, NodeInfo
from explorer.view import theme
from explorer.view.graph import Item, visible_graph
from explorer.view.layout import Point, layered
from explorer.view.text import tail

BOX_HEIGHT = 0.64
_LETTER = 0.265
_PADDING = 0.9
_HALO = 0.42
_LABEL_LENGTH = 26
LAYOUT = "layout"
"""The role of nodes that only prepare an operand: they are framed one by one."""


@dataclass(frozen=True, slots=True)
class Region:
    """An attention block as it stands in the current model: which nodes are its own, and what part each plays."""

    id: str
    label: str
    status: str
    nodes: tuple[str, ...]
    roles: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Box:
    """One item on the canvas, its centre and width in row pitches."""

    item: Item
    label: str
    category: str
    x: float
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class Halo:
    """The rounded frame behind the core of a region: from the first product to the merge of the heads.

    `others` are its nodes further up (Reshape and Transpose of K and V), among nodes that are not its own.
    """

    region: Region
    core: tuple[Box, ...]
    others: tuple[Box, ...]
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A placed graph, compared by identity. `routes` are the points each line passes, from one box to another."""

    info: GraphInfo
    boxes: tuple[Box, ...]
    routes: tuple[tuple[Point, ...], ...]
    halos: tuple[Halo, ...]
    rows: int

    def box(self, key: str) -> Box | None:
        """The box of the node with this key, None if it is folded away."""
        return next((box for box in self.boxes if box.item.kind == "node" and box.item.key == key), None)

    def halo(self, block_id: str) -> Halo | None:
        """The frame of a block, None if no node of it is drawn."""
        return next((halo for halo in self.halos if halo.region.id == block_id), None)

    def node(self, key: str) -> NodeInfo | None:
        """The node with this key, drawn or folded away."""
        return next((node for node in self.info.nodes if node.key == key), None)

    def source_of(self, item_id: str) -> str | None:
        """The node from which a port's tensor comes; None for a graph input's."""
        port = next((box.item for box in self.boxes if box.item.id == item_id), None)
        tensor = self.info.tensors.get(port.tensor) if port else None
        return tensor.producer if tensor else None

    def region_of(self, key: str) -> Region | None:
        """The block that a node belongs to."""
        return next((halo.region for halo in self.halos if key in halo.region.nodes), None)


def scene(info: GraphInfo, regions: Sequence[Region]) -> Scene:
    """Fold, lay out and frame: what `figure` draws."""
    graph = visible_graph(info, keep={node for region in regions for node in region.nodes})
    items: dict[str, Item] = dict(graph.nodes(data="item"))
    labels = {name: _label(item) for name, item in items.items()}
    widths = {name: max(2.4, _LETTER * len(label) + _PADDING) for name, label in labels.items()}
    layout = layered(graph, widths.__getitem__)
    boxes = {
        name: Box(item, labels[name], _category(item), *layout.positions[name], widths[name])
        for name, item in items.items()
    }
    return Scene(
        info=info,
        boxes=tuple(boxes.values()),
        routes=tuple(layout.routes[edge] for edge in graph.edges),
        halos=tuple(halo for region in regions if (halo := _halo(region, boxes))),
        rows=layout.rows,
    )


def _label(item: Item) -> str:
    return item.op_type if item.kind == "node" else tail(item.tensor, _LABEL_LENGTH)


def _category(item: Item) -> str:
    if item.kind == "node":
        return theme.category(item.op_type)
    return "Port" if item.kind == "port" else "Input / output"


def _halo(region: Region, boxes: Mapping[str, Box]) -> Halo | None:
    own = [boxes[name] for name in (f"node:{node}" for node in region.nodes) if name in boxes]
    if not own:
        return None
    core = [box for box in own if region.roles.get(box.item.key) != LAYOUT] or own
    return Halo(
        region,
        core=tuple(core),
        others=tuple(box for box in own if box not in core),
        x0=min(box.x - box.width / 2 for box in core) - _HALO,
        y0=min(box.y for box in core) - BOX_HEIGHT / 2 - _HALO / 2,
        x1=max(box.x + box.width / 2 for box in core) + _HALO,
        y1=max(box.y for box in core) + BOX_HEIGHT / 2 + _HALO / 2,
    )
