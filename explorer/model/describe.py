"""A model's graph as plain frozen values, for everyone who shows it and must not hold the mutable IR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from explorer.model.model import Model
from explorer.model.types import TensorType, dtype_name

_SHOWN_ELEMENTS = 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `kind` is "input", "initializer", "node" (computed) or "missing" (an optional input left out)."""

    name: str
    type: str
    kind: str
    producer: str | None
    consumers: tuple[str, ...]
    is_output: bool


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node. `key` identifies it in its model; `inputs`/`outputs` are tensor names ("" for one left out)."""

    key: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    constant: bool
    """Its outputs never depend on a graph input's contents (constants and shape arithmetic)."""


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """The main graph: nodes in topological order, tensors by name, graph inputs and outputs in their order."""

    name: str
    nodes: tuple[NodeInfo, ...]
    tensors: dict[str, TensorInfo]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def describe(model: Model) -> GraphInfo:
    """Describe the main graph of `model`; all text in the result comes from the file and must be escaped when shown."""
    graph = model.ir.graph
    tensors: dict[str, TensorInfo] = {}
    outputs = {value.name for value in graph.outputs}
    inputs = {value.name for value in graph.inputs}

    def add(value: ir.Value, kind: str) -> None:
        name = value.name or ""
        producer = value.producer()
        consumers = dict.fromkeys(model.key(use.node) for use in value.uses())
        tensors[name] = TensorInfo(
            name=name,
            type=str(model.type(value) or TensorType(None, None)),
            kind=kind,
            producer=None if producer is None else model.key(producer),
            consumers=tuple(consumers),
            is_output=name in outputs,
        )

    for value in graph.inputs:
        add(value, "input")
    for value in graph.initializers.values():
        if value.name not in inputs:
            add(value, "initializer")
    fixed: set[str] = {name for name, tensor in tensors.items() if tensor.kind == "initializer"}
    nodes = []
    for node in graph:
        sources = [value.name or "" for value in node.inputs if value is not None]
        constant = node.op_type in ("Shape", "Size") or all(name in fixed for name in sources)
        constant = constant and not node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        bodies = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        constant = constant and not bodies  # a body reads what it likes
        for value in (output for output in node.outputs if output.name):
            add(value, "node")
            if constant:
                fixed.add(value.name or "")
        nodes.append(
            NodeInfo(
                key=model.key(node),
                op_type=node.op_type,
                domain=node.domain,
                inputs=tuple("" if value is None else value.name or "" for value in node.inputs),
                outputs=tuple(value.name or "" for value in node.outputs),
                attributes=tuple((name, attribute_text(attribute)) for name, attribute in node.attributes.items()),
                constant=constant,
            )
        )
    return GraphInfo(
        name=graph.name or "",
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=tuple(value.name or "" for value in graph.inputs),
        outputs=tuple(value.name or "" for value in graph.outputs),
    )


def attribute_text(attribute: ir.Attr) -> str:
    """A short reading of an attribute's value: numbers as they are, long lists cut, tensors by type and shape."""
    value = attribute.value
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a graph"
    if attribute.type == ir.AttributeType.TENSOR:
        dims = ", ".join(str(d) for d in value.shape)
        text = f"{dtype_name(value.dtype)}[{dims}]"
        return f"{text} = {value.numpy().tolist()}" if value.size <= _SHOWN_ELEMENTS else text
    if isinstance(value, (tuple, list)):
        shown = ", ".join(_number(item) for item in value[:_SHOWN_ELEMENTS])
        return f"[{shown}{', …' if len(value) > _SHOWN_ELEMENTS else ''}]"
    return _number(value)


def _number(value: object) -> str:
    """A float as its author wrote it: attributes are stored in float32."""
    return str(np.float32(value)) if isinstance(value, float) else str(value)
