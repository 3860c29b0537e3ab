"""Raise the operator set of a model with ONNX's own version converter, or say why that cannot be.

The converter is shown only the nodes whose operator is another one in the new version, as one flat graph in which
whatever they read is given: no weights, no bodies, no operators of other domains. What it rewrote is carried into a
copy of the model; all else stays as it was, names, metadata and weights (`docs/decisions/0008-raising-the-opset.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from weakref import WeakKeyDictionary

import onnx
import onnx_ir as ir
from onnx import version_converter

from explorer.attention import Obstacle
from explorer.errors import ExplorerError
from explorer.fusion.bodies import with_bodies
from explorer.fusion.check import new_flaw
from explorer.fusion.emit import Names, declared
from explorer.fusion.provenance import provenance
from explorer.model import Model, TensorType
from explorer.model.survey import short_domain

# What they do has been the same since opset 9; new versions only admit more types.
_UNCHANGED = frozenset({"Constant", "If", "Loop", "Scan"})
_OLDEST = 9
# Operators that mean something else since this opset without the converter knowing; found by running both.
_MISREAD = {"GroupNormalization": 21, "Hardmax": 13, "Resize": 11, "Upsample": 10}
_DROPOUT_MASK = 12

_raised: WeakKeyDictionary[Model, dict[int, ir.Model | Obstacle]] = WeakKeyDictionary()


class _CannotRaiseError(ExplorerError):
    """What is in the way, in words; `at` is the node, if it is one."""

    def __init__(self, found: str, at: str = "", hint: str = "") -> None:
        super().__init__(found)
        self.at = at
        self.hint = hint


def raised(model: Model, opset: int) -> ir.Model | Obstacle:
    """A copy of `model` at `opset`, a version of ai.onnx above its own, or why there is none (code "opset").

    It shares the weights, and whoever asks again gets the same one: clone it before you change it.
    """
    known = _raised.setdefault(model, {})
    if opset not in known:
        try:
            known[opset] = _raise(model, opset)
        except _CannotRaiseError as reason:
            wanted = f"a model that can be raised from opset {model.opset} to {opset}"
            hint = reason.hint or f"export the model with opset {opset}"
            known[opset] = Obstacle("opset", reason.at, wanted, str(reason), hint)
    return known[opset]


def _raise(model: Model, opset: int) -> ir.Model:
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        found = f"that the installed onnx {onnx.__version__} knows opsets up to {newest}"
        raise _CannotRaiseError(found, hint="upgrade onnx")
    clone = model.ir.clone()
    _Conversion(clone.graph, model.types).to(opset, clone.opset_imports)
    for function in clone.functions.values():
        _Conversion(function.graph, {}).to(opset, function.opset_imports)
    needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    clone.ir_version = max(clone.ir_version or 0, needed)
    if found := new_flaw(clone, model.ir):
        raise _CannotRaiseError(f"that the converted graph is not valid: {found}")
    return clone


class _Conversion:
    """Of one graph with its bodies, in place; `types` are those of its values as far as they are known."""

    def __init__(self, graph: ir.Graph, types: Mapping[str, TensorType]) -> None:
        self._graphs = tuple(with_bodies(graph))
        self._types = types
        self._values: dict[str, ir.Value] = {}
        self._added: dict[str, ir.Value | onnx.TensorProto] = {}
        self._names = Names(())
        self._steps = ""

    def to(self, opset: int, imports: dict[str, int]) -> None:
        """Bring the graph, and the version that it imports, to `opset`."""
        domain = next((domain for domain in ("", "ai.onnx") if domain in imports), "")
        version = imports.get(domain, opset)
        if version >= opset:
            return
        if version < _OLDEST:
            raise _CannotRaiseError(f"opset {version}, from before version {_OLDEST}")
        nodes = [node for graph in self._graphs for node in graph]
        for value in self._all_values():
            if value.name in self._values:
                raise _CannotRaiseError(f"two values called {value.name!r} in a function")
            self._values[value.name or ""] = value
        self._names = Names((*self._values, *(node.name or "" for node in nodes)))
        changed = [node for node in nodes if _is_changed(node, version, opset)]
        before = self._subject(changed, version)
        try:
            after = version_converter.convert_version(before, opset)
        except (version_converter.ConvertError, RuntimeError, ValueError, IndexError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition("failed: ")[2]
            raise _CannotRaiseError(f"that onnx's converter stops: {reason}") from None
        self._steps = f"{version} → {opset}"
        self._carry(before.graph, after.graph, changed)
        imports[domain] = opset

    def _all_values(self) -> Iterator[ir.Value]:
        for graph in self._graphs:
            yield from graph.inputs
            yield from (value for value in graph.initializers.values() if not value.is_graph_input())
            yield from (value for node in graph for value in node.outputs if value.name)

    def _subject(self, nodes: list[ir.Node], version: int) -> onnx.ModelProto:
        """A model of these nodes alone, whose inputs are what they read and do not compute."""
        graph = onnx.GraphProto(name="changed", node=(ir.serde.serialize_node(node) for node in nodes))
        computed = dict.fromkeys(value for node in nodes for value in node.outputs)
        read = {value: None for node in nodes for value in node.inputs if value is not None and value not in computed}
        graph.input.extend(self._info(value) for value in read)
        # Outputs keep their names even where a node is replaced by others
        graph.output.extend(self._info(value) for value in computed if value.name)
        model = onnx.ModelProto(ir_version=onnx.IR_VERSION, graph=graph)
        model.opset_import.append(onnx.helper.make_opsetid("", version))
        return model

    def _info(self, value: ir.Value) -> onnx.ValueInfoProto:
        known = self._types.get(value.name or "") or TensorType.of(value)
        # of no type at all is what inference in the converter crashes on
        dtype, shape = (None, None) if known is None else (known.dtype, known.shape)
        sizes = None if shape is None else declared(shape)
        return onnx.helper.make_tensor_value_info(value.name or "", 0 if dtype is None else dtype.value, sizes)

    def _carry(self, before: onnx.GraphProto, after: onnx.GraphProto, nodes: list[ir.Node]) -> None:
        """Take over the nodes of `after` that are not in `before`, each in front of the one that reads it."""
        self._added.update((tensor.name, tensor) for tensor in after.initializer)
        known = {_result(proto): (proto, node) for proto, node in zip(before.node, nodes, strict=True)}
        waiting: list[onnx.NodeProto] = []
        for proto in after.node:
            if _result(proto) not in known:
                waiting.append(proto)
                continue
            old, node = known.pop(_result(proto))
            for new in waiting:
                self._add(new, node)
            waiting.clear()
            if not _alike(old, proto):
                self._rewrite(node, proto)
        if lost := [*known, *map(_result, waiting)]:
            raise _CannotRaiseError(f"that onnx's converter loses track of {', '.join(map(repr, lost[:3]))}")

    def _add(self, proto: onnx.NodeProto, place: ir.Node) -> None:
        """Write a new node in front of `place`."""
        name = self._names.fresh(f"{_key(place)}/{proto.op_type}")
        node = ir.node(
            proto.op_type, [self._value(value, place) for value in proto.input], num_outputs=len(proto.output),
            attributes={attribute.name: ir.from_proto(attribute) for attribute in proto.attribute},
            name=name, metadata_props=provenance([_key(place)], opset=self._steps),
        )  # fmt: skip
        for at, (value, given) in enumerate(zip(node.outputs, proto.output, strict=True)):
            value.name = self._names.fresh(f"{name}_output_{at}")
            self._added[given] = value
        place.prepend(node)

    def _rewrite(self, node: ir.Node, proto: onnx.NodeProto) -> None:
        """Let `node` be what the converter made of it; the values it computes stay the same."""
        if len(proto.output) != len(node.outputs):
            raise _CannotRaiseError(f"that onnx's converter changes the outputs of {node.op_type}", _key(node))
        key = _key(node)
        node.resize_inputs(len(proto.input))
        for at, value in enumerate(proto.input):
            node.replace_input_with(at, self._value(value, node))
        node.attributes.clear()
        for attribute in proto.attribute:
            node.attributes.add(ir.from_proto(attribute))
        if node.op_type != proto.op_type:
            node.op_type = proto.op_type
            node.name = self._names.fresh(f"{key}/{proto.op_type}")
        node.metadata_props.update(provenance([key], opset=self._steps))

    def _value(self, name: str, reader: ir.Node) -> ir.Value | None:
        """A value by its name in what the converter returned: one of the graph, or one that it added."""
        if not name:
            return None
        if (name in self._added) == (name in self._values):
            raise _CannotRaiseError(f"that onnx's converter loses track of {name!r}")
        added = self._added.get(name)
        if isinstance(added, onnx.TensorProto):
            assert isinstance(reader.graph, ir.Graph)
            tensor = ir.serde.deserialize_tensor(added)
            added = ir.Value(name=self._names.fresh(f"{_key(reader)}/constant"), const_value=tensor)
            reader.graph.register_initializer(added)
        return added or self._values[name]


def _is_changed(node: ir.Node, old: int, new: int) -> bool:
    """True for a node of ai.onnx whose operator is another version of itself; _CannotRaiseError if that is misread."""
    if short_domain(node.domain) or node.op_type in _UNCHANGED:
        return False
    before, after = _since(node.op_type, old), _since(node.op_type, new)
    if before == after:
        return False
    if not before:
        raise _CannotRaiseError(f"{node.op_type}, which opset {old} does not have", _key(node))
    masks = node.op_type == "Dropout" and old < _DROPOUT_MASK and len(node.outputs) > 1
    if masks or old < _MISREAD.get(node.op_type, 0) <= new:
        raise _CannotRaiseError(f"{node.op_type}, a change of which onnx's converter overlooks", _key(node))
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        raise _CannotRaiseError(f"{node.op_type} with an attribute of the function around it", _key(node))
    return True


@cache
def _since(op_type: str, version: int) -> int:
    """The opset in which an operator of ai.onnx became what it is in `version`; 0 for none of ONNX's own."""
    try:
        return int(onnx.defs.get_schema(op_type, max_inclusive_version=version, domain="").since_version)
    except onnx.defs.SchemaError:
        return 0


def _key(node: ir.Node) -> str:
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


def _result(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _alike(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """True if both are the same operator of the same values, whatever their names."""
    if one.op_type != other.op_type or one.input != other.input or len(one.attribute) != len(other.attribute):
        return False
    attributes = {attribute.name: attribute for attribute in other.attribute}
    return all(attribute == attributes.get(attribute.name) for attribute in one.attribute)
