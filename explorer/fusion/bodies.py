"""The graphs inside a graph."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def with_bodies(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The graph and, the outer before the inner, the bodies of all If, Loop and Scan in it."""
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                yield from with_bodies(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                for body in attribute.as_graphs():
                    yield from with_bodies(body)
