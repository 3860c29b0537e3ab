"""Products of two tensors, in whatever spelling: which axes are summed, which are shared, which belong to one factor.

Each axis of the factors and of the result carries a label, as in Einsum; every spelling is brought to that form.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from explorer.attention.walk import is_op
from explorer.model import Model
from explorer.model.constants import attribute

_LABELS = "abcdefghijklmnopqrstuvwxyz"

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contraction:
    """result = factor · Σ left·right (+ addend_factor · addend), summed over the labels that the result lacks."""

    node: ir.Node
    left: Labels
    right: Labels
    result: Labels
    factor: float = 1.0
    addend: ir.Value | None = None
    addend_factor: float = 1.0

    def labels(self, index: int) -> Labels:
        """Labels of input 0 or 1."""
        return self.right if index else self.left

    @property
    def summed(self) -> frozenset[str]:
        """Labels that both factors have and the result lacks."""
        return (frozenset(self.left) & frozenset(self.right)) - frozenset(self.result)

    @property
    def sound(self) -> bool:
        """True if no axis is taken twice (a diagonal) or summed in one factor alone."""
        both, result = (*self.left, *self.right), frozenset(self.result)
        distinct = all(len(set(labels)) == len(labels) for labels in (self.left, self.right, self.result))
        return distinct and result <= set(both) and frozenset(both) - result == self.summed


def is_product(node: ir.Node | None) -> bool:
    """True if `node` multiplies two tensors, in whatever spelling."""
    if node is None:
        return False
    if node.domain == "com.microsoft":
        return node.op_type in ("FusedMatMul", "TransposeMatMul")
    return is_op(node, "MatMul", "Gemm") or (is_op(node, "Einsum") and len(node.inputs) == 2)


def contraction(model: Model, node: ir.Node) -> Contraction | None:
    """How `node` multiplies its first two inputs; None if their ranks are unknown or it does something else, too."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    shapes = model.shape(node.inputs[0]), model.shape(node.inputs[1])
    if is_op(node, "Einsum"):
        found = _einsum(node, tuple(None if shape is None else len(shape) for shape in shapes))
    elif shapes[0] is None or shapes[1] is None or min(len(shapes[0]), len(shapes[1])) < 2:
        return None
    elif is_op(node, "Gemm"):
        found = _gemm(node)
    else:
        found = _matmul(node, len(shapes[0]), len(shapes[1]))
    return found if found is not None and found.sound else None


def _matmul(node: ir.Node, left_rank: int, right_rank: int) -> Contraction:
    batch = tuple(_LABELS[: max(left_rank, right_rank) - 2])
    left = _factor(node, "A", batch[len(batch) - left_rank + 2 :], ("x", "y"))
    right = _factor(node, "B", batch[len(batch) - right_rank + 2 :], ("y", "z"))
    return Contraction(node, left, right, (*batch, "x", "z"), attribute(node, "alpha", 1.0))


def _factor(node: ir.Node, name: str, batch: Labels, matrix: Labels) -> Labels:
    """Labels of a factor of MatMul or FusedMatMul, which may store it transposed in two ways."""
    if attribute(node, f"trans{name}", 0):
        matrix = matrix[::-1]
    if attribute(node, f"transBatch{name}", 0):  # the rows lie before the batch
        return (matrix[0], *batch, matrix[1])
    return (*batch, *matrix)


def _gemm(node: ir.Node) -> Contraction:
    left = ("y", "x") if attribute(node, "transA", 0) else ("x", "y")
    right = ("z", "y") if attribute(node, "transB", 0) else ("y", "z")
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    return Contraction(node, left, right, ("x", "z"), alpha, addend, beta)


def _einsum(node: ir.Node, ranks: tuple[int | None, ...]) -> Contraction | None:
    sides = str(attribute(node, "equation", "")).replace(" ", "").split("->")
    terms = sides[0].split(",")
    if len(terms) != 2:
        return None
    if len(sides) == 1:  # without a right side: the labels that occur once, in alphabetical order
        letters = [letter for letter in "".join(terms) if letter != "."]
        sides.append(("..." if "." in sides[0] else "") + "".join(sorted(x for x in letters if letters.count(x) == 1)))
    hidden = 0
    for term, rank in zip(terms, ranks, strict=True):
        if "..." in term:
            if rank is None:
                return None
            hidden = max(hidden, rank - len(term) + 3)
    left, right, result = (
        _expand(term, hidden if rank is None else rank - len(term) + 3)
        for term, rank in zip((*terms, sides[1]), (*ranks, None), strict=True)
    )
    return Contraction(node, left, right, result)


def _expand(term: str, hidden: int) -> Labels:
    """The labels of one operand of an equation; an ellipsis stands for `hidden` axes, aligned to the right."""
    before, dots, after = term.partition("...")
    return (*before, *((f".{axis}" for axis in range(hidden, 0, -1)) if dots else ()), *after)
