"""The float64 operators against ONNX Runtime, which has them all."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from explorer.verify.operators import OPERATORS

HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
rng = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


INPUTS = {
    "x": array(2, 3, 4),
    "b": array(4),
    "m": array(2, 4, 5),
    "t": array(2, 5, 4),
    "u": array(3, 2, 4),
    "w": array(5, 2, 3),
    "i": rng.integers(-4, 4, (2, 3, 7)),
    "j": rng.integers(0, 2, (1, 3, 4)),
}


@pytest.mark.parametrize(
    "node",
    [
        "Erf (x)",
        "Gelu (x)",
        'Gelu <approximate = "tanh"> (x)',
        "com.microsoft.Gelu (x)",
        "com.microsoft.BiasGelu (x, b)",
        "com.microsoft.FastGelu (x)",
        "com.microsoft.FastGelu (x, b)",
        "com.microsoft.QuickGelu (x)",
        "com.microsoft.QuickGelu <alpha = 1.5> (x)",
        "SimplifiedLayerNormalization (x, b)",
        "SimplifiedLayerNormalization <axis = 2, epsilon = 0.5> (x, b)",
        "GatherElements <axis = 2> (x, i)",
        "GatherElements <axis = -1> (x, i)",
        "GatherElements (x, j)",
        "com.microsoft.FusedMatMul (x, m)",
        "com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, t)",
        "com.microsoft.FusedMatMul <transA = 1> (x, x)",
        "com.microsoft.FusedMatMul <transBatchA = 1> (u, m)",
        "com.microsoft.FusedMatMul <transBatchB = 1> (m, w)",
        "com.microsoft.FusedMatMul <transBatchA = 1, transA = 1, alpha = -2.0> (u, x)",
    ],
)
def test_an_operator_is_what_onnx_runtime_makes_of_it(node):
    read = [name for name in INPUTS if name in node[node.rindex("(") :]]
    types = {np.dtype(np.float32): "float", np.dtype(np.int64): "int64"}
    signature = ", ".join(
        f"{types[INPUTS[name].dtype]}[{', '.join(map(str, INPUTS[name].shape))}] {name}" for name in read
    )
    proto = onnx.parser.parse_model(f"{HEADER} g ({signature}) => (float[d0, d1, d2] y) {{ y = {node} }}")
    feeds = {name: INPUTS[name] for name in read}
    (expected,) = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    wide = {name: item.astype(np.float64) if item.dtype == np.float32 else item for name, item in feeds.items()}
    (found,) = ReferenceEvaluator(proto, new_ops=list(OPERATORS)).run(None, wide)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
