"""One change at a time to graphs that ORT's offline rules know: whether they still fuse, and what is said of it."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bert import bert
from onnx import ModelProto, TensorProto, helper
from ort_graphs import (
    around,
    constant,
    find,
    insert,
    node_of,
    offline,
    optimized,
    reasons,
    remove,
    retype,
    session,
    small_dit,
)

# --- the DiT fusion, one change at a time -----------------------------------------------------------------------------


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


# --- products and heads in other spellings ----------------------------------------------------------------------------


def einsum(model: ModelProto) -> None:
    qk = node_of(model, "self/MatMul")
    qk.op_type = "Einsum"
    qk.attribute.append(helper.make_attribute("equation", "bnsh,bnht->bnst"))


def fused_matmul(model: ModelProto) -> None:
    qk = node_of(model, "self/MatMul")
    qk.op_type, qk.domain = "FusedMatMul", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def einsum_of_probabilities(model: ModelProto) -> None:
    pv = node_of(model, "self/MatMul_1")
    pv.op_type = "Einsum"
    pv.attribute.append(helper.make_attribute("equation", "bnst,bnth->bnsh"))


def folded_heads(model: ModelProto) -> None:
    """Products of rank 3 over the heads of a batch of one."""
    for info in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = 1
    first = np.array([0])
    for name, after in (("MatMul", "Div"), ("MatMul_1", "Transpose_3")):
        product, reader = node_of(model, f"self/{name}"), node_of(model, f"self/{after}")
        around(model, product, 0, ("Squeeze", first))
        around(model, product, 1, ("Squeeze", first))
        model.graph.value_info.remove(next(v for v in model.graph.value_info if v.name == product.output[0]))
        around(model, reader, 0, ("Unsqueeze", first))


def repeated_heads(model: ModelProto) -> None:
    """Each head of V twice and half of them left out before: grouped-query attention of one key head."""
    pv = node_of(model, "self/MatMul_1")
    first = constant(model, np.array([0]))
    insert(model, pv, helper.make_node("Gather", [pv.input[1], first], ["one_head"], axis=1, name="one_head"))
    insert(
        model, pv, helper.make_node("Tile", ["one_head", constant(model, np.array([1, 2, 1, 1]))], ["two"], name="two")
    )
    pv.input[1] = "two"


@pytest.mark.parametrize(
    ("mutate", "says"),
    [
        (einsum, "expects MatMul for the product of Q and K and finds Einsum ("),
        (fused_matmul, "expects MatMul for the product of Q and K and finds FusedMatMul ("),
        (einsum_of_probabilities, "expects MatMul after Softmax ("),
        (folded_heads, "and finds Unsqueeze ("),
        (repeated_heads, "and finds Tile (two), on the way to V"),
    ],
)
def test_other_spellings(mutate: Callable[[ModelProto], None], says: str, tmp_path: Path) -> None:
    model = bert(layers=1)
    mutate(model)
    (text,) = reasons(model, tmp_path)
    assert says in text
    assert text.startswith("A session (ORT_ENABLE_ALL) does not fuse this")
    assert session(model, tmp_path)["Attention"] == 0
    assert offline(model, "bert", 2, 32) == 0
    assert "would fuse it" not in text


def in_a_branch(inner: ModelProto) -> ModelProto:
    """`inner` as the branch of an If."""
    parts = (list(inner.graph.node), "then", [], list(inner.graph.output), list(inner.graph.initializer))
    then = helper.make_graph(*parts, value_info=list(inner.graph.value_info))
    same = helper.make_node("Identity", [inner.graph.input[0].name], ["same"])
    other = helper.make_graph([same], "else", [], [helper.make_empty_tensor_value_info("same")])
    node = helper.make_node("If", ["yes"], ["out"], then_branch=then, else_branch=other)
    inputs = [helper.make_tensor_value_info("yes", TensorProto.BOOL, []), *inner.graph.input]
    output = helper.make_tensor_value_info("out", inner.graph.output[0].type.tensor_type.elem_type, None)
    graph = helper.make_graph([node], "g", inputs, [output])
    return helper.make_model(graph, opset_imports=inner.opset_import, ir_version=inner.ir_version)


def test_offline_rules_leave_bodies_alone(tmp_path: Path) -> None:
    assert offline(small_dit(), "mmdit", 2, 128) == 1
    model = in_a_branch(small_dit())
    (branch,) = optimized(model, "mmdit", 2, 128).graph.node
    ops = [node.op_type for body in branch.attribute for node in body.g.node]
    assert "Softmax" in ops
    assert "MultiHeadAttention" not in ops
    (text,) = reasons(model, tmp_path)
    assert text.endswith("ORT's offline rules do not look into the body of an If, Loop or Scan.")


def test_a_product_in_two_dimensions(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
              (("q", [5, 8]), ("k", [7, 8]), ("v", [7, 8]), ("y", [5, 8]))]  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["q", "k"], ["qk"], name="product", transB=1, alpha=0.25),
        helper.make_node("Softmax", ["qk"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="pv"),
    ]
    graph = helper.make_graph(nodes, "g", values[:3], values[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (text,) = reasons(model, tmp_path)
    assert "expects MatMul for the product of Q and K and finds Gemm (product)" in text
    assert session(model, tmp_path)["Attention"] == 0
