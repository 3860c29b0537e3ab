"""Symbolic inference of element types and shapes: one small rule for each operator, one pass over the graph."""

from explorer.model.shapes.infer import infer

__all__ = ["infer"]
