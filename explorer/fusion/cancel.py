"""Layout nodes that undo each other, where a written node meets another one: the second goes, or both become one.

A Transpose of a Transpose, a Reshape of a Reshape (or of Squeeze, Unsqueeze, Flatten). A node stays while someone else
reads what it computes, and so do the blocks' outputs, by which a fusion is compared with its source, unless data would
be moved twice for that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx_ir as ir

from explorer.fusion.provenance import PROVENANCE
from explorer.model import Dim, Model
from explorer.model.constants import attribute
from explorer.model.dims import at_least, is_known

_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_REPLACES = f"{PROVENANCE}replaces"

_Shape = tuple[Dim, ...] | None


class Canceller:
    """For a graph that is being rewritten.

    `model` is its source, `shape_of` knows the shapes of its values, and `kept` are the names of the blocks' outputs.
    `replace` gives the place and the name of one value to another; `remove` removes a node that nobody reads with what
    nobody else needs upstream.
    """

    def __init__(
        self,
        model: Model,
        shape_of: Callable[[ir.Value], _Shape],
        kept: Collection[str],
        replace: Callable[[ir.Value, ir.Value], None],
        remove: Callable[[ir.Node], None],
    ) -> None:
        self._model = model
        self._shape_of = shape_of
        self._kept = kept
        self._replace = replace
        self._remove = remove

    def around(self, written: Iterable[ir.Value]) -> None:
        """Cancel what can be where the nodes that compute `written` meet each other and the rest of the graph."""
        pending: list[ir.Node] = []
        for value in written:
            producer = value.producer()
            pending += [node for node in (producer, *value.consumers()) if node is not None]
        while pending:
            node = pending.pop()
            if node.graph is not None:
                pending += self._cancel(node)

    def _cancel(self, node: ir.Node) -> list[ir.Node]:
        """Let `node` do the work of the one before it, too, or nothing if that is none; the nodes to look at next."""
        middle = node.inputs[0] if node.inputs else None
        before = None if middle is None else middle.producer()
        source = before.inputs[0] if before is not None and before.inputs else None
        if middle is None or before is None or source is None or before.graph is not node.graph:
            return []
        if node.domain or before.domain or not (_is_written(node) or _is_written(before)):
            return []
        turned = node.op_type == before.op_type == "Transpose"
        if not turned and (node.op_type not in _RESHAPING or before.op_type not in _RESHAPING):
            return []
        only = len(middle.uses()) == 1 and not middle.is_graph_output()
        if only and middle.name in self._kept and not turned:
            return []
        perm = _composed(before, node) if turned else None
        if perm == sorted(perm) if perm else not turned and self._same_shape(source, node.outputs[0]):
            return self._skip(node, source)
        if not only:
            return []
        if perm:
            node.attributes.add(ir.AttrInt64s("perm", perm))
        elif not (node.op_type == "Reshape" and self._is_free(node, self._shape_of(source), self._shape_of(middle))):
            return []
        names = (one.metadata_props.get(_REPLACES) or one.name or one.op_type for one in (before, node))
        node.metadata_props.update({**before.metadata_props, **node.metadata_props, _REPLACES: ", ".join(names)})
        node.replace_input_with(0, source)
        self._remove(before)
        return [node]

    def _skip(self, node: ir.Node, source: ir.Value) -> list[ir.Node]:
        """Let those that read what `node` computes read `source`, which is the same."""
        result = node.outputs[0]
        readers = list(result.consumers())
        if not (result.is_graph_output() or result.name in self._kept):
            result.replace_all_uses_with(source)
        elif _is_nameless(source) and source.name not in self._kept:
            self._replace(result, source)
        else:
            return []
        self._remove(node)
        return readers

    def _same_shape(self, one: ir.Value, other: ir.Value) -> bool:
        shape = self._shape_of(one)
        return shape is not None and all(map(is_known, shape)) and shape == self._shape_of(other)

    def _is_free(self, reshape: ir.Node, source: _Shape, middle: _Shape) -> bool:
        """True if the target of `reshape` means the same whether it reads a value of shape `source` or `middle`."""
        target = self._target(reshape.inputs[1])
        copies = not attribute(reshape, "allowzero", 0)
        return target is not None and all(
            at_least(item, 1)
            if isinstance(item, str)
            else isinstance(item, int | np.integer) and (item != 0 or not copies or _same_dim(source, middle, axis))
            for axis, item in enumerate(target)
        )

    def _target(self, value: ir.Value | None) -> list[object] | None:
        """The elements of a Reshape's target: numbers, expressions, or None for one that nobody knows."""
        if value is None or value.name is None:
            return None
        if self._model.has_value(value.name):
            found = self._model.partial(self._model.value(value.name))
        else:
            found = None if value.const_value is None else value.const_value.numpy()
        return None if found is None else found.ravel().tolist()


def _is_written(node: ir.Node) -> bool:
    return f"{PROVENANCE}block" in node.metadata_props


def _is_nameless(value: ir.Value) -> bool:
    """True if nobody knows the value by the name it has."""
    producer = value.producer()
    return producer is not None and _is_written(producer) and not value.is_graph_output()


def _composed(first: ir.Node, second: ir.Node) -> list[int] | None:
    """The axes of what `first` reads, as `second` puts them; None if a Transpose does not say how it turns them."""
    one, other = (attribute(node, "perm", None) for node in (first, second))
    return None if one is None or other is None else [one[axis] for axis in other]


def _same_dim(one: _Shape, other: _Shape, axis: int) -> bool:
    if one is None or other is None or axis >= min(len(one), len(other)):
        return False
    return one[axis] == other[axis] and is_known(one[axis])
