"""One walk over a model's protobuf: what is in it, and whether its names hold together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from explorer.errors import ModelError
from explorer.model.signatures import Signatures

STANDARD_DOMAINS = frozenset(("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"))
ORT_DOMAINS = frozenset(("com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc"))
KNOWN_DOMAINS = STANDARD_DOMAINS | ORT_DOMAINS
"""Domains of ONNX's own operators and of those that ONNX Runtime adds."""

OperatorId = tuple[str, str, str]
"""Domain ("" for ai.onnx), name and overload: what a node calls, an operator or a function of the model."""

_TENSOR, _TENSORS = onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
_SPARSE_TENSOR = onnx.AttributeProto.SPARSE_TENSOR
_AGAIN = "export the model again"
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
# Larger tensors are weights, whose contents nobody reads here; their bytes are not copied to be counted.
_COUNTED_BYTES = 1 << 20


@dataclass(slots=True)
class Survey:
    """What one walk over the model at `path` found."""

    path: Path
    values: set[str] = field(default_factory=set)
    """Names of all values outside functions."""
    node_names: dict[str, int] = field(default_factory=dict)
    """How many nodes outside functions have each name."""
    operators: dict[OperatorId, None] = field(default_factory=dict)
    """What is called, functions included."""
    attribute_names: set[str] = field(default_factory=set)
    graphs: list[onnx.GraphProto] = field(default_factory=list)
    """The graph and all bodies outside functions."""
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    sparse: bool = False
    """Some tensors are sparse."""
    shared_names: bool = False
    """Two graphs outside functions each have a value of the same name."""
    in_order: bool = True
    """Every node stands behind those it reads from."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """The values of one graph: those there are already, and those that some node of it computes."""

    made: set[str]
    computed: set[str]


def operator_id(node: onnx.NodeProto) -> OperatorId:
    """What `node` calls."""
    return short_domain(node.domain), node.op_type, node.overload


def function_id(function: onnx.FunctionProto) -> OperatorId:
    """What a node that calls `function` has as its `operator_id`."""
    return short_domain(function.domain), function.name, function.overload


def short_domain(domain: str) -> str:
    """`domain`, or "" for ONNX's own under its long name."""
    return "" if domain == "ai.onnx" else domain


def bodies(attribute: onnx.AttributeProto) -> Sequence[onnx.GraphProto]:
    """The graphs that an attribute holds: a branch of If, the body of a Loop or Scan."""
    if attribute.type == _GRAPH:
        # a reference stands for a graph that the caller of its function has
        return () if attribute.ref_attr_name else (attribute.g,)
    return attribute.graphs if attribute.type == _GRAPHS else ()


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all those inside its nodes, the outer before the inner."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in bodies(attribute):
                yield from graphs(body)


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, each followed by those inside it."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in bodies(attribute):
                yield from all_nodes(body.node)


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor that the model holds: initializers and attributes, those of bodies and functions with them."""
    yield from proto.graph.initializer
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for attribute in (attribute for node in all_nodes(nodes) for attribute in node.attribute):
            if attribute.type == _TENSOR:
                yield attribute.t
            yield from attribute.tensors
            for body in bodies(attribute):
                yield from body.initializer


def own_values(graph: onnx.GraphProto) -> dict[str, None]:
    """Names of the graph's own values, those of its bodies left out: inputs, stored tensors, what its nodes compute."""
    names = dict.fromkeys(info.name for info in graph.input)
    names.update(dict.fromkeys(tensor.name for tensor in graph.initializer))
    names.update(dict.fromkeys(sparse.values.name for sparse in graph.sparse_initializer))
    names.update(dict.fromkeys(name for node in graph.node for name in node.output))
    names.pop("", None)
    return names


def survey(proto: onnx.ModelProto, path: Path) -> Survey:
    """Walk once over the graph of `proto`, its bodies and the functions.

    ModelError, naming the place, if a value that somebody reads comes from nowhere, two values of one graph share a
    name, or a tensor does not hold what its type and shape say.
    """
    found = Survey(path)
    own = {function_id(function) for function in proto.functions}
    _graph(found, proto.graph, (), Signatures(proto.opset_import, own), function=False)
    for function in proto.functions:
        scope = _scope(found, function.input, function.node)
        _nodes(found, function.node, (scope,), Signatures(function.opset_import, own), function=True)
        _given_out(found, function.output, scope, f"function {function.name!r}")
    for tensor in found.tensors:
        _check_tensor(tensor, path)
    words = (word for key in found.operators for word in key)
    for text in (*words, *found.values, *found.node_names, *found.attribute_names):
        if not isinstance(text, str):  # protobuf's way to hand over what is no UTF-8
            raise ModelError(f"expected names as text in {path}, found {text!r}: the file is damaged; {_AGAIN}")
    return found


