"""Layout nodes that undo each other around a written node go, and only where that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from attention_graphs import run_on_cpu
from onnx import parser

from explorer.attention import recognise
from explorer.fusion import PROVENANCE, Plan, apply
from explorer.fusion.cancel import Canceller
from explorer.model import Model, load
from explorer.model.save import serialize

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
THERE, BACK = "a = Transpose<perm = [0, 2, 1, 3]>(x)", "z = Transpose<perm = [0, 2, 1, 3]>(a)"
TURN = "a = Transpose<perm = [0, 2, 3, 1]>(x)"
PAIR = "g (float[b, 2, s, 8] x) => (float[b, 2, s, 8] y{more}) {{ {body} }}"
TO_Y = BACK.replace("z", "y")
BEHIND_W = f"w = Neg(x) {THERE.replace('x', 'w')} {TO_Y}"
ARRAY = np.arange(96, dtype=np.float32).reshape(2, 2, 3, 8)


def read(tmp_path: Path, text: str) -> Model:
    path = tmp_path / "source.onnx"
    path.write_bytes(parser.parse_model(HEADER + text).SerializeToString())
    return load(path)


def cancelled(model: Model, written: str, kept: tuple[str, ...] = ()) -> ir.Model:
    """The graph without the layout nodes that cancel; those that compute one of the names in `written` are ours."""
    graph = model.ir.clone()
    values = [value for node in graph.graph for value in node.outputs if value.name in written.split()]
    for value in values:
        producer = value.producer()
        assert producer is not None
        producer.metadata_props[f"{PROVENANCE}block"] = "attn-0"

    def replace(old: ir.Value, new: ir.Value) -> None:
        name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name

    def remove(node: ir.Node) -> None:
        if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            return
        before = node.inputs[0] and node.inputs[0].producer()
        node.graph.remove(node, safe=True)
        if before is not None:
            remove(before)

    Canceller(model, model.shape, kept, replace, remove).around(values)
    return graph


@pytest.mark.parametrize(
    ("body", "written", "left"),
    [
        pytest.param(f"{THERE} {BACK}", "a", "", id="first is ours"),
        pytest.param(f"{THERE} {BACK}", "z", "", id="second is ours"),
        pytest.param(f"{THERE} {BACK}", "", "TT", id="none is ours"),
        pytest.param(f"{TURN} z = Transpose<perm = [0, 3, 1, 2]>(a)", "a", "", id="back"),
        pytest.param(f"{TURN} z = Transpose<perm = [0, 2, 3, 1]>(a)", "a", "T", id="on"),
        pytest.param("a = Transpose(x) z = Transpose<perm = [0, 2, 3, 1]>(a)", "a", "TT", id="unsaid"),
        pytest.param("a = Reshape(x, flat) z = Reshape(a, five)", "a", "R", id="reshapes"),
        pytest.param("a = Reshape(x, flat) z = Reshape(a, heads)", "z", "", id="there and back"),
        pytest.param("a = Reshape(x, flat) z = Reshape(a, copy)", "a", "RR", id="a zero copies another size"),
        pytest.param("a = Reshape(x, part) z = Reshape(a, copy)", "a", "R", id="a zero copies the same size"),
        pytest.param("a = Reshape(x, flat) z = Reshape(a, given)", "a", "RR", id="any target"),
        pytest.param("d = Shape(x) a = Reshape(x, flat) c = Concat<axis = 0>(d, ones) z = Reshape(a, c)", "a",
                     "SCR", id="computed target"),
        pytest.param("a = Unsqueeze(x, axes) z = Reshape(a, five)", "a", "R", id="unsqueezed"),
        pytest.param("a = Unsqueeze(x, axes) z = Squeeze(a, axes)", "a", "", id="squeezed again"),
        pytest.param("a = Flatten<axis = 2>(x) z = Reshape(a, five)", "z", "R", id="flattened"),
        pytest.param("a = Reshape(x, flat) z = Flatten<axis = 0>(a)", "a", "RF", id="flattened later"),
        pytest.param("a = Transpose<perm = [0, 2, 1, 3]>(x) z = Reshape(a, flat)", "a", "TR", id="moved"),
        pytest.param("a = Neg(x) z = Reshape(a, flat)", "z", "NR", id="no layout"),
    ],
)  # fmt: skip
def test_two_layout_nodes_become_one_or_none(tmp_path: Path, body: str, written: str, left: str) -> None:
    weights = """int64[2] flat = {-1, 4}, int64[5] five = {2, 2, 3, 4, 2}, int64[4] heads = {-1, 2, 3, 8},
        int64[3] copy = {0, -1, 2}, int64[2] part = {2, -1}, int64[1] axes = {0}, int64[2] ones = {1, 1}"""
    text = f"g (float[2, 2, 3, 8] x, int64[3] given) => (float y) <{weights}> {{ {body} y = Identity(z) }}"
    proto = parser.parse_model(HEADER + text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "source.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load(path)
    result = cancelled(model, written)
    assert "".join(node.op_type[0] for node in result.graph) == left + "I"
    feeds = {"x": ARRAY, "given": np.array([2, 6, 8])}
    (before,), (after,) = run_on_cpu(str(path), feeds), run_on_cpu(serialize(result), feeds)
    np.testing.assert_array_equal(after, before)


def run_both(model: Model, result: ir.Model) -> None:
    assert [value.name for value in result.graph.outputs] == [value.name for value in model.ir.graph.outputs]
    before, after = run_on_cpu(str(model.path), {"x": ARRAY}), run_on_cpu(serialize(result), {"x": ARRAY})
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize(
    ("more", "body", "left"),
    [
        pytest.param(", float[b, s, 2, 8] a", f"{THERE} {BACK} y = Neg(z)", "TN", id="what lies between is an output"),
        pytest.param(", float[b, s, 2, 8] o", f"{THERE} {BACK} y = Neg(z) o = Neg(a)", "TNN", id="is read by others"),
        pytest.param("", BEHIND_W, "NTT", id="its name is known"),
        pytest.param("", f"{THERE} {TO_Y}", "TT", id="an input as an output"),
    ],
)
def test_what_others_know_stays(tmp_path: Path, more: str, body: str, left: str) -> None:
    model = read(tmp_path, PAIR.format(more=more, body=body))
    result = cancelled(model, "a")
    assert "".join(node.op_type[0] for node in result.graph) == left
    run_both(model, result)


def test_a_written_value_takes_the_name_of_an_output(tmp_path: Path) -> None:
    model = read(tmp_path, PAIR.format(more="", body=BEHIND_W))
    result = cancelled(model, "w a")
    assert [node.op_type for node in result.graph] == ["Neg"]
    run_both(model, result)


@pytest.mark.parametrize(("kept", "left"), [((), "R"), (("a",), "RR")])
def test_the_output_of_a_block_stays_if_no_data_are_moved_for_it(tmp_path: Path, kept: tuple[str], left: str) -> None:
    weights = "int64[3] flat = {2, 2, 24}, int64[5] five = {2, 2, 3, 4, 2}"
    body = "a = Reshape(x, flat) y = Reshape(a, five)"
    model = read(tmp_path, f"g (float[2, 2, 3, 8] x) => (float[2, 2, 3, 4, 2] y) <{weights}> {{ {body} }}")
    result = cancelled(model, "a", kept)
    assert "".join(node.op_type[0] for node in result.graph) == left
    run_both(model, result)


def test_the_output_of_a_block_goes_if_data_were_moved_twice_for_it(tmp_path: Path) -> None:
    model = read(tmp_path, PAIR.format(more="", body=f"{THERE} {BACK} y = Neg(z)"))
    assert [node.op_type for node in cancelled(model, "a", ("a",)).graph] == ["Neg"]


@pytest.mark.parametrize("target", ["mha", "attention"])
def test_heads_that_are_returned_beside_the_merged_result(tmp_path: Path, target: str) -> None:
    """The result is merged as the operator gives it, not turned for the heads and turned back."""
    model = read(
        tmp_path,
        """g (float[b, s, 16] q, float[b, t, 16] k, float[b, t, 16] v) => (float[b, s, 16] y, float[b, 2, s, 8] heads)
            <int64[4] split = {0, 0, 2, 8}, int64[3] merge = {0, 0, 16}> {
            qs = Reshape(q, split) ks = Reshape(k, split) vs = Reshape(v, split)
            qt = Transpose<perm = [0, 2, 1, 3]>(qs)
            kt = Transpose<perm = [0, 2, 3, 1]>(ks)
            vt = Transpose<perm = [0, 2, 1, 3]>(vs)
            x = MatMul(qt, kt)
            p = Softmax<axis = -1>(x)
            heads = MatMul(p, vt)
            turned = Transpose<perm = [0, 2, 1, 3]>(heads)
            y = Reshape(turned, merge) }""",
    )
    blocks = recognise(model)
    result = apply(model, blocks, Plan(model.digest).with_fusion(blocks[0], target))
    fused, *layout = result.nodes
    assert fused.outputs[0] is result.value("y")
    assert [node.op_type for node in layout] == ["Reshape", "Transpose"]
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((2, size, 16)).astype(np.float32) for name, size in (("q", 3), ("k", 5), ("v", 5))
    }
    for one, other in zip(run_on_cpu(str(model.path), feeds), run_on_cpu(serialize(result.ir), feeds), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)
