"""Operators that work element by element, or row by row without changing the shape."""

from __future__ import annotations

import onnx_ir as ir

from explorer.model.dims import floor_divide
from explorer.model.shapes.call import Call, Rules, Shapes, axis_of, broadcast

BOOL, FLOAT, INT32 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT32


def like(call: Call, position: int = 0) -> Shapes:
    """All outputs have the shape of one input."""
    return [call.shape(position)] * len(call.node.outputs)


def broadcast_inputs(call: Call) -> Shapes:
    """The shape of the inputs broadcast together."""
    return [broadcast(call.shape(position) for position in range(len(call.inputs)))]


def target(call: Call) -> ir.DataType | None:
    """Element type that attribute `to` or `dtype` names."""
    number = call.attribute("to", call.attribute("dtype"))
    return None if number is None else ir.DataType(number)


def _normalised(call: Call) -> Shapes:
    """LayerNormalization: mean and deviation keep the axes before `axis`, the others become 1."""
    x = call.shape(0)
    axis = axis_of(call.attribute("axis", -1), len(x))
    rows = x[:axis] + (1,) * (len(x) - axis)
    return [x, rows, rows]


def _mean_type(call: Call) -> ir.DataType | None:
    """Mean and deviation are computed in the type of `stash_type` (float32 unless said otherwise)."""
    return ir.DataType(call.attribute("stash_type", int(FLOAT)))


def _skipped(call: Call) -> Shapes:
    """SkipLayerNormalization: output, mean, deviation, and the sum that was normalised."""
    x = call.shape(0)
    return [x, (*x[:-1], 1), (*x[:-1], 1), x]


def _batch_normalised(call: Call) -> Shapes:
    return [call.shape(0), *[call.shape(1)] * 4]


def _halved(call: Call) -> Shapes:
    *rows, last = call.shape(0)
    return [(*rows, floor_divide(last, 2))]


def _quantised_rows(call: Call) -> Shapes:
    return [call.shape(0), (), ()]


def _zero_point_type(call: Call) -> ir.DataType | None:
    """QuantizeLinear: that of the zero point, else of `output_dtype`, else uint8."""
    number = call.attribute("output_dtype", 0)
    return call.dtype(2) or (ir.DataType(number) if number else ir.DataType.UINT8)


def _dequantised_type(call: Call) -> ir.DataType | None:
    number = call.attribute("output_dtype", 0)
    return ir.DataType(number) if number else call.dtype(1)


_SAME = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Hardmax Identity InstanceNormalization GroupNormalization LRN LeakyRelu Log LogSoftmax LpNormalization "
    "MeanVarianceNormalization Mish Neg Not PRelu RMSNormalization Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin "
    "Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu ReverseSequence ScatterElements "
    "ScatterND Scatter TensorScatter RotaryEmbedding"
)
_BROADCAST = "Add BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Pow Sub Sum"
_MICROSOFT_SAME = (
    "Gelu FastGelu QuickGelu BiasSoftmax BiasGelu BiasAdd GroupNorm SkipGroupNorm RotaryEmbedding Trilu QLinearSigmoid "
    "QLinearLeakyRelu QLinearSoftmax"
)
_COMPARED = "And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor"

RULES: Rules = {
    **dict.fromkeys(_SAME.split(), ((0,), like)),
    **dict.fromkeys(_BROADCAST.split(), ((0,), broadcast_inputs)),
    **dict.fromkeys(_COMPARED.split(), ((BOOL,), broadcast_inputs)),
    **dict.fromkeys(("IsNaN", "IsInf"), ((BOOL,), like)),
    "Where": ((1,), broadcast_inputs),
    "Cast": ((target,), like),
    "CastLike": ((1,), like),
    "Dropout": ((0, BOOL), like),
    "Bernoulli": ((lambda call: target(call) or call.dtype(0),), like),
    "BatchNormalization": ((0, 3), _batch_normalised),
    "LayerNormalization": ((0, _mean_type), _normalised),
    # ONNX Runtime registers this one in ONNX's own domain
    "SimplifiedLayerNormalization": ((0, _mean_type), _normalised),
    "QuantizeLinear": ((_zero_point_type,), like),
    "DequantizeLinear": ((_dequantised_type,), like),
    "DynamicQuantizeLinear": ((ir.DataType.UINT8, FLOAT, ir.DataType.UINT8), _quantised_rows),
}

MICROSOFT_RULES: Rules = {
    **dict.fromkeys(_MICROSOFT_SAME.split(), ((0,), like)),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), ((0, _mean_type), _normalised)),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), ((0, FLOAT, FLOAT, 0), _skipped)),
    "BiasDropout": ((0, BOOL), like),
    "BitmaskDropout": ((0, ir.DataType.UINT32), lambda call: [call.shape(0)]),
    "QuantizeLinear": ((_zero_point_type,), like),
    "DequantizeLinear": ((_dequantised_type,), like),
    "BiasSplitGelu": ((0,), _halved),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), ((0,), lambda call: [broadcast((call.shape(0), call.shape(3)))])),
}
