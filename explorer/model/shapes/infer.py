"""The pass: types of all values of a graph, each node seen once, in execution order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from explorer.model.constants import Folder, is_overridable
from explorer.model.dims import Dim
from explorer.model.shapes.bodies import BODIES
from explorer.model.shapes.call import RULE_ERRORS, Call, DtypeRule, Rule, Shape
from explorer.model.shapes.merge import agree, merge
from explorer.model.shapes.table import RULES
from explorer.model.types import TensorType


def infer(model: ir.Model, known: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """Types of all values of `model` by name; its nodes must be in execution order.

    `known` is what the file and ONNX's own inference say (`infer_types`): what graph inputs are, and what is believed
    where no rule says more. An ill-formed graph is no error: what no rule can say stays as it is in `known`.
    """
    return Pass(model, known).run()


class Pass:
    """The inference of one model."""

    def __init__(self, model: ir.Model, known: Mapping[str, TensorType]) -> None:
        self.types: dict[int, TensorType] = {}
        """What has been found so far, by `id` of the value."""
        self.sizes: set[Dim] = set()
        """Expressions that are the size of an array, though nothing in them says that they are not negative."""
        self.scope = ""
        """Where in nested bodies the pass is; names what is unknown there."""
        self._model = model
        self._known = known
        self._seen: set[Shape | None] = set()
        self._graphs: dict[int, ir.Graph] = {}
        self._own_functions = {(function.domain, function.name) for function in model.functions.values()}
        imports = model.opset_imports
        self._opset = next((imports[domain] for domain in ("", "ai.onnx") if domain in imports), 1)
        self.forget()

    def forget(self) -> None:
        """Fold constants anew: values of a body are about to be inferred once more."""
        self.folder = Folder(lambda value: self.types.get(id(value)), self._model.ir_version)

    def run(self) -> dict[str, TensorType]:
        """Infer everything; types by name."""
        for value in self._model.graph.inputs:
            self.keep(value, None, None)
        self.graph(self._model.graph)
        return self._by_name()

    def graph(self, graph: ir.Graph) -> None:
        """Infer a graph whose inputs are known."""
        self._graphs[id(graph)] = graph
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not is_overridable(value, self._model.ir_version):
                self.types[id(value)] = TensorType(ir.DataType(tensor.dtype), tuple(tensor.shape.numpy()))
        for node in graph:
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        op_type, domain = node.op_type, node.domain
        rules = RULES.get(domain)
        rule = None if rules is None else rules.get(op_type)
        if rule is not None and (domain, op_type) not in self._own_functions:
            self._apply(rule, Call(node, self.types, self.folder.elements, self.sizes, self._opset, self.scope))
        elif op_type in BODIES and domain in ("", "ai.onnx"):
            BODIES[op_type](self, node)
        else:
            for output in node.outputs:
                self.keep(output, None, None)

    def _apply(self, rule: Rule, call: Call) -> None:
        dtypes, shape_rule = rule
        shapes: Sequence[Shape | None]
        try:
            shapes = shape_rule(call)
        except RULE_ERRORS:
            shapes = ()
        outputs = call.node.outputs
        if len(outputs) == 1 == len(shapes):
            self.keep(outputs[0], _dtype(dtypes[0], call), shapes[0])
            return
        for position, output in enumerate(outputs):
            shape = shapes[position] if position < len(shapes) else None
            self.keep(output, _dtype(dtypes[min(position, len(dtypes) - 1)], call), shape)

    def keep(self, value: ir.Value, dtype: ir.DataType | None, shape: Shape | None) -> None:
        """Note what a rule says about a value, checked against what was known and completed from it."""
        found = merge(dtype, shape, self._known.get(value.name or ""))
        if found is None:
            return
        self.types[id(value)] = found
        if found.shape not in self._seen:
            self._seen.add(found.shape)
            self.sizes.update(dim for dim in found.shape or () if isinstance(dim, str) and " - " in dim)

    def _by_name(self) -> dict[str, TensorType]:
        named: dict[str, TensorType] = {}
        for value in self._values():
            name, found = value.name, self.types.get(id(value))
            if not name or found is None:
                continue
            other = named.setdefault(name, found)
            if other is not found:  # bodies beside each other may use one name twice
                named[name] = agree(other, found, f"{name}@")
        return named

    def _values(self) -> Iterator[ir.Value]:
        for graph in self._graphs.values():
            yield from graph.inputs
            yield from graph.initializers.values()
            for node in graph:
                yield from node.outputs


def _dtype(rule: DtypeRule, call: Call) -> ir.DataType | None:
    if isinstance(rule, ir.DataType):
        return rule
    if isinstance(rule, int):
        return call.dtype(rule)
    try:
        return rule(call)
    except RULE_ERRORS:
        return None