def _graph(
    found: Survey, graph: onnx.GraphProto, outer: Sequence[_Scope], signatures: Signatures, *, function: bool
) -> None:
    inputs = [info.name for info in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    if "" in inputs:
        raise ModelError(f"expected a name for every input in {found.path}, found one without: {_AGAIN}")
    found.tensors.extend(graph.initializer)
    found.sparse |= bool(graph.sparse_initializer)
    given = set(inputs)  # an initializer with an input's name is the default of that input
    scope = _scope(found, [*inputs, *(name for name in stored if name not in given)], graph.node)
    if not function:
        own = (scope.made | scope.computed) - {""}
        found.shared_names |= not found.values.isdisjoint(own)
        found.values |= own
        found.graphs.append(graph)
    _nodes(found, graph.node, (scope, *outer), signatures, function=function)
    _given_out(found, (info.name for info in graph.output), scope, "the graph")


def _scope(found: Survey, given: Iterable[str], nodes: Iterable[onnx.NodeProto]) -> _Scope:
    made: set[str] = set()
    computed: set[str] = set()
    for name in given:
        if name in made:
            raise _shared(found, name)
        made.add(name)
    for node in nodes:
        for name in node.output:
            if name and (name in computed or name in made):
                raise _shared(found, name)
            computed.add(name)
    return _Scope(made, computed)


def _nodes(
    found: Survey,
    nodes: Iterable[onnx.NodeProto],
    scopes: Sequence[_Scope],
    signatures: Signatures,
    *,
    function: bool,
) -> None:
    """Look at each node in turn; the innermost scope's `made` grows with what they give."""
    made = scopes[0].made
    operators, names, tensors = found.operators, found.node_names, found.tensors
    attributes = found.attribute_names
    for node in nodes:
        for name in node.input:
            if name and name not in made:
                _look_further(found, name, node, scopes)
        operator = operator_id(node)
        operators[operator] = None
        signature = signatures.of(operator)
        if len(node.input) < signature.inputs or len(node.output) < signature.outputs:
            raise _misfit(found, node, f"{len(node.input)} inputs and {len(node.output)} outputs")
        if signature.required and not signature.required <= {attribute.name for attribute in node.attribute}:
            raise _misfit(found, node, f"not all attributes of {sorted(signature.required)}")
        if not function and (name := node.name):
            names[name] = names.get(name, 0) + 1
        for attribute in node.attribute:
            name, kind = attribute.name, attribute.type
            attributes.add(name)
            if signature.attributes.get(name, kind) != kind:
                raise _misfit(found, node, f"an attribute {name!r} of another type")
            if kind == _TENSOR:
                tensors.append(attribute.t)
            elif kind == _TENSORS:
                tensors.extend(attribute.tensors)
            elif kind == _SPARSE_TENSOR:
                found.sparse = True
            elif kind in (_GRAPH, _GRAPHS):
                for body in bodies(attribute):
                    _graph(found, body, scopes, signatures, function=function)
        made.update(node.output)


def _misfit(found: Survey, node: onnx.NodeProto, flaw: str) -> ModelError:
    """The node cannot be read as the operator it calls; ONNX Runtime would refuse it as well."""
    return ModelError(
        f"expected nodes that fit their operators in {found.path}, found that node {node.name!r} ({node.op_type}) has "
        f"{flaw}: {_AGAIN}"
    )


def _look_further(found: Survey, name: str, node: onnx.NodeProto, scopes: Sequence[_Scope]) -> None:
    for scope in scopes:
        if name in scope.made:
            return
        if name in scope.computed:
            found.in_order = False
            return
    raise ModelError(
        f"expected every tensor in {found.path} to come from somewhere, found that node {node.name!r} "
        f"({node.op_type}) reads {name!r}, which nothing produces: {_AGAIN}"
    )


def _given_out(found: Survey, names: Iterable[str], scope: _Scope, what: str) -> None:
    for name in names:
        if name not in scope.made or not name:
            raise ModelError(
                f"expected every tensor in {found.path} to come from somewhere, found that {what} gives out {name!r}, "
                f"which nothing produces: {_AGAIN}"
            )


def _shared(found: Survey, name: str) -> ModelError:
    return ModelError(f"expected one tensor of each name in {found.path}, found several called {name!r}: {_AGAIN}")


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """ModelError if a stored tensor's type is no type, or its contents are not as many as its shape says."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED or any(dim < 0 for dim in tensor.dims):
        raise ModelError(
            f"expected the type and shape of tensor {tensor.name!r} in {path}, found type {tensor.data_type} and shape "
            f"{list(tensor.dims)}: the file is damaged; export or download it again"
        )
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    size = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        expected, unit = size_bytes(tensor), "bytes"
        large = tensor.ByteSize() > _COUNTED_BYTES
        stored = min(tensor.ByteSize(), expected) if large else len(tensor.raw_data)
    else:
        packed = dtype not in (ir.DataType.STRING, *_COMPLEX) and dtype.itemsize < 1
        expected, unit = size_bytes(tensor) if packed else 2 * size if dtype in _COMPLEX else size, "elements"
        stored = max(len(getattr(tensor, name)) for name in _TYPED_FIELDS)
    if stored != expected:
        raise ModelError(
            f"expected {expected} {unit} in tensor {tensor.name!r} in {path}, found {stored}: the file is damaged; "
            "export or download it again"
        )


def size_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the contents of `tensor` take; 0 for text, which has no fixed size."""
    dtype = ir.DataType(tensor.data_type)
    return 0 if dtype == ir.DataType.STRING else -(-dtype.bitwidth * math.prod(tensor.dims) // 8)
