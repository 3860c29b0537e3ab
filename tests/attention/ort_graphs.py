"""Models for the tests of ORT's own fusions, and what the installed ONNX Runtime makes of them."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from f5_dit import f5_dit
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers import optimizer

from explorer.attention.recognise import recognise
from explorer.model.load import load

FUSED = ("Attention", "MultiHeadAttention")


def small_dit(**options) -> ModelProto:
    return f5_dit(layers=1, ffn_mult=1, time_size=8, **options)


def reasons(model: ModelProto, folder: Path) -> list[str]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return [block.ort_reason for block in recognise(load(path))]


def optimized(model: ModelProto, model_type: str, heads: int, hidden: int) -> ModelProto:
    """What `onnxruntime.transformers` makes of a model when it is run by hand."""
    logging.disable(logging.CRITICAL)
    try:
        done = optimizer.optimize_model(
            copy.deepcopy(model), model_type, num_heads=heads, hidden_size=hidden, opt_level=0
        )
    finally:
        logging.disable(logging.NOTSET)
    return done.model


def offline(model: ModelProto, model_type: str, heads: int, hidden: int) -> int:
    """How many Softmax `onnxruntime.transformers` replaces by an attention operator.

    Not how many operators it adds: where the product with V or its Transpose has a second reader, the DiT fusion adds
    its operator and then bails out of removing the nodes that it replaces.
    """
    done = optimized(model, model_type, heads, hidden)
    before, after = (Counter(node.op_type for node in proto.graph.node) for proto in (model, done))
    return min(before["Softmax"] - after["Softmax"], sum(after[op] for op in FUSED))


def session(model: ModelProto, folder: Path) -> Counter[str]:
    """Op counts of the graph that a session makes of the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def find(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if node.name == f"/transformer_blocks.0/attn/{name}")


def retype(model: ModelProto, value: str, dtype: int) -> None:
    next(v for v in model.graph.value_info if v.name == value).type.tensor_type.elem_type = dtype


def constant(model: ModelProto, array: np.ndarray) -> str:
    name = f"mutation_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def insert(model: ModelProto, before: NodeProto, node: NodeProto) -> None:
    model.graph.node.insert(list(model.graph.node).index(before), node)


def remove(model: ModelProto, node: NodeProto) -> None:
    """Readers of `node` read its first input."""
    for reader in model.graph.node:
        for at, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[at] = node.input[0]
    model.graph.node.remove(node)


def node_of(model: ModelProto, end: str) -> NodeProto:
    (found,) = (node for node in model.graph.node if node.name.endswith(end))
    return found


def around(model: ModelProto, node: NodeProto, at: int, *steps: tuple[str, np.ndarray]) -> None:
    """Put operators (each with its second input) before an input of a node."""
    for op, second in steps:
        name = f"{op}_{len(model.graph.node)}"
        insert(model, node, helper.make_node(op, [node.input[at], constant(model, second)], [name], name=name))
        node.input[at] = name


def bert_of_2020(opset: int, heads: int = 2, head_size: int = 8) -> ModelProto:
    """One layer as PyTorch 1.5 wrote it: Div on the logits, mask of -10000, residual last."""
    width, random = heads * head_size, np.random.default_rng(0)
    graph = helper.make_graph(
        [],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", width]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["b", "s"]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", "s", width])],
    )

    def op(op_type: str, output: str, *inputs: str | np.ndarray, **attributes) -> str:
        names = []
        for at, value in enumerate(inputs):
            if not isinstance(value, str):
                graph.initializer.append(numpy_helper.from_array(value, f"{output}.{at}"))
                value = f"{output}.{at}"
            names.append(value)
        graph.node.append(helper.make_node(op_type, names, [output], name=f"/{output}", **attributes))
        return output

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) / 10

    def norm(x: str, output: str) -> str:
        centred = op("Sub", f"{output}_d", x, op("ReduceMean", f"{output}_m", x, axes=[-1]))
        squares = op("Pow", f"{output}_p", centred, np.float32(2))
        variance = op("Add", f"{output}_e", op("ReduceMean", f"{output}_v", squares, axes=[-1]), np.float32(1e-5))
        scaled = op("Div", f"{output}_n", centred, op("Sqrt", f"{output}_s", variance))
        return op("Add", output, op("Mul", f"{output}_g", scaled, weight(width)), weight(width))

    def heads_of(x: str, name: str, *perm: int) -> str:
        projected = op("Add", f"{name}_a", op("MatMul", f"{name}_p", x, weight(width, width)), weight(width))
        split = op("Reshape", f"{name}_r", projected, np.array([0, 0, heads, head_size]))
        return op("Transpose", name, split, perm=perm)

    def unsqueeze(x: str, output: str, axis: int) -> str:
        if opset < 13:
            return op("Unsqueeze", output, x, axes=[axis])
        return op("Unsqueeze", output, x, np.array([axis]))

    x = norm("x", "ln")
    q, k, v = heads_of(x, "q", 0, 2, 1, 3), heads_of(x, "k", 0, 2, 3, 1), heads_of(x, "v", 0, 2, 1, 3)
    logits = op("Div", "scaled", op("MatMul", "qk", q, k), np.float32(np.sqrt(head_size)))
    keep = op("Cast", "keep", unsqueeze(unsqueeze("mask", "mask1", 1), "mask2", 2), to=TensorProto.FLOAT)
    mask = op("Mul", "bias", op("Sub", "drop", np.float32(1), keep), np.float32(-10000))
    probabilities = op("Softmax", "softmax", op("Add", "masked", logits, mask), axis=3)
    mixed = op("Transpose", "turned", op("MatMul", "pv", probabilities, v), perm=[0, 2, 1, 3])
    merged = op("Reshape", "merged", mixed, np.array([0, 0, width]))
    dense = op("Add", "dense", op("MatMul", "dense_p", merged, weight(width, width)), weight(width))
    norm(op("Add", "residual", dense, x), "out")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
