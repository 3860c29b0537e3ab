"""A model raised to a newer operator set computes the same and keeps all else, or it is not raised."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from attention_graphs import run_on_cpu
from onnx import parser, version_converter

from explorer import __version__
from explorer.attention import Obstacle, recognise
from explorer.errors import BlockError
from explorer.fusion import PROVENANCE, Plan, apply
from explorer.fusion.opset import raised
from explorer.model import Model, load
from explorer.model.save import serialize

FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)}
X = "float[b, 3, 4, n] x"


@pytest.fixture
def source(tmp_path: Path):
    """Load a model from its text or protobuf."""

    def make(given: str | onnx.ModelProto, opset: int = 17) -> Model:
        if isinstance(given, str):
            given = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {given}')
        for output in given.graph.output:
            if not output.type.tensor_type.shape.dim:  # "float y" would be a scalar
                output.type.tensor_type.ClearField("shape")
        path = tmp_path / "source.onnx"
        path.write_bytes(given.SerializeToString())
        return load(path)

    return make


def newer(model: Model, opset: int = 23) -> ir.Model:
    found = raised(model, opset)
    assert isinstance(found, ir.Model), str(found)
    return found


def refused(model: Model, opset: int = 23) -> Obstacle:
    found = raised(model, opset)
    assert isinstance(found, Obstacle)
    assert found.code == "opset"
    return found


def assert_same(model: Model, result: ir.Model, feeds: dict[str, np.ndarray] = FEEDS) -> None:
    before, after = run_on_cpu(str(model.path), feeds), run_on_cpu(serialize(result), feeds)
    for one, other in zip(before, after, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


OPERATORS = [
    (9, "y = Clip<min = -0.5, max = 0.5>(x)"),
    (9, "y = Slice<starts = [1], ends = [3], axes = [2]>(x)"),
    (9, "y, i = TopK<k = 2>(x)"),
    (9, "y = Dropout<ratio = 0.5>(x)"),
    (9, "y = ReduceSum<axes = [1], keepdims = 0>(x)"),
    (10, 'y = Pad<mode = "reflect", pads = [0, 1, 0, 0, 0, 1, 0, 0]>(x)'),
    (11, "y = Softmax(x)"),
    (11, "y = Softmax<axis = 2>(x)"),
    (11, "y = Softmax<axis = 3>(x)"),
    (12, "y = LogSoftmax<axis = -1>(x)"),
    (12, "z = Unsqueeze<axes = [0, 2]>(x) y = Squeeze<axes = [2]>(z)"),
    (12, "y, z = Split<axis = 2, split = [1, 3]>(x)"),
    (13, "y, z = Split<axis = 2>(x)"),
    (13, "y = BatchNormalization(x, three, three, three, three)"),
    (17, "y = ReduceMean<axes = [-1]>(x)"),
    (17, "y = ReduceL2<axes = [1, 2], keepdims = 0>(x)"),
    (18, "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)"),
    (18, "z = Cast<to = 6>(x) y = Cast<to = 1>(z)"),
    (20, "z = Shape<start = 1>(x) y = Reshape(x, flat) w = Transpose<perm = [1, 0]>(y)"),
]


@pytest.mark.parametrize(("opset", "body"), OPERATORS)
@pytest.mark.parametrize("inside", [False, True])
def test_operators_mean_the_same(source, opset: int, body: str, inside: bool) -> None:
    weights = "float[3] three = {1.0, 2.0, 3.0}, int64[2] flat = {-1, 2}"
    text = f"g ({X}) => (float y) <{weights}> {{ {body} }}"
    if inside:
        # the same in both branches: what is new in one must not be taken for what is new in the other
        other = re.sub(r"\b([yziw])\b", r"\1_", body)
        text = f"""g ({X}, bool late) => (float r) <{weights}> {{
            r = If (late) <
                then_branch = one () => (float a) {{ {body} a = Identity(y) }},
                else_branch = two () => (float b) {{ {other} b = Identity(y_) }}
            > }}"""
    model = source(text, opset)
    result = newer(model)
    assert result.opset_imports[""] == 23
    for late in (True, False) if inside else ():
        assert_same(model, result, FEEDS | {"late": np.array(late)})
    if not inside:
        assert_same(model, result)


def test_all_else_stays_as_it_was(source) -> None:
    model = source(everything())
    before = serialize(model.ir)
    result = newer(model)
    assert serialize(model.ir) == before
    old, new = (onnx.load_from_string(data) for data in (before, serialize(result)))
    assert new.ir_version == 11
    assert {entry.domain: entry.version for entry in new.opset_import} == {"": 23, "my.ops": 2, "other.ops": 4}
    assert (new.producer_name, new.doc_string, new.metadata_props) == (old.producer_name, "a model", old.metadata_props)
    for field in ("input", "output", "value_info"):
        assert getattr(new.graph, field) == getattr(old.graph, field)
    assert [tensor.name for tensor in new.graph.initializer] == ["weight", "flat"]
    weights = (graph.initializers["weight"].const_value for graph in (result.graph, model.ir.graph))
    assert len({id(tensor) for tensor in weights}) == 1
    changed = {"mean"}
    for node in old.graph.node:
        (same,) = (other for other in new.graph.node if other.name == node.name)
        assert same.output == node.output
        assert same == node or node.name in changed
    assert [node.name for node in new.graph.node if f"{PROVENANCE}opset" in {p.key for p in node.metadata_props}] == [
        "mean/Constant", "mean"
    ]  # fmt: skip
    mean = next(node for node in new.graph.node if node.name == "mean")
    assert {prop.key: prop.value for prop in mean.metadata_props} == {
        "from": "here", "explorer.opset": "17 → 23", "explorer.replaces": "mean", "explorer.version": __version__
    }  # fmt: skip
    assert mean.doc_string == "a mean"


def everything() -> onnx.ModelProto:
    """A bit of all that a model can hold."""
    proto = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 17, "my.ops" : 2, "other.ops" : 4],
            producer_name: "me", doc_string: "a model">
        g ({X}) => (float y) <float[3, 1, 1] weight = {{1.0, 2.0, 3.0}}, int64[2] flat = {{-1, 2}}> {{
            [sum] s = Add(x, weight)
            [foreign] f = other.ops.Foo(s)
            [function] h = my.ops.Half(f)
            [mean] m = ReduceMean<axes = [-1]>(h)
            [flatten] y = Reshape(m, flat)
        }}
        <domain: "my.ops", opset_import: ["" : 17]> Half (a) => (b) {{
            two = Constant<value_float = 2.0>()
            b = Div(a, two)
        }}"""
    )
    mean = proto.graph.node[3]
    mean.doc_string = "a mean"
    mean.metadata_props.add(key="from", value="here")
    proto.metadata_props.add(key="author", value="someone")
    return proto


FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
    g (float[b, 3, 4, n] x) => (float y) {{ y = my.ops.Spread<axis = 1>(x) }}
    <domain: "my.ops", opset_import: ["" : {opset}]> Spread<axis> (a) => (b) {{
        m = ReduceMean<axes = [-1]>(a)
        c = Sub(a, m)
        b = {last}
    }}"""


@pytest.mark.parametrize("opset", [17, 13])
def test_functions_are_raised_with_the_model(source, opset: int) -> None:
    model = source(parser.parse_model(FUNCTION.format(opset=opset, last="Hardmax<axis : int = @axis>(c)")))
    result = newer(model)
    (function,) = result.functions.values()
    assert function.opset_imports[""] == 23
    assert [node.op_type for node in function] == ["Constant", "ReduceMean", "Sub", "Hardmax"]
    if opset == 17:  # ORT takes no function of another operator set than the model's
        assert_same(model, result)


def test_a_function_that_passes_an_attribute_on_to_a_changed_operator_is_refused(source) -> None:
    last = "Cast<to : int = @axis>(c)"
    found = refused(source(parser.parse_model(FUNCTION.format(opset=17, last=last))))
    assert "Cast with an attribute of the function around it" in found.found


def test_what_other_domains_compute_is_given(source) -> None:
    """With its type, as far as it is known here: what Softmax becomes depends on the rank."""
    model = source(f"g ({X}) => (float y) {{ f = com.microsoft.Gelu(x) y = Softmax<axis = 3>(f) }}", opset=12)
    assert_same(model, newer(model))
    assert [node.op_type for node in newer(model).graph] == ["Gelu", "Softmax"]


@pytest.mark.parametrize(
    ("opset", "body", "words"),
    [
        (12, "y = Hardmax(x)", "Hardmax, a change of which onnx's converter overlooks"),
        (10, "y = Resize(x, ones)", "Resize"),
        (9, "y = Upsample(x, ones)", "Upsample"),
        (18, "y = GroupNormalization<num_groups = 3>(x, three, three)", "GroupNormalization"),
        (10, "y, mask = Dropout(x)", "Dropout"),
        (16, "y = LayerNormalization(x, six, six)", "LayerNormalization, which opset 16 does not have"),
        (8, "y = Neg(x)", "opset 8, from before version 9"),
    ],
)
def test_what_the_converter_does_not_know_is_refused(source, opset: int, body: str, words: str) -> None:
    weights = ", ".join(
        f"float[{size}] {name} = {{{', '.join(['1.0'] * size)}}}"
        for name, size in (("three", 3), ("ones", 4), ("six", 6))
    )
    found = refused(source(f"g ({X}) => (float y) <{weights}> {{ {body} }}", opset))
    assert words in found.found
    assert found.hint == "export the model with opset 23"


def test_an_opset_that_nobody_knows_is_refused(source) -> None:
    newest = onnx.defs.onnx_opset_version()
    found = refused(source(f"g ({X}) => (float y) {{ y = Neg(x) }}"), newest + 1)
    assert f"knows opsets up to {newest}" in found.found
    assert found.hint == "upgrade onnx"


def test_a_converter_that_fails_is_an_obstacle(source, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/onnx/convert.cc:1: convert_graph: Assertion `false` failed: No Adapter For Foo")

    monkeypatch.setattr(version_converter, "convert_version", fail)
    found = refused(source(f"g ({X}) => (float y) {{ y = ReduceMean(x) }}"))
    assert found.found == "that onnx's converter stops: No Adapter For Foo"


def test_a_converter_that_loses_a_value_is_an_obstacle(source, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = version_converter.convert_version

    def lose(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        result = convert(model, opset)
        result.graph.node[-1].output[0] = "other"
        return result

    monkeypatch.setattr(version_converter, "convert_version", lose)
    found = refused(source(f"g ({X}) => (float y) {{ y = ReduceMean(x) }}"))
    assert "loses track of 'y'" in found.found


def test_a_converter_that_breaks_the_graph_is_an_obstacle(source, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = version_converter.convert_version

    def spoil(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        result = convert(model, opset)
        result.graph.node[-1].op_type = "NoSuchOperator"
        return result

    monkeypatch.setattr(version_converter, "convert_version", spoil)
    found = refused(source(f"g ({X}) => (float[b, 3, 4, k] y) {{ y = ReduceMean(x) }}"))
    assert "the converted graph is not valid" in found.found


def test_the_result_is_kept(source) -> None:
    model = source(f"g ({X}) => (float y) {{ y = ReduceMean(x) }}")
    assert newer(model) is newer(model)
    assert newer(model) is not newer(model, 24)
    assert newer(model, 24).opset_imports[""] == 24


# A fusion that needs it

ATTENTION = """g (float[b, 2, s, 8] q, float[b, 2, s, 8] k, float[b, 2, s, 8] v) => (float y) {
    kt = Transpose<perm = [0, 1, 3, 2]>(k)
    x = MatMul(q, kt)
    p = Softmax<axis = 3>(x)
    a = MatMul(p, v)
    m = ReduceMean<axes = [-1]>(a)
    y = Sub(a, m) }"""


@pytest.mark.parametrize("opset", [12, 17])
def test_a_target_of_a_newer_opset_raises_the_model(source, opset: int) -> None:
    model = source(ATTENTION, opset)
    blocks = recognise(model)
    result = apply(model, blocks, Plan(model.digest).with_fusion(blocks[0], "attention"))
    assert result.opset == 23
    assert set(result.op_counts()) == {"Attention", "Constant", "ReduceMean", "Sub"}
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 2, 4, 8)).astype(np.float32) for name in "qkv"}
    (before,), (after,) = run_on_cpu(str(model.path), feeds), run_on_cpu(serialize(result.ir), feeds)
    np.testing.assert_allclose(after, before, atol=2e-5)
    assert apply(model, blocks, Plan(model.digest).with_fusion(blocks[0], "mha")).opset == opset


def test_a_target_whose_opset_cannot_be_had_is_refused_with_the_reason(source) -> None:
    model = source(ATTENTION.replace("}", "h = Hardmax(y) }"), 12)
    blocks = recognise(model)
    with pytest.raises(BlockError, match=r"cannot become attention.*Hardmax"):
        apply(model, blocks, Plan(model.digest).with_fusion(blocks[0], "attention"))
    assert apply(model, blocks, Plan(model.digest).with_fusion(blocks[0], "mha")).opset == 12
