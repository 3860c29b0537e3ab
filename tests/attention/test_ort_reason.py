"""What `ort_reason` says against what the installed ONNX Runtime does."""

import copy
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers import optimizer

from explorer.attention.recognise import recognise
from explorer.model.load import load

SAMPLES = Path(__file__).parents[2] / "sample_models"
sys.path.insert(0, str(SAMPLES))

from bert import bert  # noqa: E402
from f5_dit import f5_dit  # noqa: E402
from gpt import gpt  # noqa: E402

FUSED = ("Attention", "MultiHeadAttention")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def small_dit(**options) -> ModelProto:
    return f5_dit(layers=1, ffn_mult=1, time_size=8, **options)


def reasons(model: ModelProto, folder: Path) -> list[str]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return [block.ort_reason for block in recognise(load(path))]


def offline(model: ModelProto, model_type: str, heads: int, hidden: int) -> int:
    """How many Softmax `onnxruntime.transformers` replaces by an attention operator.

    Not how many operators it adds: where the product with V or its Transpose has a second reader, the DiT fusion adds
    its operator and then bails out of removing the nodes that it replaces.
    """
    done = optimizer.optimize_model(copy.deepcopy(model), model_type, num_heads=heads, hidden_size=hidden, opt_level=0)
    before, after = (Counter(node.op_type for node in proto.graph.node) for proto in (model, done.model))
    return min(before["Softmax"] - after["Softmax"], sum(after[op] for op in FUSED))


