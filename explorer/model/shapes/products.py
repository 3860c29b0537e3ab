"""Matrix products of every spelling, and recurrent layers."""

from __future__ import annotations

import onnx_ir as ir

from explorer.model.dims import Dim
from explorer.model.shapes.call import Call, Rules, Shape, Shapes, broadcast, broadcast_dim

INT32 = ir.DataType.INT32


def product(a: Shape, b: Shape) -> Shape:
    """Shape of a·b as numpy multiplies matrices."""
    if len(a) == 1 or len(b) == 1:
        left = a if len(a) > 1 else (1, *a)
        right = b if len(b) > 1 else (*b, 1)
        full = product(left, right)
        return full[: len(full) - 2] + (() if len(a) == 1 else full[-2:-1]) + (() if len(b) == 1 else full[-1:])
    batch = a[:-2] if a[:-2] == b[:-2] else broadcast((a[:-2], b[:-2]))
    return (*batch, a[-2], b[-1])


def _mat_mul(call: Call) -> Shapes:
    return [product(call.shape(0), call.shape(1))]


def _fused_mat_mul(call: Call) -> Shapes:
    a, b = (_transposed(call, position, letter) for position, letter in enumerate("AB"))
    return [product(a, b)]


def _transposed(call: Call, position: int, letter: str) -> Shape:
    """An operand of FusedMatMul as it is multiplied: `transBatch` makes its first axis the last but one."""
    shape = call.shape(position)
    if len(shape) < 2:
        return shape
    if call.attribute(f"transBatch{letter}", 0):
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if call.attribute(f"trans{letter}", 0) else shape


def _gemm(call: Call) -> Shapes:
    a, b = call.shape(0), call.shape(1)
    return [(a[1 if call.attribute("transA", 0) else 0], b[0 if call.attribute("transB", 0) else 1])]


def _einsum(call: Call) -> Shapes:
    equation = call.attribute("equation").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    names = terms.split(",")
    if not arrow:
        letters = terms.replace(",", "").replace("...", "")
        result = ("..." if "..." in terms else "") + "".join(sorted(x for x in letters if letters.count(x) == 1))
    sizes: dict[str, Dim] = {}
    rows: list[Shape] = []
    for position, term in enumerate(names):
        shape = call.shape(position)
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after)
        if hidden < 0 or (hidden and not dots):
            raise ValueError("the equation does not fit the shapes")
        rows.append(shape[len(before) : len(before) + hidden])
        for letter, dim in zip(before + after, shape[: len(before)] + shape[len(before) + hidden :], strict=True):
            sizes[letter] = broadcast_dim(sizes[letter], dim) if letter in sizes else dim
    before, dots, after = result.partition("...")
    middle = broadcast(rows) if dots else ()
    return [(*(sizes[letter] for letter in before), *middle, *(sizes[letter] for letter in after))]


def _quantised_mat_mul(call: Call) -> Shapes:
    """QLinearMatMul: each operand is followed by its scale and zero point."""
    return [product(call.shape(0), call.shape(3))]


def _packed_weight(call: Call) -> Shapes:
    """MatMulNBits and its kind: the weight's sizes are attributes."""
    return [(*call.shape(0)[:-1], call.attribute("N"))]


def _recurrent(call: Call) -> Shapes:
    """RNN, GRU, LSTM: all states, the last state, the last cell."""
    x, hidden = call.shape(0), call.attribute("hidden_size")
    directions = 2 if call.attribute("direction", "forward") == "bidirectional" else 1
    if hidden is None:
        hidden = call.shape(2)[-1]
    if call.attribute("layout", 0):
        return [(x[0], x[1], directions, hidden), *[(x[0], directions, hidden)] * 2]
    return [(x[0], directions, x[1], hidden), *[(directions, x[1], hidden)] * 2]


RULES: Rules = {
    "MatMul": ((0,), _mat_mul),
    "Gemm": ((0,), _gemm),
    "Einsum": ((0,), _einsum),
    "MatMulInteger": ((INT32,), _mat_mul),
    "QLinearMatMul": ((7,), _quantised_mat_mul),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), ((0,), _recurrent)),
}

MICROSOFT_RULES: Rules = {
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), ((0,), _fused_mat_mul)),
    "FusedGemm": ((0,), _gemm),
    "GemmFastGelu": ((0,), _mat_mul),
    "MatMulIntegerToFloat": ((2,), _mat_mul),
    "DynamicQuantizeMatMul": ((0,), _mat_mul),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), ((0,), _packed_weight)),
}
