"""Writing out the body of a function in place of its call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import zip_longest

import onnx

from explorer.errors import ModelError
from explorer.model.names import Names, rename, rename_graph
from explorer.model.survey import OperatorId, Survey, all_nodes, bodies, graphs, operator_id


class Inliner:
    """Writes out calls of `functions` in the graphs of one model.

    Values and nodes get the name of the call before their own ("layer.0/attention/softmax"), so that they are unique
    and tell where they come from. `places` counts the calls written out, `owners` has the name of the call
    for that of each new node.
    """

    def __init__(self, functions: Mapping[OperatorId, onnx.FunctionProto], found: Survey) -> None:
        self.places: Counter[OperatorId] = Counter()
        self.owners: dict[str, str] = {}
        self._functions = functions
        self._path = found.path
        self._values = Names(found.values)
        self._nodes = Names(found.node_names)

    def write_out(self, graph: onnx.GraphProto, chosen: Collection[OperatorId]) -> None:
        """Replace, in place, every call of a function among `chosen` in `graph`, its bodies and what they become."""
        nodes = list(self._without_calls(graph.node, chosen))
        del graph.node[:]
        graph.node.extend(nodes)

    def _without_calls(
        self, nodes: Iterable[onnx.NodeProto], chosen: Collection[OperatorId]
    ) -> Iterator[onnx.NodeProto]:
        pending = list(nodes)[::-1]
        while pending:
            node = pending.pop()
            key = operator_id(node)
            if key in chosen:
                self.places[key] += 1
                pending += self._instance(self._functions[key], node)[::-1]
                continue
            for attribute in node.attribute:
                for body in bodies(attribute):
                    self.write_out(body, chosen)
            yield node

    def _instance(self, function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes of `function` for this call."""
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise ModelError(
                f"expected calls that fit function {function.name!r} in {self._path}, found that {call.name!r} has "
                "more inputs or outputs: export the model again"
            )
        prefix = call.name or self._nodes.unique(function.name)
        names = dict(zip_longest(function.input, call.input, fillvalue=""))
        handed_on = []
        for formal, actual in zip(function.output, call.output, strict=False):
            if actual and formal in names:  # an input, or an output for the second time
                handed_on.append(onnx.helper.make_node("Identity", [names[formal]], [actual], name="Identity"))
            elif actual:
                names[formal] = actual
        for name in (name for node in function.node for name in node.output):
            if name and name not in names:
                names[name] = self._values.unique(f"{prefix}/{name}")
        nodes = []
        for part in function.node:
            node = onnx.NodeProto()
            node.CopyFrom(part)
            _forget_symbols(node)
            nodes.append(node)
        rename(nodes, names, lambda name: self._values.unique(f"{prefix}/{name}"))
        given = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
        for node in nodes:
            self._bind(node, given, prefix)
        nodes += handed_on
        for node in all_nodes(nodes):
            node.name = self._nodes.unique(f"{prefix}/{node.name or node.op_type}")
            self.owners[node.name] = prefix
        return nodes

    def _bind(self, node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto], prefix: str) -> None:
        """Where `node` refers to an attribute of the function, put what the call says, or else the default."""
        bound = []
        for attribute in node.attribute:
            for inner in (inner for body in bodies(attribute) for inner in body.node):
                self._bind(inner, given, prefix)
            if not attribute.ref_attr_name:
                bound.append(attribute)
            elif attribute.ref_attr_name in given:  # or else neither has it, and the operator's own default holds
                value = onnx.AttributeProto()
                value.CopyFrom(given[attribute.ref_attr_name])
                if value.type != attribute.type:
                    raise ModelError(
                        f"expected attributes of the types that functions in {self._path} ask for, found "
                        f"{attribute.ref_attr_name!r} of another one for {prefix!r}: export the model again"
                    )
                value.name = attribute.name
                for body in bodies(value):
                    rename_graph(body, {}, lambda name: self._values.unique(f"{prefix}/{name}"))
                bound.append(value)
        if any(attribute.ref_attr_name for attribute in node.attribute):
            del node.attribute[:]
            node.attribute.extend(bound)


def _forget_symbols(node: onnx.NodeProto) -> None:
    """Symbolic sizes in a function's bodies are its own: in the caller's graph the same symbol is another size."""
    for graph in (graph for attribute in node.attribute for body in bodies(attribute) for graph in graphs(body)):
        del graph.value_info[:]
        for info in (*graph.input, *graph.output):
            for dim in info.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")
