"""`Model`: an onnx_ir model with its inferred types, and the read-only questions that every room asks of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from explorer.model.constants import Folder
from explorer.model.dims import Dim
from explorer.model.types import TensorType

__all__ = ["Dim", "Model", "TensorType"]

_ONNX_DOMAINS = ("", "ai.onnx")
# More than a chain of steps in bfloat16 can be off; less than any two scales that are meant to differ.
_ROUNDING = 2**-6


@dataclass(frozen=True, slots=True)
class _Index:
    nodes: tuple[ir.Node, ...]
    key_of: Mapping[int, str]
    by_key: Mapping[str, ir.Node]
    by_value: Mapping[str, ir.Value]


class Model:
    """A loaded ONNX model.

    `ir` is the onnx_ir graph; nobody changes it after loading (a rewrite clones it). `types` holds what shape
    inference found, by value name; it is kept beside the graph so that an export carries nothing the file did not have.
    `notes` are sentences about the model that a user should read (an operator ORT may not know, a re-sorted graph, …).
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        path: Path,
        digest: str,
        types: Mapping[str, TensorType],
        notes: tuple[str, ...] = (),
        file_digest: str = "",
    ) -> None:
        """`file_digest`: that of the file alone, if `digest` also says how its inputs are shaped."""
        self.ir = model
        self.path = path
        self.digest = digest
        self.file_digest = file_digest or digest
        self.types = types
        self.notes = notes
        self._index = _index(model)
        self._folder = Folder(self.type, model.ir_version)
        self._exact_folder = Folder(self.type, model.ir_version, exact=True)

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes in topological order; those of an If/Loop/Scan body follow the node that owns the body."""
        return self._index.nodes

    @property
    def opset(self) -> int:
        """Version of the default operator set (ai.onnx)."""
        imports = self.ir.opset_imports
        return next((imports[domain] for domain in _ONNX_DOMAINS if domain in imports), 1)

    def key(self, node: ir.Node) -> str:
        """The name that identifies `node` in this model: its own if it has a unique one, else made of op and output."""
        return self._index.key_of[id(node)]

    def node(self, key: str) -> ir.Node:
        """The node that `key()` named; KeyError if there is none."""
        return self._index.by_key[key]

    def has_node(self, key: str) -> bool:
        """True if `key()` gives this name to a node of this model."""
        return key in self._index.by_key

    def value(self, name: str) -> ir.Value:
        """The value (tensor) called `name`; KeyError if there is none."""
        return self._index.by_value[name]

    def has_value(self, name: str) -> bool:
        """True if this model has a value called `name`."""
        return name in self._index.by_value

    def type(self, value: ir.Value) -> TensorType | None:
        """Data type and shape of `value`, as stored in the file or inferred; None if unknown."""
        if value.name is not None and (known := self.types.get(value.name)) is not None:
            return known
        return TensorType.of(value)

    def shape(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """Dimensions of `value`, each a number or an expression over symbols; None if even the rank is unknown."""
        known = self.type(value)
        return None if known is None else known.shape

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Element type of `value`, or None if unknown."""
        known = self.type(value)
        return None if known is None else known.dtype

    def constant(self, value: ir.Value | None, max_elements: int = 1 << 16) -> np.ndarray | None:
        """The array that `value` always has: an initializer, a Constant, or small arithmetic on those and on shapes.

        None when it depends on an input, may be overridden by one, or has more than `max_elements` elements.
        """
        return None if value is None else self._folder.array(value, max_elements)

    def partial(self, value: ir.Value | None) -> np.ndarray | None:
        """Like `constant` for a small shape-like value; elements of an object array may be expressions over symbols."""
        return None if value is None else self._folder.partial(value)

    def scalar(self, value: ir.Value | None) -> float | None:
        """The one number that `value` always holds, or None.

        A number that the model computes from whole numbers (1/√64 in steps of float32 or float16) is given without the
        rounding of those steps: it is the number that was meant.
        """
        array = self.constant(value, max_elements=1)
        if value is None or array is None or array.size != 1:
            return None
        number = float(array.reshape(()))
        exact = self._exact_folder.array(value, 1)
        meant = number if exact is None else float(exact.reshape(()))
        return meant if math.isclose(meant, number, rel_tol=_ROUNDING) else number

    def op_counts(self) -> dict[str, int]:
        """How many nodes of each op type, most frequent first."""
        return dict(Counter(node.op_type for node in self.nodes).most_common())


def _index(model: ir.Model) -> _Index:
    graphs: list[ir.Graph] = []
    nodes: list[ir.Node] = []
    _walk(model.graph, graphs, nodes)
    names = [node.name or "" for node in nodes]
    taken = Counter(names)
    key_of: dict[int, str] = {}
    by_key: dict[str, ir.Node] = {}
    by_value: dict[str, ir.Value] = {}
    for graph in graphs:
        for value in (*graph.inputs, *graph.initializers.values()):
            by_value.setdefault(value.name or "", value)
    for name, node in zip(names, nodes, strict=True):
        key = name if name and taken[name] == 1 else ""
        if not key:
            key = _made_up_key(node)
            while key in by_key or key in taken:
                key += "'"
        key_of[id(node)] = key
        by_key[key] = node
        for value in node.outputs:
            by_value.setdefault(value.name or "", value)
    by_value.pop("", None)
    return _Index(tuple(nodes), key_of, by_key, by_value)


def _walk(graph: ir.Graph, graphs: list[ir.Graph], nodes: list[ir.Node]) -> None:
    """Collect `graph` and its nodes, each followed by the graphs and nodes inside it."""
    graphs.append(graph)
    for node in graph:
        nodes.append(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _walk(attribute.as_graph(), graphs, nodes)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    _walk(body, graphs, nodes)


def _made_up_key(node: ir.Node) -> str:
    output = next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type}:{output}"
