"""Small networks with attention of several kinds, as ONNX text."""

from __future__ import annotations

import onnx
import onnx.parser
from attention_layers import ATTENTION

HEADER = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'

# From BSD to BSD, with a scale of its own so that layers can be of several families
LAYER = "q{i} = Mul(h{i}, w)\nk{i} = Identity(h{i})" + ATTENTION + "h{next} = Add(h{i}, y{i})\n"


def network(*scales: float, mask: bool = False) -> onnx.ModelProto:
    """A layer for each scale: from h0 [b, s, 16], and if asked for a mask [b, 1, 1, s] that is added, to y."""
    masked = "Add(l{i}, mask)" if mask else "Identity(l{i})"
    layers = "".join(LAYER.format(i=i, next=i + 1, masked=masked.format(i=i)) for i in range(len(scales)))
    inputs = "float[b, s, 16] h0" + (", float[b, 1, 1, s] mask" if mask else "")
    weights = "".join(f", float scale{i} = {{{scale}}}" for i, scale in enumerate(scales))
    return onnx.parser.parse_model(
        f"""{HEADER} g ({inputs}) => (float[b, s, 16] y)
            <float w = {{0.5}}, int64[4] split = {{0, 0, 2, 8}}, int64[3] merge = {{0, 0, 16}}{weights}> {{
            {layers} y = Identity(h{len(scales)}) }}"""
    )


def in_a_branch() -> onnx.ModelProto:
    """Attention of BNSH in a branch of an If, where nothing can be captured."""
    return onnx.parser.parse_model(
        f"""{HEADER} g (bool c, float[b, 2, s, 8] q, float[b, 2, s, 8] k, float[b, 2, s, 8] v)
            => (float[b, 2, s, 8] y) {{
            y = If (c) <
                then_branch = attention () => (float[b, 2, s, 8] a) {{
                    kt = Transpose<perm = [0, 1, 3, 2]>(k)
                    x = MatMul(q, kt)
                    p = Softmax(x)
                    a = MatMul(p, v) }},
                else_branch = other () => (float[b, 2, s, 8] z) {{ z = Neg(q) }}
            > }}"""
    )
