"""Products in every spelling are read as labels; numpy's einsum over these labels gives what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attention_graphs import run_on_cpu
from onnx import TensorProto, helper

from explorer.attention.contraction import contraction, is_product
from explorer.model import load

ONNX = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


def product(tmp_path: Path, op: str, shapes: list[tuple[int, ...]], domain: str = "", **attributes):
    """(contraction or None, what ORT computes, the inputs) of one node."""
    names = [f"x{i}" for i in range(len(shapes))]
    node = helper.make_node(op, names, ["y"], name="product", domain=domain, **attributes)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    path = tmp_path / "product.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=ONNX, ir_version=8).SerializeToString())
    model = load(path)
    assert is_product(model.node("product"))
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in zip(names, shapes, strict=True)}
    return contraction(model, model.node("product")), lambda: run_on_cpu(str(path), feeds)[0], feeds


def computed(found, feeds) -> np.ndarray:
    letters = {label: chr(ord("a") + at) for at, label in enumerate(dict.fromkeys((*found.left, *found.right)))}
    left, right, result = ("".join(letters[x] for x in side) for side in (found.left, found.right, found.result))
    return found.factor * np.einsum(f"{left},{right}->{result}", feeds["x0"], feeds["x1"])


@pytest.mark.parametrize(
    ("op", "shapes", "attributes"),
    [
        ("MatMul", [(2, 3, 4, 5), (2, 3, 5, 6)], {}),
        ("MatMul", [(2, 3, 4, 5), (3, 5, 6)], {}),
        ("MatMul", [(4, 5), (2, 5, 6)], {}),
        ("Gemm", [(4, 5), (5, 6)], {}),
        ("Gemm", [(5, 4), (6, 5)], {"transA": 1, "transB": 1, "alpha": 0.5}),
        ("Einsum", [(2, 4, 3, 5), (2, 6, 3, 5)], {"equation": "bqhd,bkhd->bhqk"}),
        ("Einsum", [(4, 2, 3, 5), (6, 2, 3, 5)], {"equation": "ibnd,jbnd->ijbn"}),
        ("Einsum", [(2, 3, 4, 5), (2, 6, 5)], {"equation": "b h i d, b j d -> b h i j"}),
        ("Einsum", [(2, 3, 4, 5), (2, 3, 6, 5)], {"equation": "...id,...jd->...ij"}),
        ("Einsum", [(4, 5), (6, 5)], {"equation": "ik,jk"}),
        ("FusedMatMul", [(2, 3, 4, 5), (2, 3, 6, 5)], {"domain": "com.microsoft", "transB": 1, "alpha": 0.125}),
        ("FusedMatMul", [(2, 3, 5, 4), (2, 3, 5, 6)], {"domain": "com.microsoft", "transA": 1}),
        ("FusedMatMul", [(4, 2, 3, 5), (2, 3, 5, 6)], {"domain": "com.microsoft", "transBatchA": 1}),
        ("FusedMatMul", [(2, 3, 4, 5), (5, 2, 3, 6)], {"domain": "com.microsoft", "transBatchB": 1}),
        (
            "FusedMatMul",
            [(2, 3, 4, 5), (6, 2, 3, 5)],
            {"domain": "com.microsoft", "transBatchB": 1, "transB": 1},
        ),
    ],
)
def test_the_labels_say_what_is_computed(tmp_path, op, shapes, attributes):
    found, run, feeds = product(tmp_path, op, shapes, **attributes)
    assert found is not None
    np.testing.assert_allclose(computed(found, feeds), run(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equation", ["ii,ij->ij", "ij,jk->i", "ij,jk->iik"])
def test_a_diagonal_or_a_sum_over_one_factor_is_no_plain_product(tmp_path, equation):
    shapes = [(4, 4), (4, 4)]
    found, _, _ = product(tmp_path, "Einsum", shapes, equation=equation)
    assert found is None


def test_what_a_gemm_adds_is_told(tmp_path):
    found, _, _ = product(tmp_path, "Gemm", [(4, 5), (5, 6), (4, 6)], beta=2.0)
    assert found is not None
    assert found.addend is not None
    assert found.addend.name == "x2"
    assert found.addend_factor == 2.0