def session(model: ModelProto, folder: Path) -> Counter[str]:
    """Op counts of the graph that a session makes of the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


# --- the samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model_type", "heads", "hidden", "fused"),
    [
        ("f5_dit_fp16", "mmdit", 2, 128, 2),
        ("f5_dit_fp16_two_casts", "mmdit", 2, 128, 0),
        ("bert_fp32", "bert", 2, 32, 2),
        ("gpt_fp32", "gpt2", 2, 32, 0),
    ],
)
def test_samples(name: str, model_type: str, heads: int, hidden: int, fused: int, tmp_path: Path) -> None:
    model = onnx.load(SAMPLES / f"{name}.onnx")
    texts = reasons(model, tmp_path)
    assert len(texts) == 2
    assert offline(model, model_type, heads, hidden) == fused == sum("would fuse it" in text for text in texts)
    assert all(f"model_type {model_type} " in text or f"model_type {model_type!r}" in text for text in texts)


@pytest.mark.parametrize("name", ["f5_dit_fp16", "f5_dit_fp16_two_casts", "bert_fp32", "gpt_fp32"])
def test_a_session_fuses_no_sample(name: str, tmp_path: Path) -> None:
    model = onnx.load(SAMPLES / f"{name}.onnx")
    counts = session(model, tmp_path)
    assert counts["Softmax"] == 2
    assert not any(counts[op] for op in FUSED)
    assert all(text.startswith("A session (ORT_ENABLE_ALL) does not fuse this") for text in reasons(model, tmp_path))


def test_names_the_first_node_in_the_way(tmp_path: Path) -> None:
    (text,) = reasons(small_dit(), tmp_path)
    at = "/transformer_blocks.0/attn"
    assert f"expects Div after MatMul ({at}/MatMul) and finds Cast ({at}/Cast)" in text
    (text,) = reasons(gpt(layers=1), tmp_path)
    assert "expects Reshape after Reshape (/h.0/attn/Reshape_3) and finds MatMul (/h.0/attn/c_proj/MatMul)" in text


def test_a_useless_cast_is_not_what_stops_the_dit_fusion(tmp_path: Path) -> None:
    """Of two Casts after Softmax ORT drops the one from fp32 to fp32; what it lacks is the types of Q and V."""
    (text,) = reasons(small_dit(softmax_casts="two", value_info=False), tmp_path)
    assert "it needs Q's element type" in text
    (text,) = reasons(small_dit(softmax_casts="two"), tmp_path)
    assert "would fuse it" in text


def test_fused_blocks_need_no_reason(tmp_path: Path) -> None:
    done = optimizer.optimize_model(small_dit(), "mmdit", num_heads=2, hidden_size=128, opt_level=0)
    assert reasons(done.model, tmp_path) == [""]


# --- the DiT fusion, one change at a time -----------------------------------------------------------------------------


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


def mul_before_cast(model: ModelProto) -> None:
    qk, cast, mul = find(model, "MatMul"), find(model, "Cast"), find(model, "Mul_4")
    mul.input[1] = constant(model, np.float16(100))
    mul.input[0], cast.input[0] = qk.output[0], mul.output[0]
    find(model, "Softmax").input[0] = cast.output[0]
    model.graph.node.remove(mul)
    insert(model, cast, mul)
    retype(model, mul.output[0], TensorProto.FLOAT16)


def div(model: ModelProto) -> None:
    find(model, "Mul_4").op_type = "Div"


def scale_on_the_left(model: ModelProto) -> None:
    mul = find(model, "Mul_4")
    mul.input[0], mul.input[1] = mul.input[1], mul.input[0]


def scale_zero(model: ModelProto) -> None:
    find(model, "Mul_4").input[1] = constant(model, np.float32(0))


def scale_of_two_elements(model: ModelProto) -> None:
    find(model, "Mul_4").input[1] = constant(model, np.full((1, 2, 1, 1), 100, np.float32))


def no_scale(model: ModelProto) -> None:
    remove(model, find(model, "Mul_4"))


def scale_on_q(model: ModelProto) -> None:
    no_scale(model)
    qk = find(model, "MatMul")
    insert(model, qk, helper.make_node("Mul", [qk.input[0], constant(model, np.float16(2))], ["scaled"], name="on_q"))
    qk.input[0] = "scaled"


def additive_mask(model: ModelProto) -> None:
    softmax = find(model, "Softmax")
    mask = constant(model, np.zeros((1, 1, 1, 1), np.float32))
    insert(model, softmax, helper.make_node("Add", [softmax.input[0], mask], ["masked"], name="mask"))
    softmax.input[0] = "masked"


def no_reshape(model: ModelProto) -> None:
    """The projection reads [B, S, N, H]: another meaning, the same attention."""
    remove(model, find(model, "Reshape_7"))


def other_perm(model: ModelProto) -> None:
    find(model, "Transpose_3").attribute[0].ints[:] = [2, 0, 1, 3]


def second_reader(of: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        value = find(model, of).output[0]
        info = next(v for v in model.graph.value_info if v.name == value)
        model.graph.node.append(helper.make_node("Neg", [value], ["aside"], name="aside"))
        out = copy.deepcopy(info)
        out.name = "aside"
        model.graph.output.append(out)

    change.__name__ = f"second_reader_of_{of}"
    return change


def probabilities_as_output(model: ModelProto) -> None:
    softmax = find(model, "Softmax").output[0]
    model.graph.output.append(next(v for v in model.graph.value_info if v.name == softmax))


def no_type_of(which: str, at: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        value = find(model, which).input[at]
        model.graph.value_info.remove(next(v for v in model.graph.value_info if v.name == value))

    change.__name__ = f"no_type_of_input_{at}_of_{which}"
    return change


def identity_after_softmax(model: ModelProto) -> None:
    cast = find(model, "Cast_1")
    insert(model, cast, helper.make_node("Identity", [cast.input[0]], ["same"], name="same"))
    cast.input[0] = "same"


MUTATIONS = {
    **dict.fromkeys((scale_on_the_left, scale_zero), True),
    **dict.fromkeys(
        (
            *(mul_before_cast, div, no_scale, scale_on_q, scale_of_two_elements, additive_mask, no_reshape, other_perm),
            *map(second_reader, ("MatMul", "Cast", "Mul_4", "Softmax", "Cast_1", "MatMul_1", "Transpose_3")),
            *(no_type_of("MatMul", 0), no_type_of("MatMul_1", 1), probabilities_as_output, identity_after_softmax),
        ),
        False,
    ),
}


@pytest.mark.parametrize(("mutate", "fuses"), MUTATIONS.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_dit_mutations(mutate: Callable[[ModelProto], None], fuses: bool, tmp_path: Path) -> None:
    model = small_dit()
    mutate(model)
    (text,) = reasons(model, tmp_path)
    assert (offline(model, "mmdit", 2, 128) == 1) is fuses is ("would fuse it" in text), text


@pytest.mark.parametrize("casts", ["one", "two"])
@pytest.mark.parametrize("value_info", [True, False])
def test_dit_variants(casts: str, value_info: bool, tmp_path: Path) -> None:
    model = small_dit(softmax_casts=casts, value_info=value_info)
    (text,) = reasons(model, tmp_path)
    assert (offline(model, "mmdit", 2, 128) == 1) is value_info is ("would fuse it" in text)


def test_says_what_the_dit_fusion_gets_wrong(tmp_path: Path) -> None:
    model = small_dit()
    scale_zero(model)
    assert "The result would be wrong" in reasons(model, tmp_path)[0]


# --- the BERT fusions, offline and in a session -----------------------------------------------------------------------


def no_mask(model: ModelProto) -> None:
    remove(model, next(node for node in model.graph.node if node.name.endswith("self/Add")))


def mul_instead_of_div(model: ModelProto) -> None:
    """The rule knows this Mul, but then takes it for the one that ends the mask."""
    next(node for node in model.graph.node if node.name.endswith("self/Div")).op_type = "Mul"


def residual_from_elsewhere(model: ModelProto) -> None:
    add = next(node for node in model.graph.node if node.name.endswith("attention/Add"))
    add.input[1] = next(node.output[0] for node in model.graph.node if node.name == "/embeddings/Gather_1")


@pytest.mark.parametrize(
    ("mutate", "fuses"), [(no_mask, True), (mul_instead_of_div, False), (residual_from_elsewhere, False)]
)
def test_bert_mutations(mutate: Callable[[ModelProto], None], fuses: bool, tmp_path: Path) -> None:
    model = bert(layers=1)
    mutate(model)
    (text,) = reasons(model, tmp_path)
    assert (offline(model, "bert", 2, 32) == 1) is fuses is ("would fuse it" in text), text


@pytest.mark.parametrize("opset", [12, 13, 17])
def test_a_session_fuses_the_bert_of_2020_only(opset: int, tmp_path: Path) -> None:
    model = bert_of_2020(opset)
    (text,) = reasons(model, tmp_path)
    assert (
        (session(model, tmp_path)["Attention"] == 1)
        is (opset <= 12)
        is text.startswith("A session (ORT_ENABLE_ALL) may fuse this")
    ), text
    assert opset <= 12 or "only up to opset 12" in text


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
