"""Apply a plan: a model and decisions → a new model with each chosen block replaced by one operator.

The source is never changed. Only what a block made superfluous goes; graph inputs, outputs and all names stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from explorer.attention import Block, Obstacle
from explorer.attention.measures import Measure, measures
from explorer.attention.walk import name_of
from explorer.errors import BlockError, ModelError, PlanError
from explorer.fusion.bias import BiasCache
from explorer.fusion.emit import Emitter, Names, declared
from explorer.fusion.plan import Plan
from explorer.fusion.targets import TARGETS
from explorer.fusion.targets.target import Site
from explorer.model import Model, TensorType
from explorer.model.constants import attribute
from explorer.model.skeleton import skeleton_of

PROVENANCE = "explorer."
"""Prefix of the metadata that every written node carries: explorer.block, explorer.target, explorer.replaces."""


def choose(model: Model, block: Block, wish: str) -> tuple[str, tuple[Obstacle, ...]]:
    """The target for a block: `wish`, or for "auto" the first that can express it. ("", obstacles) if none can.

    BlockError if `wish` is no target at all.
    """
    if wish != "auto" and wish not in TARGETS:
        known = ", ".join(("auto", *TARGETS))
        raise BlockError(f"expected a target among {known}, found {wish!r}: choose one of these")
    if block.fused_as:
        already = Obstacle("fused", block.anchor, "attention in parts", f"the operator {block.fused_as}")
        return "", (already,)
    obstacles = block.obstacles
    for name in TARGETS if wish == "auto" else (wish,):
        own = TARGETS[name].obstacles(model, block) if not block.obstacles else ()
        if not block.obstacles and not own:
            return name, ()
        obstacles += own
    return "", obstacles


def apply(model: Model, blocks: Sequence[Block], plan: Plan) -> Model:
    """`model` with every fusion of `plan` carried out. The same plan gives the same model, whatever its history.

    Raises PlanError if the plan is for another model or names a block that is not there, BlockError if a block cannot
    become its target, ModelError if the result is not a valid model (a defect here, caught before anyone sees it).
    """
    if plan.source_digest != model.digest:
        raise PlanError("expected a plan made for this very file, found one for another: scan and plan again")
    by_id = {block.id: block for block in blocks}
    for fusion in plan.fusions:
        if fusion.block not in by_id:
            raise PlanError(f"expected a block {fusion.block!r} in the model, found none: scan and plan again")
    clone = model.ir.clone()
    rewriter = _Rewriter(model, clone)
    for block in blocks:
        target = plan.target(block.id)
        if target is not None:
            rewriter.fuse(block, target)
    fused = Model(
        clone, path=model.path, digest=model.digest, types={**model.types, **rewriter.types}, notes=model.notes
    )
    if plan.fusions:
        _check(clone, model.ir)
    return fused


class _Rewriter:
    """Rewrites one clone, block by block in graph order."""

    def __init__(self, model: Model, clone: ir.Model) -> None:
        self.types: dict[str, TensorType] = {}
        self._model = model
        self._clone = clone
        self._graphs = tuple(clone.graphs())
        given = (value for graph in self._graphs for value in (*graph.inputs, *graph.initializers.values()))
        self._values = {value.name or "": value for value in (*given, *_outputs(clone.graph.all_nodes()))}
        node_names = (node.name or "" for node in clone.graph.all_nodes())
        self._names = Names((*self._values, *node_names))
        self._biases: BiasCache = {}

    def fuse(self, block: Block, target_name: str) -> None:
        name, obstacles = choose(self._model, block, target_name)
        if not name or block.output is None:
            raise BlockError(f"{block.label} ({block.anchor}) cannot become {target_name}: {obstacles[0]}")
        old = self._values[block.output.value]
        last = old.producer()
        assert last is not None
        provenance = {
            f"{PROVENANCE}block": block.id,
            f"{PROVENANCE}target": name,
            f"{PROVENANCE}replaces": ", ".join(block.nodes),
        }
        prefix = block.anchor.removesuffix("Softmax")
        prefix = prefix if prefix.endswith("/") or not prefix else f"{block.anchor}/"
        graph = last.graph
        assert isinstance(graph, ir.Graph)  # a function that holds attention is inlined when its model is loaded
        emit = Emitter(graph, last, self._names, prefix, provenance, self._model.opset)
        new = TARGETS[name].build(Site(self._model, block, emit, self._values.__getitem__, self._biases))
        self._replace(old, new)
        self._measure_again(block, provenance)
        self._remove_dead(last)
        self._remember(emit.outputs)

    def _measure_again(self, block: Block, provenance: dict[str, str]) -> None:
        """Let each Shape of a value inside the block read its dimensions off the operands, which stay."""
        for part in block.region:
            if part.role != "shape":
                continue
            inside = self._model.node(part.name).inputs[0]
            old = self._values[name_of(self._model.node(part.name).outputs[0])]
            shape = old.producer()
            assert inside is not None
            assert shape is not None
            assert isinstance(shape.graph, ir.Graph)
            found = measures(self._model, inside, block) or ()
            found = found[attribute(shape, "start", 0) : attribute(shape, "end", None)]
            emit = Emitter(shape.graph, shape, self._names, f"{part.name}/", provenance, self._model.opset)
            old.replace_all_uses_with(emit.vector([self._measured(emit, item) for item in found]))
            shape.graph.remove(shape, safe=True)

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

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` take the place, the name and the type of `old`."""
        name = old.name
        known = self._model.type(old)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        new.name = name
        if known is not None and known.shape is not None:
            new.shape = ir.Shape(declared(known.shape))
        self._values[name or ""] = new

    def _remove_dead(self, start: ir.Node) -> None:
        """Remove `start` and whatever upstream of it nobody needs any more."""
        pending = [start]
        while pending:
            node = pending.pop()
            if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            sources = [value for value in node.inputs if value is not None]
            node.graph.remove(node, safe=True)
            for value in sources:
                producer = value.producer()
                if producer is not None:
                    pending.append(producer)
                elif value.is_initializer() and not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                    self._forget(value)

    def _forget(self, value: ir.Value) -> None:
        """Remove an initializer from the graph that holds it."""
        for graph in self._graphs:
            if graph.initializers.get(value.name or "") is value:
                del graph.initializers[value.name or ""]

    def _remember(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            if value.name and value.name not in self._model.types and (known := TensorType.of(value)) is not None:
                self.types[value.name] = known


def _outputs(nodes: Iterable[ir.Node]) -> Iterable[ir.Value]:
    return (value for node in nodes for value in node.outputs)


def _check(fused: ir.Model, source: ir.Model) -> None:
    """ONNX's checker and strict shape inference on the rewritten graph, without its weights.

    A source that does not pass them itself is no reason to refuse its fusion: a session will judge both.
    """
    if "com.microsoft" not in fused.opset_imports:
        fused.opset_imports["com.microsoft"] = 1
    flaw = _flaw(fused)
    if flaw and not _flaw(source):
        raise ModelError(f"expected the fused graph to be valid ONNX, found: {flaw}; nothing was changed")


def _flaw(model: ir.Model) -> str:
    """What is wrong with a graph, in a line; "" if nothing is."""
    proto = skeleton_of(model)
    try:
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""
