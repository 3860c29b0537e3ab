"""Blocks that are alike are one family, whatever their nodes are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from onnx import helper

from explorer.attention import Block, recognise
from explorer.attention.block import Factor, Mask, MaskTerm, Obstacle, Operand, RegionNode, View
from explorer.attention.family import Family, describe, families, fingerprint, label_range
from explorer.model import load

TERM = MaskTerm("boolean", "m", (1, 1, "s", "s"), ("B", "N", "S", "T"), "bool", fill=-1e9)


def block(index: int, **changes: Any) -> Block:
    """A block whose names tell where it stands."""
    at = f"layer{index}"
    query = Operand((View(f"{at}.q", ("B", "N", "S", "H"), 1.0, "float16"),))
    plain = Block(
        label=f"attn{index}",
        anchor=f"{at}.softmax",
        anchor_output=f"{at}.p",
        region=(RegionNode(f"{at}.qk", "MatMul", "qk"), RegionNode(f"{at}.softmax", "Softmax", "softmax")),
        query=query,
        key=query,
        value=query,
        output=View(f"{at}.y", ("B", "S", "NH"), 1.0, "float16"),
        sizes=(("B", "batch"), ("H", 64), ("N", 8), ("S", "seq"), ("T", f"?{index}"), ("V", 64)),
        num_heads=8,
        kv_num_heads=8,
        head_size=64,
        v_head_size=64,
        scale=0.125,
        mask=Mask("padding", (replace(TERM, value=f"{at}.m"),)),
        dtype="float16",
        softmax_dtype="float32",
        obstacles=(Obstacle("interior-used", f"{at}.p", "a", f"readers of {at}"),),
    )
    return replace(plain, **changes)


def with_term(**changes: Any) -> dict[str, Any]:
    return {"mask": Mask("padding", (replace(TERM, **changes),))}


def test_blocks_that_differ_in_names_and_unknown_sizes_are_one_family() -> None:
    blocks = [block(index) for index in range(22)]
    (family,) = families(blocks)
    assert family.blocks == tuple(item.id for item in blocks)
    assert str(family) == "attn0…attn21: 22 identical blocks"


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.126},
        {"scale": None},
        {"scale": float("nan")},
        {"softcap": 30.0},
        {"num_heads": 4},
        {"kv_num_heads": 2},
        {"head_size": 32},
        {"v_head_size": 32},
        {"heads": "GR"},
        {"kv_heads": ""},
        {"sizes": (("B", 2),)},
        {"taken_for": (("keys", "seq"),)},
        {"dtype": "float32"},
        {"softmax_dtype": "float16"},
        {"nan_guard": True},
        {"factor": Factor("f", (8, 1, 1), ("N", "S", "T"), "float16")},
        {"mask": Mask()},
        with_term(shape=(1, 1, 1, "s")),
        with_term(layout=("N", "B", "S", "T")),
        with_term(kind="additive"),
        with_term(dtype="float16"),
        with_term(keep_when=False),
        with_term(fill=-1e4),
        with_term(coefficient=2.0),
        {"query": Operand((View("q", ("B", "S", "NH"), 1.0, "float16"),))},
        {"query": Operand((View("q", ("B", "N", "S", "H"), 1.0, "float32"),))},
        {"value": None},
        {"output": None},
        {"region": (RegionNode("a", "MatMul", "qk"), RegionNode("b", "LogSoftmax", "softmax"))},
        {"region": (RegionNode("b", "Softmax", "softmax"), RegionNode("a", "MatMul", "qk"))},
        {"obstacles": ()},
        {"fused_as": "ai.onnx.Attention"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_whatever_differs_parts_them(changes: dict[str, Any]) -> None:
    blocks = [block(0), block(1), block(2, **changes), block(3)]
    first, second = families(blocks)
    assert first.label == "attn0…attn1, attn3"
    assert second == Family("attn2", (blocks[2].id,))


@pytest.mark.parametrize(("factor", "count"), [(1 + 1e-7, 1), (1 - 1e-7, 1), (1 + 1e-5, 2)])
def test_scales_may_differ_by_rounding(factor: float, count: int) -> None:
    assert len(families([block(0, scale=0.3), block(1, scale=0.3 * factor)])) == count


def test_what_is_no_number_is_like_itself() -> None:
    nan = float("nan")
    assert len(families([block(0, scale=nan), block(1, scale=nan)])) == 1
    assert len(families([block(0, scale=None), block(1, scale=None)])) == 1


def test_obstacles_are_alike_by_what_they_are_not_where() -> None:
    other = Obstacle("rank", "layer1.p", "a", "b")
    assert len(families([block(0), block(1)])) == 1
    assert len(families([block(0), block(1, obstacles=(other,))])) == 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], ""),
        (["attn0"], "attn0"),
        (["attn0", "attn1"], "attn0…attn1"),
        (["attn0", "attn2"], "attn0, attn2"),
        (["attn9", "attn10", "attn11"], "attn9…attn11"),
        (["attn0", "attn1", "attn5"], "attn0…attn1, attn5"),
        ([f"attn{at}" for at in range(0, 8, 2)], "attn0, attn2, attn4, attn6"),
        ([f"attn{at}" for at in range(0, 60, 2)], "attn0, attn2, attn4, …, attn58"),
        (["left", "right"], "left, right"),
        (["a1", "b2"], "a1, b2"),
    ],
)
def test_labels_in_short(labels: list[str], words: str) -> None:
    assert label_range(labels) == words


def chain(spellings: list[tuple[Meaning, Spelling]], name: Callable[[int, str], str]) -> onnx.ModelProto:
    """Blocks one after the other, each node called as `name` says."""
    whole = onnx.compose.add_prefix(render(*spellings[0]), "b0_")
    for at, spelled in enumerate(spellings[1:], 1):
        last = whole.graph.output[0].name
        whole.graph.node.append(helper.make_node("Add", [last, last], [f"sum{at}"], name=f"Sum{at}"))
        whole.graph.output[0].name = f"sum{at}"
        block = onnx.compose.add_prefix(render(*spelled), f"b{at}_")
        whole = onnx.compose.merge_models(whole, block, io_map=[(f"sum{at}", f"b{at}_q")])
    for index, node in enumerate(whole.graph.node):
        node.name = name(index, node.name)
    return whole


@pytest.mark.parametrize(
    "name",
    [
        lambda index, old: old,
        lambda index, old: f"n{index * 7919 % 10007}_{index}",
        lambda index, old: f"/layers.{index}/self_attn/x",
        lambda index, old: "",
    ],
    ids=["kept", "random", "nested", "none"],
)
def test_layers_of_a_model_are_found_whatever_their_names(name: Callable[[int, str], str], tmp_path: Path) -> None:
    like, unlike = (Meaning(), Spelling(dynamic=False)), (Meaning(scale=0.5), Spelling(dynamic=False))
    onnx.save(chain([like, unlike, like, like], name), tmp_path / "m.onnx")
    blocks = recognise(load(tmp_path / "m.onnx"))
    assert [str(family) for family in families(blocks)] == ["attn0, attn2…attn3: 3 identical blocks", "attn1"]
    assert sorted(member for family in families(blocks) for member in family.blocks) == sorted(b.id for b in blocks)


def test_a_block_in_words() -> None:
    assert describe(block(0)) == (
        "8 heads of 64, logits [batch, 8, seq, ?], scale 0.125, padding mask bool [1, 1, s, s], float16, "
        "softmax in float32"
    )
    other = block(
        1, kv_num_heads=2, v_head_size=32, scale=1e-7 / 3, softcap=30.0, nan_guard=True, mask=Mask(),
        softmax_dtype="float16", factor=Factor("f", (8, 1, "?1"), ("N", "S", "T"), "float16"),
        fused_as="ai.onnx.Attention",
    )  # fmt: skip
    assert describe(other) == (
        "8 heads of 64, 2 for keys and values, values of 32, logits [batch, 8, seq, ?], scale 3.33333e-08, "
        "times a factor [8, 1, ?], capped at 30, no mask, zeros where no key is seen, float16, "
        "fused as ai.onnx.Attention"
    )
    unread = Block(label="attn0", anchor="a", anchor_output="p", region=())
    assert describe(unread) == "no mask"


def test_members_of_a_family_share_a_fingerprint_wherever_they_are() -> None:
    prints = {fingerprint(block(index)) for index in range(22)}
    assert prints == {"7f9af2ba606c"}  # of every process


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.126},
        {"softcap": 30.0},
        {"num_heads": 4},
        {"sizes": (("B", 1), ("N", 8), ("S", 1), ("T", 1))},
        {"dtype": "float32"},
        {"softmax_dtype": "float16"},
        {"mask": Mask()},
        with_term(shape=(1, 1, 1, "s")),
        {"fused_as": "ai.onnx.Attention"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_means_something_else_has_another_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint(block(0, **changes)) != fingerprint(block(0))


def test_a_spelling_has_no_fingerprint() -> None:
    view = Operand((View("q", ("B", "S", "NH"), 1.0, "float16"),))
    assert fingerprint(block(0, query=view, region=())) == fingerprint(block(0))
