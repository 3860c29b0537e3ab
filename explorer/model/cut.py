"""A part of a graph as a model of its own, to be run on values of one's choice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from explorer.errors import ModelError
from explorer.model.model import Model


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a graph by the names of values: what is computed on the way from `sources` to `output`."""

    sources: Sequence[str]
    output: str
    given: Sequence[str] = ()
    """Values that the part ends at, too."""


# Since this version of the file format an initializer need not be an input
_MIN_IR_VERSION = 4


def cut(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> Model:
    """The part of `model` that computes the values called `outputs` from those called `inputs`.

    Its inputs are those of `inputs` that are needed, in their order, typed and shaped as in `model`; constants come
    along, and weights are shared, not copied. Nodes of an If, Loop or Scan body are lifted out of it, so this is one
    pass of the body. ModelError if an output needs anything else that is not constant, or is one of the inputs.
    """
    if told := [name for name in outputs if name in inputs]:
        raise ModelError(f"expected outputs that the part computes, found {', '.join(told)} among its inputs")
    given = {id(model.value(name)): model.value(name) for name in inputs}
    needed: set[int] = set()
    constants: dict[int, ir.Value] = {}
    nodes: dict[int, ir.Node] = {}
    pending = [model.value(name) for name in outputs]
    while pending:
        value = pending.pop()
        producer = value.producer()
        if id(value) in given:
            needed.add(id(value))
        elif producer is not None:
            if id(producer) not in nodes:
                nodes[id(producer)] = producer
                pending += _reads(producer)
        elif value.is_initializer():
            constants[id(value)] = value
        else:
            raise ModelError(
                f"expected {', '.join(outputs)} to depend on nothing but {', '.join(inputs) or 'constants'}, found "
                f"{value.name!r}: name it among the inputs of the part, too"
            )
    places = _places(model)
    view = ir.GraphView(
        [value for key, value in given.items() if key in needed],
        [model.value(name) for name in outputs],
        nodes=sorted(nodes.values(), key=lambda node: places[id(node)]),
        initializers=tuple(constants.values()),
        opset_imports=model.ir.opset_imports,
        name=model.ir.graph.name,
    )
    graph = view.clone()
    for value in graph.inputs:
        value.const_value = None
    for value in (*graph.inputs, *graph.outputs):
        _declare(model, value)
    functions = [function.clone() for function in model.ir.functions.values()]
    part = ir.Model(graph, ir_version=max(model.ir.ir_version, _MIN_IR_VERSION), functions=functions)
    words = "\n".join((model.digest, *inputs, "", *outputs))
    return Model(part, path=model.path, digest=hashlib.sha256(words.encode()).hexdigest(), types=model.types)


def surroundings(
    model: Model, parts: Iterable[Part], known: Callable[[str], bool] = lambda name: True
) -> tuple[tuple[str, ...], ...]:
    """For each part the names of what it reads beside its sources and what is given: values that are not constant.

    With them as further inputs, `cut` keeps to the nodes between the sources and the output: a size taken from
    elsewhere in the graph, say, is a value of its own. The nodes behind a name that is not `known` are taken into the
    part.
    """
    places = _places(model)
    owners = {id(body): node for node in model.nodes for body in _bodies(node)}
    constant: dict[int, bool] = {}
    return tuple(_surroundings(model, part, known, places, owners, constant) for part in parts)


def _surroundings(
    model: Model,
    part: Part,
    known: Callable[[str], bool],
    places: Mapping[int, int],
    owners: Mapping[int, ir.Node],
    constant: dict[int, bool],
) -> tuple[str, ...]:
    output = model.value(part.output)
    last = output.producer()
    ends = {id(model.value(name)) for name in (*part.sources, *part.given)}
    inside = set() if last is None else _computed(map(model.value, part.sources), places, owners, places[id(last)])
    found: dict[str, None] = {}
    pending, seen = [output], set(ends)
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        producer = value.producer()
        if producer is not None and id(value) in inside:
            pending += _reads(producer)
        elif not _is_constant(value, constant):
            if producer is None or known(value.name or ""):
                found[value.name or ""] = None
            else:
                pending += _reads(producer)
    return tuple(found)


def _computed(
    sources: Iterable[ir.Value], places: Mapping[int, int], owners: Mapping[int, ir.Node], last: int
) -> set[int]:
    """Ids of the values computed from `sources` by nodes up to the place `last`."""
    found: set[int] = set()
    pending = list(sources)
    while pending:
        for use in pending.pop().uses():
            node: ir.Node | None = use.node
            while node is not None and places[id(node)] <= last:
                new = [value for value in node.outputs if id(value) not in found]
                found.update(map(id, new))
                pending += new
                node = owners.get(id(node.graph))
    return found


def _is_constant(value: ir.Value, memo: dict[int, bool]) -> bool:
    """True if `value` is computed from initializers alone; `memo` has the answers so far, by id."""
    pending = [value]
    while pending:
        item = pending[-1]
        producer = item.producer()
        if id(item) not in memo and producer is not None:
            reads = _reads(producer)
            unknown = [read for read in reads if id(read) not in memo]
            if unknown:
                pending += unknown
                continue
            memo[id(item)] = all(memo[id(read)] for read in reads)
        elif id(item) not in memo:
            memo[id(item)] = item.is_initializer()
        pending.pop()
    return memo[id(value)]


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node depends on: its inputs, and what its bodies read from around them."""
    reads = [value for value in node.inputs if value is not None]
    graphs = list(_all_bodies(node))
    own = {id(graph) for graph in graphs}
    for graph in graphs:
        for value in (*graph.outputs, *(read for inner in graph for read in inner.inputs)):
            if value is not None and id(value.graph) not in own:
                reads.append(value)
    return reads


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _all_bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a node and of the nodes inside them."""
    for body in _bodies(node):
        yield body
        for inner in body:
            yield from _all_bodies(inner)


def _places(model: Model) -> dict[int, int]:
    """The position of each node in execution order, by id."""
    return {id(node): place for place, node in enumerate(model.nodes)}


def _declare(model: Model, value: ir.Value) -> None:
    """State the type of an input or output: numbers and plain symbols, what else is a size being left open."""
    known = model.type(value)
    if known is None or known.dtype is None:
        raise ModelError(f"expected a known element type of {value.name!r}, found none: export the model with types")
    value.type = ir.TensorType(known.dtype)
    if known.shape is not None:
        dims = [dim if isinstance(dim, int) or dim.isidentifier() else None for dim in known.shape]
        value.shape = ir.Shape(dims)
