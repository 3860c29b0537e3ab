"""Fused graphs compute what the source did where the operator itself could not: guards, factors, bodies, shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attention_graphs import run_on_cpu
from onnx import parser

from explorer.attention import Block, recognise
from explorer.fusion import Plan, apply, choose
from explorer.model import Model, load
from explorer.model.save import serialize

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


def read(tmp_path: Path, text: str) -> tuple[Model, Block]:
    path = tmp_path / "source.onnx"
    path.write_bytes(parser.parse_model(HEADER + text).SerializeToString())
    model = load(path)
    (block,) = recognise(model)
    return model, block


def fused(model: Model, block: Block) -> Model:
    assert choose(model, block, "mha").target == "mha"
    return apply(model, [block], Plan(model.digest).with_fusion(block, "mha"))


def same_results(model: Model, result: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    before, after = run_on_cpu(str(model.path), feeds), run_on_cpu(serialize(result.ir), feeds)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)
    return after


def feeds(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


QKV = "float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 8] v"
SIZES = {"q": (2, 2, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)}


def test_a_row_that_sees_nothing_stays_zero_behind_a_guard(tmp_path):
    model, block = read(
        tmp_path,
        f"""g ({QKV}, bool[b, 1, s, t] keep) => (float[b, 2, s, 8] y) {{
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            x = MatMul(q, kt)
            hide = Constant<value_float = -inf>()
            zero = Constant<value_float = 0.0>()
            m = Where(keep, x, hide)
            p = Softmax(m)
            nan = IsNaN(p)
            g = Where(nan, zero, p)
            y = MatMul(g, v) }}""",
    )
    assert block.nan_guard
    keep = np.ones((2, 1, 3, 5), bool)
    keep[1, 0, 2] = False
    (y,) = same_results(model, fused(model, block), feeds(**SIZES) | {"keep": keep})
    assert np.array_equal(y[1, :, 2], np.zeros((2, 8)))


def test_a_factor_per_head_is_moved_to_the_query(tmp_path):
    model, block = read(
        tmp_path,
        f"""g ({QKV}, float[2, 1, 1] f) => (float[b, 2, s, 8] y) {{
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            x = MatMul(q, kt)
            m = Mul(x, f)
            p = Softmax(m)
            y = MatMul(p, v) }}""",
    )
    assert block.factor is not None
    assert block.scale == 1
    same_results(model, fused(model, block), feeds(**SIZES) | {"f": np.array([0.5, 3], np.float32).reshape(2, 1, 1)})


def test_a_factor_per_key_cannot_be_moved(tmp_path):
    _, block = read(
        tmp_path,
        f"""g ({QKV}, float[t] f) => (float[b, 2, s, 8] y) {{
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            x = MatMul(q, kt)
            m = Mul(x, f)
            p = Softmax(m)
            y = MatMul(p, v) }}""",
    )
    assert [obstacle.code for obstacle in block.obstacles] == ["scale-unknown"]


def test_a_shape_of_the_logits_is_read_off_the_operands(tmp_path):
    model, block = read(
        tmp_path,
        f"""g ({QKV}) => (float[b, 2, s, 8] y, int64[4] dims, int64[2] ends) {{
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            x = MatMul(q, kt)
            inside = Shape(x)
            dims = Identity(inside)
            tail = Shape<start = 2>(x)
            ends = Identity(tail)
            p = Softmax(x)
            y = MatMul(p, v) }}""",
    )
    result = fused(model, block)
    assert "Softmax" not in result.op_counts()
    _, dims, ends = same_results(model, result, feeds(**SIZES))
    assert dims.tolist() == [2, 2, 3, 5]
    assert ends.tolist() == [3, 5]


def test_values_of_another_head_size(tmp_path):
    model, block = read(
        tmp_path,
        """g (float[b, s, 16] q, float[b, t, 16] k, float[b, t, 24] v) => (float[b, s, 24] y) {
            split = Constant<value_ints = [0, 0, 2, 8]>()
            vsplit = Constant<value_ints = [0, 0, 2, 12]>()
            q1 = Reshape(q, split)
            k1 = Reshape(k, split)
            v1 = Reshape(v, vsplit)
            q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
            kt = Transpose<perm = [0, 2, 3, 1]>(k1)
            v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
            x = MatMul(q2, kt)
            p = Softmax(x)
            o = MatMul(p, v2)
            o2 = Transpose<perm = [0, 2, 1, 3]>(o)
            merged = Constant<value_ints = [0, 0, 24]>()
            y = Reshape(o2, merged) }""",
    )
    assert (block.head_size, block.v_head_size) == (8, 12)
    result = fused(model, block)
    assert result.op_counts().get("Transpose", 0) == 0  # all three are read as BSD
    same_results(model, result, feeds(q=(2, 3, 16), k=(2, 5, 16), v=(2, 5, 24)))


def test_windows_folded_into_the_batch_share_one_mask_for_all_pictures(tmp_path):
    model, block = read(
        tmp_path,
        """g (float[n, 2, s, 8] q, float[n, 2, s, 8] k, float[n, 2, s, 8] v, float[1, 4, 1, s, s] mask)
            => (float[n, 2, s, 8] y) {
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            x = MatMul(q, kt)
            apart = Constant<value_ints = [-1, 4, 2, 6, 6]>()
            x5 = Reshape(x, apart)
            m5 = Add(x5, mask)
            together = Constant<value_ints = [-1, 2, 6, 6]>()
            m = Reshape(m5, together)
            p = Softmax(m)
            y = MatMul(p, v) }""".replace("[n, 2, s, 8]", "[12, 2, 6, 8]").replace("s, s]", "6, 6]"),
    )
    assert block.batch == "BW"
    shapes = dict.fromkeys(("q", "k", "v"), (12, 2, 6, 8)) | {"mask": (1, 4, 1, 6, 6)}
    same_results(model, fused(model, block), feeds(**shapes))


@pytest.mark.parametrize("which", [True, False])
def test_a_block_in_the_branch_of_an_if_is_fused_there(tmp_path, which):
    model, block = read(
        tmp_path,
        f"""g (bool c, {QKV}) => (float[b, 2, s, 8] y) {{
            y = If (c) <
                then_branch = attention () => (float[b, 2, s, 8] a) {{
                    kt = Transpose<perm = [0, 1, 3, 2]>(k)
                    x = MatMul(q, kt)
                    p = Softmax(x)
                    a = MatMul(p, v) }},
                else_branch = other () => (float[b, 2, s, 8] z) {{ z = Neg(q) }}
            > }}""",
    )
    result = fused(model, block)
    (attention,) = (node for node in result.nodes if node.op_type == "MultiHeadAttention")
    assert attention.graph is not result.ir.graph
    same_results(model, result, feeds(**SIZES) | {"c": np.array(which)})


@pytest.mark.parametrize(("softmax_axis", "codes"), [(-1, []), (-2, ["logits-operator"])])
def test_the_largest_logit_may_be_taken_off_its_own_row_only(tmp_path, softmax_axis, codes):
    """With the keys on the rows of the product, max over its columns is not what a softmax over its rows overlooks."""
    by_rows = softmax_axis == -2
    product = "x = MatMul(k, qt)" if by_rows else "x = MatMul(q, kt)"
    _, block = read(
        tmp_path,
        f"""g ({QKV}) => (float[b, 2, s, 8] y) {{
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            qt = Transpose<perm = [0, 1, 3, 2]>(q)
            {product}
            m = ReduceMax<axes = [-1]>(x)
            d = Sub(x, m)
            w = Softmax<axis = {softmax_axis}>(d)
            {"p = Transpose<perm = [0, 1, 3, 2]>(w)" if by_rows else "p = Identity(w)"}
            y = MatMul(p, v) }}""",
    )
    assert [obstacle.code for obstacle in block.obstacles] == codes
