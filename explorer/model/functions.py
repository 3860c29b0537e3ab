"""Functions of the model that hold attention are written out where they are called.

ONNX Runtime does that with all functions before it optimises, so a block inside one is as good as any other; and each
call then is a block of its own, to be fused, captured and measured like the rest. Functions without attention stay.
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Collection, Iterator, Mapping

import onnx

from explorer.errors import ModelError
from explorer.model.inline import Inliner
from explorer.model.survey import (
    KNOWN_DOMAINS,
    OperatorId,
    Survey,
    all_nodes,
    function_id,
    graphs,
    operator_id,
    short_domain,
)

SOFTMAX = (frozenset({"Softmax"}), frozenset({"LogSoftmax", "Exp"}), frozenset({"Exp", "ReduceSum", "Div"}))
"""Operators of ONNX of which a softmax is made, one spelling each."""

ATTENTION_OPERATORS = frozenset(
    {
        ("", "Attention"),
        ("com.microsoft", "Attention"),
        ("com.microsoft", "DecoderMaskedMultiHeadAttention"),
        ("com.microsoft", "DecoderMaskedSelfAttention"),
        ("com.microsoft", "GroupQueryAttention"),
        ("com.microsoft", "LongformerAttention"),
        ("com.microsoft", "MultiHeadAttention"),
        ("com.microsoft", "PackedAttention"),
        ("com.microsoft", "PackedMultiHeadAttention"),
        ("com.microsoft", "PagedAttention"),
        ("com.microsoft", "QAttention"),
        ("com.microsoft", "SparseAttention"),
    }
)
"""Domain and name of each operator that is attention as a whole."""

_PRODUCTS = frozenset({("", "MatMul"), ("", "Gemm"), ("", "Einsum"), ("com.microsoft", "FusedMatMul")})
# More than any real model has; a few functions that call each other twice can grow without end.
_MAX_NODES = 1_000_000

_Functions = Mapping[OperatorId, onnx.FunctionProto]
_Neighbours = Callable[[onnx.NodeProto], list[onnx.NodeProto]]


def inline_attention(proto: onnx.ModelProto, found: Survey) -> Iterator[str]:
    """Write out, in place, the functions with attention wherever `proto` calls them; sentences on what was done.

    A function that only stands between a Softmax and the products around it is written out with them. A function made
    for another version of an operator set than the model's stays, and a sentence says so. ModelError if something calls
    a function that is not there or with too many values, or if functions call each other without end.
    """
    functions = {function_id(function): function for function in proto.functions}
    if not functions:
        return
    _check_calls(functions, found)
    order = _callees_first(functions, found)
    operators = {key: {operator_id(node) for node in all_nodes(functions[key].node)} for key in order}
    versions = {short_domain(entry.domain): entry.version for entry in proto.opset_import}
    chosen: set[OperatorId] = set()
    multiplying: set[OperatorId] = set()
    for key in order:
        known = {(domain, name) for domain, name, _ in operators[key] - functions.keys()}
        if operators[key] & multiplying or known & _PRODUCTS:
            multiplying.add(key)
        if operators[key] & chosen or known & ATTENTION_OPERATORS or _has_softmax(known):
            if clash := _clash(functions[key], functions, versions):
                yield f"Function {_words(key)} holds attention that is not looked at, since it needs {clash}."
            else:
                chosen.add(key)
                _import(functions[key], versions)
    inliner = Inliner(functions, found)
    while chosen:
        _check_growth(proto.graph, functions, chosen, found)
        inliner.write_out(proto.graph, chosen)
        chosen = set()
        for graph in graphs(proto.graph):
            for key in sorted(_parts_of_attention(graph, functions, multiplying, inliner.owners)):
                if not _clash(functions[key], functions, versions):
                    chosen.add(key)
                    _import(functions[key], versions)
    if not inliner.places:
        return
    imported = {short_domain(entry.domain) for entry in proto.opset_import}
    proto.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in versions.items() if domain not in imported
    )
    _drop_uncalled(proto, inliner.places)
    counts = ", ".join(f"{_words(key)} ({count}×)" for key, count in inliner.places.items())
    yield f"Functions with attention are written out where they are called: {counts}; the file is unchanged."


def _words(key: OperatorId) -> str:
    domain, name, overload = key
    return f"{domain or 'ai.onnx'}.{name}{':' if overload else ''}{overload}"


def _has_softmax(operators: Collection[tuple[str, str]]) -> bool:
    names = {name for domain, name in operators if not domain}
    return any(spelling <= names for spelling in SOFTMAX)


def _check_calls(functions: _Functions, found: Survey) -> None:
    own = {domain for domain, *_ in functions} - KNOWN_DOMAINS
    for key in found.operators:
        if key[0] in own and key not in functions:
            raise ModelError(
                f"expected every function that is called in {found.path}, found that {_words(key)} is missing: "
                "export the model again"
            )


def _callees_first(functions: _Functions, found: Survey) -> list[OperatorId]:
    calls = {
        key: {operator_id(node) for node in all_nodes(function.node)} & functions.keys()
        for key, function in functions.items()
    }
    try:
        return list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        circle = " → ".join(_words(key) for key in reversed(error.args[1]))
        raise ModelError(
            f"expected functions that end in {found.path}, found some that call each other in a circle ({circle}): "
            "export the model again"
        ) from None


def _clash(function: onnx.FunctionProto, functions: _Functions, versions: Mapping[str, int]) -> str:
    """Which operator set the function needs in another version than the model's, in words; "" if none."""
    own = {domain for domain, *_ in functions} - KNOWN_DOMAINS  # the version of a function's own domain means nothing
    for entry in function.opset_import:
        domain = short_domain(entry.domain)
        version = versions.get(domain, entry.version)
        if domain not in own and version != entry.version:
            return f"version {entry.version} of operator set {domain or 'ai.onnx'}, and the model version {version}"
    return ""


