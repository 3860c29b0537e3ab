"""Colours and symbols. Pure data.

JupyterLab's themes are white and #111111. Every fill carries white text at 4.5:1 or better and stands out from both
backgrounds at 3:1 or better, so a picture is right in either theme and needs no redrawing when the theme changes; text
that lies on the background itself follows the theme by CSS (`static/explorer.css`). Tests compute the contrasts.
"""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = "#ffffff"
DARK = "#111111"
LABEL = "#ffffff"
INK = "#010203"
"""Text that lies on the background: the style sheet finds it by this colour and gives it the theme's."""
EDGE = "#7b8494"
SELECTION = "#c06a00"
HOVER = "#1f2933"

CATEGORIES: dict[str, str] = {
    "MatMul": "#2b6cb8",
    "Softmax": "#8250df",
    "Cast": "#c8480b",
    "Attention": "#1a7f37",
    "Normalization": "#0b7a75",
    "Activation": "#bf3989",
    "Elementwise": "#5f6f86",
    "Layout": "#86622f",
    "Other": "#6e6a76",
    "Input / output": "#4d7422",
    "Port": "#6b7280",
}
"""Operator categories in the order of the legend, with their colours."""

_MEMBERS = {
    "MatMul": "MatMul Gemm FusedMatMul Einsum MatMulInteger QLinearMatMul Conv ConvTranspose MatMulNBits FusedGemm",
    "Softmax": "Softmax LogSoftmax",
    "Cast": "Cast CastLike QuantizeLinear DequantizeLinear",
    "Attention": "MultiHeadAttention Attention GroupQueryAttention QAttention PackedAttention PackedMultiHeadAttention "
    "DecoderMaskedSelfAttention DecoderMaskedMultiHeadAttention SparseAttention PagedAttention LongformerAttention",
    "Normalization": "LayerNormalization SkipLayerNormalization RMSNormalization SimplifiedLayerNormalization "
    "SkipSimplifiedLayerNormalization BatchNormalization InstanceNormalization GroupNormalization GroupNorm",
    "Activation": "Relu Gelu FastGelu BiasGelu QuickGelu Erf Tanh Sigmoid Silu Swish LeakyRelu Elu Selu Softplus "
    "HardSwish HardSigmoid Mish PRelu Celu",
    "Elementwise": "Add Sub Mul Div Pow Sqrt Neg Exp Log Abs Reciprocal Sin Cos Min Max Clip Where Equal Greater Less "
    "GreaterOrEqual LessOrEqual And Or Not Xor Mod Sign Floor Ceil Round IsNaN IsInf Sum Mean ReduceMean ReduceSum "
    "ReduceMax ReduceMin ReduceProd ReduceL2",
    "Layout": "Transpose Reshape Concat Split Slice Squeeze Unsqueeze Flatten Expand Gather GatherND GatherElements "
    "Tile Pad Identity Dropout ScatterND ScatterElements Shape Range Constant ConstantOfShape DepthToSpace Trilu",
}
_CATEGORY_OF = {op_type: category for category, members in _MEMBERS.items() for op_type in members.split()}


def category(op_type: str) -> str:
    """The category of an operator; "Other" for one that is not known."""
    return _CATEGORY_OF.get(op_type, "Other")


@dataclass(frozen=True, slots=True)
class StatusStyle:
    """How a status looks: told apart by symbol and line as well as by colour."""

    symbol: str
    color: str
    dash: str
    words: str


STATUSES: dict[str, StatusStyle] = {
    "fusable": StatusStyle("◆", "#9a6700", "dash", "can be fused"),
    "blocked": StatusStyle("✕", "#cf222e", "dot", "cannot be fused"),
    "fused": StatusStyle("✓", "#1a7f37", "solid", "fused"),
}
