"""Whatever is fused, in whatever order: the same plan gives the same bytes, each is right, and undoing is exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from attention_graphs import run_on_cpu
from attention_layers import ATTENTION
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from explorer.attention import Block, recognise
from explorer.fusion import Plan, apply, choose
from explorer.model import Model, load
from explorer.model.save import serialize

# Two layers that share a mask, one whose logits tell a size, one in a branch; each with a scale of its own.
LAYER = "q{i} = Mul(h{i}, w{i})\nk{i} = Add(h{i}, w{i})" + ATTENTION
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
SIGNATURE = "g (float[b, s, 16] h0, float[b, 1, 1, s] mask, bool late) => (float[b, s, 16] y, int64[1] keys)"
WEIGHTS = ", ".join(
    [
        "int64[4] split = {0, 0, 2, 8}, int64[3] merge = {0, 0, 16}",
        *(f"float w{i} = {{{0.5 + i / 4}}}, float scale{i} = {{{0.1 + i / 10}}}" for i in range(4)),
    ]
)
MASKED = ("Add(l0, mask)", "Add(l1, mask)", "Identity(l2)", "Identity(l3)")
TARGETS = ("mha", "mha/bnsh", "attention/bsd", "attention/bnsh")
FEEDS = {
    "h0": np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32),
    "mask": np.where(np.arange(5) < 4, 0, -1e4).astype(np.float32).reshape(1, 1, 1, 5).repeat(2, 0),
}


def four_layers() -> str:
    layers = "".join(LAYER.format(i=i, masked=MASKED[i]) + f"    h{i + 1} = Add(h{i}, y{i})\n" for i in range(3))
    return f"""{HEADER} {SIGNATURE} <{WEIGHTS}> {{
        {layers}
        size = Shape<start = 3>(x2)
        keys = Identity(size)
        y = If (late) <
            then_branch = attention () => (float[b, s, 16] y3) {{ {LAYER.format(i=3, masked=MASKED[3])} }},
            else_branch = nothing () => (float[b, s, 16] n) {{ n = Neg(h3) }}
        > }}"""


class Source:
    """A model with four blocks, and what it computes."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(parser.parse_model(four_layers()).SerializeToString())
        self.model: Model = load(path)
        self.blocks: tuple[Block, ...] = recognise(self.model)
        self.bytes = serialize(self.model.ir)
        self.results = self.run(self.bytes)

    def run(self, model: bytes) -> list[np.ndarray]:
        runs = (run_on_cpu(model, {**FEEDS, "late": np.array(late)}) for late in (True, False))
        return [result for results in runs for result in results]

    def plan(self, targets: dict[int, str]) -> Plan:
        plan = Plan(self.model.digest)
        for at, target in targets.items():
            plan = plan.with_fusion(self.blocks[at], target)
        return plan

    def fused(self, targets: dict[int, str]) -> bytes:
        return serialize(apply(self.model, self.blocks, self.plan(targets)).ir)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("order") / "four.onnx")


decisions = st.dictionaries(st.integers(0, 3), st.sampled_from(TARGETS))


def test_there_are_four_blocks_and_all_can_be_either(four: Source) -> None:
    assert [block.scale for block in four.blocks] == pytest.approx([0.05, 0.15, 0.3, 0.5])
    assert {choose(four.model, block, target).target for block in four.blocks for target in TARGETS} == set(TARGETS)


@settings(deadline=None, max_examples=25)
@given(targets=decisions)
def test_every_subset_computes_what_the_source_does(four: Source, targets: dict[int, str]) -> None:
    fused = four.fused(targets)
    op_types = [node.op_type for node in loaded(fused).graph.all_nodes()]
    counts = {name: op_types.count(name) for name in ("Softmax", "MatMul")}
    assert counts == {"Softmax": 4 - len(targets), "MatMul": 2 * (4 - len(targets))}
    for result, expected in zip(four.run(fused), four.results, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), targets=decisions)
def test_no_order_and_no_history_shows(four: Source, data: st.DataObject, targets: dict[int, str]) -> None:
    plan = four.plan({})
    detours = data.draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*TARGETS, ""])), max_size=6))
    for at, target in detours:
        block = four.blocks[at]
        plan = plan.with_fusion(block, target) if target else plan.without(block.id)
    for at in data.draw(st.permutations(range(4))):
        block = four.blocks[at]
        plan = plan.with_fusion(block, targets[at]) if at in targets else plan.without(block.id)
    blocks = data.draw(st.permutations(four.blocks))
    assert plan == four.plan(targets)
    assert serialize(apply(four.model, blocks, plan).ir) == four.fused(targets)


@settings(deadline=None, max_examples=10)
@given(targets=decisions)
def test_undoing_gives_the_source_back(four: Source, targets: dict[int, str]) -> None:
    plan = four.plan(targets)
    apply(four.model, four.blocks, plan)
    assert serialize(four.model.ir) == four.bytes
    for at in targets:
        plan = plan.without(four.blocks[at].id)
    undone = apply(four.model, four.blocks, plan)
    assert serialize(undone.ir) == four.bytes
    assert undone.digest == four.model.digest


def test_what_is_written_for_a_block_does_not_depend_on_the_others(four: Source) -> None:
    """But for a shared mask: the first block that reads it writes it for all."""
    together = operators(four.fused(dict.fromkeys(range(4), "mha")))
    alone = [operators(four.fused({at: "mha"}))[0] for at in range(4)]
    assert [node.name for node in together] == [node.name for node in alone]
    assert [node.name for node in alone] == [f"Softmax:p{i}/MultiHeadAttention" for i in range(4)]
    assert [names(node.inputs[:3]) for node in together] == [names(node.inputs[:3]) for node in alone]
    assert [[name.split("/")[0] for name in names(node.inputs[5:])] for node in alone] == [
        ["Softmax:p0"], ["Softmax:p1"], [], []
    ]  # fmt: skip
    assert names(together[1].inputs[5:]) == names(together[0].inputs[5:]) == names(alone[0].inputs[5:])


def operators(fused: bytes) -> list[ir.Node]:
    nodes = loaded(fused).graph.all_nodes()
    return [node for node in nodes if node.op_type == "MultiHeadAttention"]


def names(values: Sequence[ir.Value | None]) -> list[str]:
    return [value.name or "" for value in values if value is not None]


def loaded(model: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(model))