def _import(function: onnx.FunctionProto, versions: dict[str, int]) -> None:
    for entry in function.opset_import:
        versions.setdefault(short_domain(entry.domain), entry.version)


def _check_growth(graph: onnx.GraphProto, functions: _Functions, chosen: Collection[OperatorId], found: Survey) -> None:
    sizes: dict[OperatorId, int] = {}
    for key in _callees_first(functions, found):
        calls = (operator_id(node) for node in all_nodes(functions[key].node))
        sizes[key] = sum(sizes[call] if call in chosen else 1 for call in calls)
    size = sum(sizes[call] if call in chosen else 1 for call in map(operator_id, all_nodes(graph.node)))
    if size > _MAX_NODES:
        raise ModelError(
            f"expected at most {_MAX_NODES} nodes in {found.path}, found functions that grow to {size} where they are "
            "called: export the model without functions"
        )


def _drop_uncalled(proto: onnx.ModelProto, written_out: Collection[OperatorId]) -> None:
    """Remove the functions that were written out and that nobody calls any more."""
    functions = {function_id(function): function for function in proto.functions}
    kept = functions.keys() - written_out
    pending = [proto.graph.node, *(functions[key].node for key in kept)]
    while pending:
        for key in {operator_id(node) for node in all_nodes(pending.pop())} & functions.keys() - kept:
            kept.add(key)
            pending.append(functions[key].node)
    left = [function for function in proto.functions if function_id(function) in kept]
    del proto.functions[:]
    proto.functions.extend(left)


def _parts_of_attention(
    graph: onnx.GraphProto, functions: _Functions, multiplying: Collection[OperatorId], owners: Mapping[str, str]
) -> set[OperatorId]:
    """The functions called within an attention of `graph`: between a Softmax and the products on both its sides.

    Behind these products, up to the next ones, a call is part of the attention if it stands in the same function as the
    product: `owners` are the calls that nodes come from, by the node's name. `multiplying` are the functions with a
    product.
    """
    producers = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def sources(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [producers[name] for name in node.input if name in producers]

    def consumers(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [reader for name in node.output for reader in readers.get(name, ())]

    def calls_beside(start: onnx.NodeProto, neighbours: _Neighbours) -> set[OperatorId] | None:
        """The functions on that side of `start`; None if no product is there."""
        calls: set[OperatorId] = set()
        products = False
        seen: set[tuple[str, str | None]] = set()
        pending: list[tuple[onnx.NodeProto, str | None]] = [(node, None) for node in neighbours(start)]
        while pending:
            node, behind = pending.pop()  # behind a product of this owner, "" for the graph itself
            key, place = operator_id(node), (next(iter(node.output), ""), behind)
            if place in seen or key == ("", "Shape", ""):
                continue
            seen.add(place)
            product, owner = key in multiplying or key[:2] in _PRODUCTS, owners.get(node.name, "")
            if product and behind is not None:
                continue
            if key in functions and (behind is None or (owner and owner == behind)):
                calls.add(key)
            products |= product
            pending += [(other, owner if product else behind) for other in neighbours(node)]
        return calls if products else None

    parts: set[OperatorId] = set()
    for softmax in (node for node in graph.node if node.op_type in ("Softmax", "LogSoftmax")):
        before, after = calls_beside(softmax, sources), calls_beside(softmax, consumers)
        if before is not None and after is not None:
            parts |= before | after
    return parts
