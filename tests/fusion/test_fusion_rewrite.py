"""The region of a block goes, and nothing else: what others need, what others say, and what was there before stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_graphs import run_on_cpu
from onnx import helper, numpy_helper, parser

from explorer.attention import Block, recognise
from explorer.fusion import PROVENANCE, Plan, apply, choose
from explorer.model import Model, load
from explorer.model.save import serialize

QKV = "float[b, 2, s, 8] q, float[b, 2, s, 8] k, float[b, 2, s, 8] v"
OUT = "float[b, 2, s, 8] y"
KT = "kt = Transpose<perm = [0, 1, 3, 2]>(k)"
SHAPES = dict.fromkeys("qkv", (2, 2, 4, 8))


def proto(text: str, header: str = '<ir_version: 8, opset_import: ["" : 17]>') -> onnx.ModelProto:
    return parser.parse_model(header + text)


@pytest.fixture
def source(tmp_path: Path):
    """Load a model from its text or protobuf."""

    def make(given: str | onnx.ModelProto) -> tuple[Model, tuple[Block, ...]]:
        path = tmp_path / "source.onnx"
        path.write_bytes((proto(given) if isinstance(given, str) else given).SerializeToString())
        model = load(path)
        return model, recognise(model)

    return make


def fused(model: Model, blocks: tuple[Block, ...], *targets: str | None) -> Model:
    """The model with a target for each block in turn; None leaves one alone."""
    plan = Plan(model.digest)
    for block, target in zip(blocks, targets, strict=True):
        plan = plan if target is None else plan.with_fusion(block, target)
    return apply(model, blocks, plan)


def feeds(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def assert_same(model: Model, result: Model, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Both compute the same from `given`; returns it."""
    before, after = run_on_cpu(str(model.path), given), run_on_cpu(serialize(result.ir), given)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)
    return after


def nodes_of(model: Model) -> dict[str, str]:
    return {model.key(node): node.op_type for node in model.nodes}


# What others need


def test_a_result_that_is_an_output_and_read_elsewhere_keeps_its_name(source) -> None:
    model, blocks = source(
        f"""g ({QKV}) => ({OUT}, float[b, 2, s, 8] twice) {{
            {KT} x = MatMul(q, kt) p = Softmax(x) y = MatMul(p, v) twice = Add(y, y) }}"""
    )
    result = fused(model, blocks, "mha")
    assert [value.name for value in result.ir.graph.outputs] == ["y", "twice"]
    assert "Softmax" not in result.op_counts()
    assert_same(model, result, feeds(**SHAPES))


def test_a_key_that_is_returned_transposed_stays(source) -> None:
    model, blocks = source(
        f"""g ({QKV}) => ({OUT}, float[b, 2, 8, s] kt) {{
            {KT} x = MatMul(q, kt) p = Softmax(x) y = MatMul(p, v) }}"""
    )
    result = fused(model, blocks, "mha")
    assert [value.name for value in result.ir.graph.outputs] == ["y", "kt"]
    (mha,) = (node for node in result.nodes if node.op_type == "MultiHeadAttention")
    assert mha.inputs[1] is result.value("k")
    assert_same(model, result, feeds(**SHAPES))


def test_a_key_that_only_the_product_reads_loses_its_transpose(source) -> None:
    model, blocks = source(
        f"g ({QKV}) => ({OUT}) {{ {KT} x = MatMul(q, kt) p = Softmax(x) y = MatMul(p, v) }}",
    )
    assert not any(node.outputs[0].name == "kt" for node in fused(model, blocks, "mha").nodes)


SHARED = f"""g ({QKV}, float[b, 1, 1, s] keep, float[b, 2, s, 8] r) => ({OUT}, float[b, 2, s, 8] z) {{
    one = Constant<value_float = 1.0>()
    low = Constant<value_float = -10000.0>()
    hidden = Sub(one, keep)
    mask = Mul(hidden, low)
    {KT}
    scale = Constant<value_float = 0.25>()
    x = MatMul(q, kt) xs = Mul(x, scale) xm = Add(xs, mask) p = Softmax(xm) y = MatMul(p, v)
    w = MatMul(r, kt) ws = Mul(w, scale) wm = Add(ws, mask) o = Softmax(wm) z = MatMul(o, v) }}"""


