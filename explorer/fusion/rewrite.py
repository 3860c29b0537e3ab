"""Rewrite one copy of a graph, block by block: what a block made superfluous goes, nothing else does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from explorer.attention import Block
from explorer.attention.measures import Measure, measures
from explorer.attention.walk import name_of
from explorer.fusion.bodies import with_bodies
from explorer.fusion.cancel import Canceller
from explorer.fusion.emit import Emitter, Names, Shared, declared
from explorer.fusion.provenance import provenance
from explorer.fusion.targets import TARGETS
from explorer.fusion.targets.target import Site
from explorer.model import Dim, Model, TensorType
from explorer.model.constants import attribute


class Rewriter:
    """Fuses blocks of `model` in `graph`, a copy of it that may be of a newer operator set.

    What it writes for a block depends on the block alone, but for masks: the first of several blocks that share one
    writes it for all. So the blocks must come in the order in which they end.
    """

    def __init__(self, model: Model, graph: ir.Model, plan: str) -> None:
        self.types: dict[str, TensorType] = {}
        """Types of the values written."""
        self._model = model
        self._graph = graph
        self._plan = plan
        self._opset = next(graph.opset_imports[domain] for domain in ("", "ai.onnx") if domain in graph.opset_imports)
        bodies = tuple(with_bodies(graph.graph))
        self._values: dict[str, ir.Value] = {}
        for body in bodies:
            self._values.update((value.name or "", value) for value in (*body.inputs, *body.initializers.values()))
            self._values.update((value.name or "", value) for node in body for value in node.outputs)
        self._names = Names((*self._values, *(node.name or "" for body in bodies for node in body)))
        self._shared: Shared = {}
        self._written: list[ir.Value] = []
        self._outputs: set[str] = set()

    def fuse(self, block: Block, target: str) -> None:
        """Let the block, which has no obstacles, become `target`."""
        assert block.output is not None
        old = self._values[block.output.value]
        last = old.producer()
        assert last is not None
        facts = provenance(block.nodes, block=block.id, target=target, plan=self._plan)
        prefix = block.anchor.removesuffix("Softmax")
        prefix = prefix if prefix.endswith("/") or not prefix else f"{block.anchor}/"
        emit = self._emitter(last, prefix, facts)
        new = TARGETS[target].build(Site(self._model, block, emit, self._values.__getitem__, self._shared))
        self._replace(old, new)
        self._outputs.add(block.output.value)
        self._written += emit.outputs
        self._measure_again(block, facts)
        self._remove_dead(last)

    def tidy(self) -> None:
        """Cancel layout nodes that undo each other, and declare the operator sets of those that were written."""
        canceller = Canceller(self._model, self._shape_of, self._outputs, self._replace, self._remove_dead)
        canceller.around(self._written)
        for value in self._written:
            node = value.producer()
            if node is not None and node.domain and node.domain not in self._graph.opset_imports:
                self._graph.opset_imports[node.domain] = 1
            if node is not None and value.name not in self._model.types and (known := TensorType.of(value)) is not None:
                self.types[value.name or ""] = known

    def _emitter(self, before: ir.Node, prefix: str, facts: dict[str, str]) -> Emitter:
        # a function that holds attention is inlined when its model is loaded
        assert isinstance(before.graph, ir.Graph)
        return Emitter(before.graph, before, self._names, prefix, facts, self._opset)

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` take the place, the name and the type of `old`."""
        name, known, is_output = old.name, self._model.type(old), old.is_graph_output()
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        new.name = name
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)
        if is_output:
            new.shape = old.shape
        elif known is not None and known.shape is not None:
            new.shape = ir.Shape(declared(known.shape))
        self._values[name or ""] = new

    def _measure_again(self, block: Block, facts: dict[str, str]) -> None:
        """Let each Shape of a value inside the block read its dimensions off the operands, which stay."""
        for part in block.region:
            if part.role != "shape":
                continue
            inside = self._model.node(part.name).inputs[0]
            old = self._values[name_of(self._model.node(part.name).outputs[0])]
            shape = old.producer()
            assert inside is not None
            assert shape is not None
            found = measures(self._model, inside, block) or ()
            found = found[attribute(shape, "start", 0) : attribute(shape, "end", None)]
            emit = self._emitter(shape, f"{part.name}/", facts)
            old.replace_all_uses_with(emit.vector([self._measured(emit, item) for item in found]))
            self._written += emit.outputs
            self._remove_dead(shape)

    def _measured(self, emit: Emitter, item: Measure) -> int | ir.Value:
        factors = [emit.dimension(self._values[name], axis) for name, axis in item.axes]
        if not factors:
            return item.factor
        if item.factor != 1:
            factors.append(emit.constant(np.array([item.factor], np.int64), "factor"))
        size = factors[0]
        for factor in factors[1:]:
            size = emit.node("Mul", [size, factor], TensorType(ir.DataType.INT64, (1,)))
        return size

    def _remove_dead(self, start: ir.Node) -> None:
        """Remove `start` and whatever upstream of it nobody needs any more."""
        dead: dict[ir.Node, None] = {}
        pending = [start]
        while pending:
            node = pending.pop()
            if node in dead or any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            dead[node] = None
            sources = [value for value in node.inputs if value is not None]
            node.resize_inputs(0)
            for value in sources:
                producer = value.producer()
                if producer is not None:
                    pending.append(producer)
                elif value.is_initializer() and not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                    assert isinstance(value.graph, ir.Graph)
                    del value.graph.initializers[value.name or ""]
        for graph in {node.graph for node in dead}:
            assert graph is not None
            graph.remove([node for node in dead if node.graph is graph])

    def _shape_of(self, value: ir.Value) -> tuple[Dim, ...] | None:
        known = self._model.types.get(value.name or "") or TensorType.of(value)
        return None if known is None else known.shape
