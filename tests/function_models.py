"""Models with functions, as ONNX text, and the proof that writing these out changes nothing."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from explorer.model import Model, load
from explorer.model.save import serialize

HEADER = '<ir_version: 10, opset_import: ["": 17, "my": 1]>'
ATTENTION = """<domain: "my", opset_import: ["": 17]> Attend <gain: float = 2.0> (a) => (b) {
    [turn] k = Transpose <perm = [0, 2, 1]> (a)
    [qk] l = MatMul (a, k)
    [gain] g = Constant <value_float: float = @gain> ()
    [scale] s = Mul (l, g)
    [softmax] p = Softmax <axis = -1> (s)
    [pv] b = MatMul (p, a)
}"""
TWICE = '<domain: "my", opset_import: ["": 17]> Twice (a) => (b) { b = Add (a, a) }'
X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def parsed(text: str, header: str = HEADER) -> onnx.ModelProto:
    return onnx.parser.parse_model(header + text)


def op_types(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes]


def functions(model: Model) -> set[str]:
    return {function.name for function in model.ir.functions.values()}


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def proven(write, proto: onnx.ModelProto, **feeds: np.ndarray) -> Model:
    """The model as loaded, proved to compute what ONNX Runtime makes of the file, by it and by ONNX's own evaluator."""
    path = write(proto)
    model = load(path)
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    written = onnx.load_from_string(serialize(model.ir))
    onnx.checker.check_model(written, full_check=True)
    truth = run(proto, feeds)
    for results in (run(written, feeds), ReferenceEvaluator(written).run(None, feeds)):
        for result, expected in zip(results, truth, strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    return model