@pytest.mark.parametrize("targets", [("mha", None), (None, "mha"), ("mha", "mha")])
def test_what_two_blocks_share_stays_while_one_needs_it(source, targets: tuple[str | None, ...]) -> None:
    model, blocks = source(SHARED)
    result = fused(model, blocks, *targets)
    both = None not in targets
    gone = set(nodes_of(model)) - set(nodes_of(result))
    shared = {"Transpose:kt", "Constant:scale"}
    assert gone >= shared if both else not gone & shared
    assert not gone & {"Sub:hidden", "Mul:mask", "Constant:one", "Constant:low"}  # the mask is read by either
    again = recognise(result)
    assert [bool(block.fused_as) for block in again] == [target == "mha" for target in targets]
    assert not [block.obstacles for block in again if block.obstacles]
    keep = (np.arange(4) < 3).astype(np.float32).reshape(1, 1, 1, 4).repeat(2, 0)
    assert_same(model, result, feeds(**SHAPES, r=(2, 2, 4, 8)) | {"keep": keep})


def test_blocks_that_end_in_another_order_than_they_begin_share_a_mask(source) -> None:
    """The mask is written where the first of them ends, in front of both."""
    text = SHARED.replace("y = MatMul(p, v)", "").replace("z = MatMul(o, v)", "z = MatMul(o, v) y = MatMul(p, v)")
    model, blocks = source(text)
    keep = (np.arange(4) < 3).astype(np.float32).reshape(1, 1, 1, 4).repeat(2, 0)
    assert_same(model, fused(model, blocks, "mha", "mha"), feeds(**SHAPES, r=(2, 2, 4, 8)) | {"keep": keep})


def test_constants_that_nobody_reads_any_more_go(source) -> None:
    """Nodes, initializers of the graph, and those of a body."""
    graph = proto(
        f"""g (bool c, {QKV}) => ({OUT}) <float outer = {{0.25}}> {{
            y = If (c) <
                then_branch = attention () => (float[b, 2, s, 8] a) <float inner = {{0.5}}> {{
                    half = Constant<value_float = 0.5>()
                    {KT} x = MatMul(q, kt) xs = Mul(x, outer) xt = Mul(xs, inner) xu = Mul(xt, half)
                    p = Softmax(xu) a = MatMul(p, v) }},
                else_branch = other () => (float[b, 2, s, 8] z) {{ z = Mul(q, outer) }}
            > }}"""
    )
    model, blocks = source(graph)
    assert blocks[0].scale == 0.0625
    result = fused(model, blocks, "mha")
    assert set(result.ir.graph.initializers) == {"outer"}  # the other branch reads it
    body = next(node for node in result.nodes if node.op_type == "MultiHeadAttention").graph
    assert "inner" not in body.initializers
    assert "Constant" not in result.op_counts()
    for which in (True, False):
        assert_same(model, result, feeds(**SHAPES) | {"c": np.array(which)})


def test_a_weight_that_a_caller_may_replace_stays_an_input(source) -> None:
    graph = proto(f"g ({QKV}, float[2, 2, 4, 4] m) => ({OUT}) {{ {KT} x = MatMul(q, kt) xm = Add(x, m) p = Softmax(xm) "
                  "y = MatMul(p, v) }")  # fmt: skip
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 2, 4, 4), np.float32), "m"))
    model, blocks = source(graph)
    result = fused(model, blocks, "mha")
    assert [value.name for value in result.ir.graph.inputs] == ["q", "k", "v", "m"]
    assert_same(model, result, feeds(**SHAPES))
    assert_same(model, result, feeds(**SHAPES, m=(2, 2, 4, 4)))


# What others say


