"""One meaning in any spelling gives one block that says that meaning, and its fusion computes it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from attention_graphs import Meaning, Spelling, feeds_for, oracle, render, run_on_cpu
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from explorer.attention import recognise
from explorer.fusion import Plan, apply, choose
from explorer.model import load
from explorer.model.save import serialize

MASK_KINDS = {
    "none": "none",
    "additive2": "additive",
    "additive3": "additive",
    "additive4": "additive",
    "padding": "additive",  # a float input: nothing says that it hides padding
    "causal": "causal",
}

meanings = st.builds(
    Meaning,
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    rows=st.integers(1, 6),
    keys=st.integers(1, 6),
    head_size=st.sampled_from([4, 8, 16]),
    scale=st.sampled_from([1.0, 0.125, 0.3535533905932738, 100.0]),
    mask=st.sampled_from(list(MASK_KINDS)),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
spellings = st.builds(
    Spelling,
    scale_at=st.sampled_from(["logits", "q", "k", "both"]),
    scale_op=st.sampled_from(["Mul", "Div"]),
    scale_source=st.sampled_from(["initializer", "constant", "sqrt"]),
    scale_first=st.booleans(),
    casts=st.sampled_from(["none", "before", "after"]),
    two_casts=st.booleans(),
    key=st.sampled_from(["transpose", "direct", "native"]),
    query=st.sampled_from(["bsd", "bnsh"]),
    merge=st.sampled_from(["reshape", "transpose", "none"]),
    guard=st.booleans(),
    mask_first=st.booleans(),
    dynamic=st.booleans(),
)


def possible(meaning: Meaning, spelling: Spelling) -> bool:
    """Leaves out combinations that no exporter writes or fp16 cannot hold."""
    if meaning.mask == "causal" and meaning.rows != meaning.keys:
        return False
    if spelling.casts != "none" and not meaning.half:
        return False
    return not (spelling.two_casts and spelling.casts == "none")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(meaning=meanings, spelling=spellings)
def test_any_spelling_is_read_and_fused_rightly(meaning: Meaning, spelling: Spelling) -> None:
    assume(possible(meaning, spelling))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(render(meaning, spelling).SerializeToString())
        model = load(path)
    (block,) = recognise(model)
    assert block.obstacles == ()
    assert (block.num_heads, block.kv_num_heads) == (meaning.heads, meaning.heads)
    assert (block.head_size, block.v_head_size) == (meaning.head_size, meaning.head_size)
    assert block.scale == pytest.approx(meaning.scale, rel=2e-3 if meaning.half else 1e-6)
    if meaning.mask == "causal" and meaning.rows == 1:
        assert block.mask.kind in ("causal", "boolean")  # one entry hides nothing, and would be broadcast
    else:
        assert block.mask.kind == MASK_KINDS[meaning.mask]
    casts = 0 if spelling.casts == "none" else 2 + spelling.two_casts
    assert len(block.casts) == casts

    before = serialize(model.ir)
    fused = apply(model, [block], Plan(model.digest).with_fusion(block.id, "mha"))
    assert serialize(model.ir) == before
    counts = fused.op_counts()
    assert counts["MultiHeadAttention"] == 1
    assert "Softmax" not in counts

    feeds = feeds_for(meaning, spelling)
    truth = oracle(meaning, spelling, feeds)
    (result,) = run_on_cpu(serialize(fused.ir), feeds)
    assert result.shape == truth.shape
    tolerance = 2e-2 if meaning.half else 2e-5
    np.testing.assert_allclose(result.astype(np.float64), truth, atol=tolerance * max(np.abs(truth).max(), 1))


def edited(edit: str) -> bytes:
    """A plain attention graph with one edit that changes its meaning."""
    proto = render(Meaning(), Spelling())
    nodes = {node.op_type: node for node in proto.graph.node}
    if edit == "axis":
        nodes["Softmax"].attribute[0].i = 2
    elif edit == "tanh":
        at = list(proto.graph.node).index(nodes["Softmax"])
        node = type(nodes["Softmax"])(op_type="Tanh", name="tanh", input=[nodes["Softmax"].input[0]], output=["t"])
        nodes["Softmax"].input[0] = "t"
        proto.graph.node.insert(at, node)
    elif edit == "negative scale":
        proto.graph.initializer[1].CopyFrom(_scalar(proto.graph.initializer[1].name, -0.25))
    elif edit == "zero scale":
        proto.graph.initializer[1].CopyFrom(_scalar(proto.graph.initializer[1].name, 0.0))
    elif edit in ("output logits", "output probabilities"):
        name = nodes["Softmax"].input[0] if edit == "output logits" else nodes["Softmax"].output[0]
        proto.graph.output.append(type(proto.graph.output[0])(name=name))
    elif edit == "second reader":
        reader = type(nodes["Softmax"])(op_type="ReduceSum", name="r", input=[nodes["Softmax"].output[0]], output=["r"])
        proto.graph.node.append(reader)
        proto.graph.output.append(type(proto.graph.output[0])(name="r"))
    return proto.SerializeToString()


def _scalar(name: str, number: float):
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(number, np.float32), name)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        ("axis", "softmax-axis"),
        ("tanh", "logits-operator"),
        ("negative scale", "scale"),
        ("zero scale", "scale"),
        ("output logits", "interior-output"),
        ("output probabilities", "interior-output"),
        ("second reader", "interior-used"),
    ],
)
def test_an_edit_that_changes_the_meaning_is_an_obstacle(edit: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "edited.onnx"
    path.write_bytes(edited(edit))
    model = load(path)
    (block,) = recognise(model)
    target, obstacles = choose(model, block, "auto")
    assert target == ""
    assert code in {obstacle.code for obstacle in obstacles}
