"""What ONNX's own operators ask of a node: how many inputs and outputs, and which attributes of which type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import onnx


@dataclass(frozen=True, slots=True)
class Signature:
    """The fewest inputs and outputs of an operator, the types of its attributes, and those it cannot do without."""

    inputs: int = 0
    outputs: int = 0
    attributes: Mapping[str, int] = field(default_factory=dict)
    required: frozenset[str] = frozenset()


_ANY = Signature()


class Signatures:
    """Signatures in the versions of the operator sets that a graph imports."""

    def __init__(self, imports: Iterable[onnx.OperatorSetIdProto], functions: Collection[tuple[str, str, str]]) -> None:
        self._versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}
        self._known = dict.fromkeys(functions, _ANY)

    def of(self, operator: tuple[str, str, str]) -> Signature:
        """That of domain, name and overload; one that fits all for functions of the model and what ONNX knows not."""
        known = self._known.get(operator)
        if known is None:
            domain, name, _ = operator
            known = _signature(domain, name, self._versions.get(domain, 0))
            self._known[operator] = known
        return known


@cache
def _signature(domain: str, name: str, version: int) -> Signature:
    try:
        schema = onnx.defs.get_schema(name, max_inclusive_version=version, domain=domain)
    except (onnx.defs.SchemaError, TypeError):  # no such operator, or a name or version that is none
        return _ANY
    attributes = schema.attributes
    return Signature(
        schema.min_input,
        schema.min_output,
        {key: _attribute_type(attribute.type) for key, attribute in attributes.items()},
        frozenset(key for key, attribute in attributes.items() if attribute.required),
    )


def _attribute_type(kind: onnx.defs.OpSchema.AttrType) -> int:
    """The number that an AttributeProto has for this; the two enumerations share their names."""
    return int(onnx.AttributeProto.AttributeType.Value(str(kind).rpartition(".")[2]))