def test_documentation_and_metadata_of_everything_else_stay(source) -> None:
    graph = proto(
        f"""g ({QKV}) => ({OUT}, float[b, 2, s, 8] f) {{
            {KT} x = MatMul(q, kt) p = Softmax(x) y = MatMul(p, v) f = my.ops.Foo(y) }}""",
        '<ir_version: 10, opset_import: ["" : 17, "my.ops" : 3], producer_name: "me", doc_string: "a model">',
    )
    graph.graph.doc_string = "a graph"
    graph.metadata_props.add(key="author", value="someone")
    graph.graph.output[0].doc_string = "the result"
    graph.graph.node[-1].doc_string = "a node"
    graph.graph.node[-1].metadata_props.add(key="from", value="here")
    graph.functions.append(
        helper.make_function("my.ops", "Foo", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
                             [helper.make_opsetid("", 17)])
    )  # fmt: skip
    model, blocks = source(graph)
    written = onnx.load_from_string(serialize(fused(model, blocks, "mha").ir))
    assert (written.producer_name, written.doc_string, written.graph.doc_string) == ("me", "a model", "a graph")
    assert [(prop.key, prop.value) for prop in written.metadata_props] == [("author", "someone")]
    assert written.graph.output[0].doc_string == "the result"
    foo = next(node for node in written.graph.node if node.op_type == "Foo")
    assert (foo.doc_string, foo.metadata_props[0].value) == ("a node", "here")
    assert written.functions[0] == graph.functions[0]
    assert written.graph.output[0].type == graph.graph.output[0].type
    imports = {entry.domain: entry.version for entry in written.opset_import}
    assert imports == {"": 17, "my.ops": 3, "com.microsoft": 1}


def test_only_what_is_written_is_declared(source) -> None:
    graph = proto(
        f"g ({QKV}) => ({OUT}) {{ {KT} x = MatMul(q, kt) p = Softmax(x) y = MatMul(p, v) }}",
        '<ir_version: 11, opset_import: ["" : 23]>',
    )
    model, blocks = source(graph)
    assert dict(fused(model, blocks, "attention").ir.opset_imports) == {"": 23}
    assert dict(fused(model, blocks, None).ir.opset_imports) == {"": 23}


def test_every_node_written_says_where_it_comes_from(source) -> None:
    model, blocks = source(SHARED)
    result = fused(model, blocks, "mha", "mha")
    before = {node.name for node in model.nodes} | {value.name for node in model.nodes for value in node.outputs}
    written = [node for node in result.nodes if node.metadata_props.get(f"{PROVENANCE}block")]
    others = [node for node in result.nodes if node not in written]
    assert {node.op_type for node in written} >= {"MultiHeadAttention", "Expand", "Transpose", "Reshape"}
    assert not any(name.startswith(PROVENANCE) for node in others for name in node.metadata_props)
    names = [node.name for node in written] + [value.name for node in written for value in node.outputs]
    assert len(set(names)) == len(names)
    assert set(names) & before == {"y", "z"}
    kinds = {node.name.split("/")[-1].rstrip("_0123456789") for node in written}
    assert kinds == {node.op_type for node in written}


# What cannot be


def test_a_scale_of_zero_is_an_obstacle(source) -> None:
    """Operators read 0 as their default, so that this block would become another."""
    model, blocks = source(
        f"""g ({QKV}) => ({OUT}) {{
            zero = Constant<value_float = 0.0>()
            {KT} x = MatMul(q, kt) xs = Mul(x, zero) p = Softmax(xs) y = MatMul(p, v) }}"""
    )
    for target in ("mha", "attention", "auto"):
        choice = choose(model, blocks[0], target)
        assert choice.target == ""
        assert choice.obstacles[0].code == "scale"


@pytest.mark.parametrize("target", ["mha", "attention"])
def test_a_block_in_the_body_of_a_loop_is_fused_there(source, target: str) -> None:
    """Its result is what the body hands to the next round."""
    model, blocks = source(
        f"""g (int64 rounds, {QKV}) => ({OUT}) {{
            go = Constant<value = bool {{1}}>()
            y = Loop (rounds, go, q) <
                body = attention (int64 i, bool on, float[b, 2, s, 8] h) => (bool more, float[b, 2, s, 8] a) {{
                    more = Identity(on)
                    {KT} x = MatMul(h, kt) p = Softmax(x) a = MatMul(p, v) }}
            > }}"""
    )
    result = fused(model, blocks, target)
    assert "Softmax" not in result.op_counts()
    for rounds in (0, 1, 3):
        assert_same(model, result, feeds(**SHAPES) | {"rounds": np.array(rounds)})
