"""Recognise attention: a model → `Block`s with roles, evidence and obstacles. Knows nothing of target operators."""

from explorer.attention.block import Block, Factor, Mask, MaskTerm, Obstacle, Operand, RegionNode, Status, Step, View
from explorer.attention.recognise import recognise

__all__ = [
    "Block",
    "Factor",
    "Mask",
    "MaskTerm",
    "Obstacle",
    "Operand",
    "RegionNode",
    "Status",
    "Step",
    "View",
    "recognise",
]
