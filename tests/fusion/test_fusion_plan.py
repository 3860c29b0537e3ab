"""Plans are plain JSON, every way of being wrong is said in words, and other models get what is meant for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from explorer.attention import Block, Obstacle
from explorer.attention.block import Mask, MaskTerm
from explorer.attention.family import describe, fingerprint
from explorer.errors import PlanError
from explorer.fusion import Change, Fusion, Plan, Settings
from explorer.model import Model, load

PADDING = MaskTerm("boolean", "m", ("batch", 1, 1, "seq"), ("B", "N", "S", "T"), "bool", fill=-1e9)


def block(number: int, name: str = "", **changes: Any) -> Block:
    """The block number `number` of a model, with a softmax whose output is called `name`."""
    plain = Block(
        label=f"attn{number}",
        anchor=f"layer{number}.softmax",
        anchor_output=name or f"layer{number}.p",
        region=(),
        sizes=(("B", 2), ("H", 64), ("N", 16), ("S", "seq"), ("T", "seq"), ("V", 64)),
        num_heads=16,
        kv_num_heads=16,
        head_size=64,
        v_head_size=64,
        scale=100.0,
        dtype="float16",
        softmax_dtype="float32",
    )
    return replace(plain, **changes)


def planned(*blocks: Block, target: str = "mha") -> Plan:
    plan = Plan("d")
    for item in blocks:
        plan = plan.with_fusion(item, target)
    return plan


@pytest.fixture(scope="module")
def model(samples: Path) -> Model:
    """Any model, of another digest than the plans'."""
    return load(samples / "gpt_fp32.onnx")


def test_a_plan_does_not_depend_on_the_order_of_its_making() -> None:
    a, b, c = (block(number) for number in range(3))
    one = planned(b, a)
    two = planned(a, c).without(c.id).with_fusion(b, "mha")
    assert one == two
    assert hash(one) == hash(two)
    assert one.digest == two.digest
    assert set(one.blocks) == {a.id, b.id}
    assert one.with_fusion(a, "gqa").target(a.id) == "gqa"
    assert len(one.with_fusion(a, "gqa").fusions) == 2
    assert one.target(c.id) is None


def test_what_a_plan_says_of_its_blocks_does_not_make_it_another() -> None:
    plan = planned(block(0))
    renamed = replace(plan, fusions=(replace(plan.fusions[0], label="attn7", words="another"),))
    assert plan == renamed
    assert plan.digest == renamed.digest
    others = [replace(plan, settings=Settings("cpu")), replace(plan, source_digest="e"), planned(block(0), target="x")]
    assert len({plan, *others}) == len({plan.digest, *(item.digest for item in others)}) == 4


def test_a_plan_says_what_its_blocks_are() -> None:
    assert planned(block(3)).fusions == (Fusion(block(3).id, "mha"),)
    (fusion,) = planned(block(3)).fusions
    assert fusion.label == "attn3"
    assert fusion.family == fingerprint(block(3))
    assert fusion.words == ("16 heads of 64, logits [2, 16, seq, seq], scale 100, no mask, float16, softmax in float32")


def test_a_plan_survives_json(tmp_path: Path) -> None:
    plan = replace(planned(block(0), block(1)), settings=Settings("cpu"))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    loaded = Plan.load(path)
    assert loaded == plan
    assert loaded.to_json() == plan.to_json()


def document(**changes: Any) -> dict[str, Any]:
    whole = planned(block(0)).to_json() | changes
    return {name: value for name, value in whole.items() if value is not ...}


def fusion(**changes: Any) -> dict[str, Any]:
    whole = document()["fusions"][0] | changes
    return {name: value for name, value in whole.items() if value is not ...}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "schema.*found a list"),
        (document(schema=1), "found 1: export the plan again"),
        (document(schema=...), "found nothing"),
        (document(source_digest=...), "'source_digest'"),
        (document(settings=...), "'provider'"),
        (document(settings={"provider": "tpu"}), "cuda or cpu.*'tpu'"),
        (document(fusions=...), "list of .fusions.*found nothing"),
        (document(fusions=["mha"]), "'block'"),
        (document(fusions=[fusion(target=...)]), "'target'.*found nothing"),
        (document(fusions=[fusion(block=7)]), "'block'.*found 7"),
        (document(fusions=[fusion(), fusion(target="gqa")]), "twice"),
    ],
)
def test_a_broken_plan_is_explained(tmp_path: Path, text: str | dict[str, Any], words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(PlanError, match=words):
        Plan.load(path)


def test_a_missing_plan_is_explained(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="readable plan file"):
        Plan.load(tmp_path / "nope.json")


# On another model


def kinds(changes: tuple[Change, ...]) -> list[tuple[str, str, str]]:
    return [(change.fusion.label, change.kind, change.block) for change in changes]


def test_blocks_that_are_found_unchanged_are_planned_as_before(model: Model) -> None:
    blocks = [block(number) for number in range(3)]
    plan = replace(planned(blocks[0], blocks[2]), settings=Settings("cpu"))
    assert plan.fit(blocks) == ()
    again = plan.rebase(model, blocks)
    assert again == replace(plan, source_digest=model.digest)


def test_a_block_that_stands_elsewhere_has_moved(model: Model) -> None:
    before, now = block(0, "p"), block(3, "p")
    plan = planned(before)
    (change,) = plan.fit([block(0, "new"), now])
    assert kinds((change,)) == [("attn0", "moved", now.id)]
    assert change.words == f"attn0 ({before.id}) moved: it is attn3 now"
    with pytest.raises(PlanError, match="moved: it is attn3 now"):
        plan.rebase(model, [now])


def test_a_block_of_another_name_has_moved_to_the_only_one_like_it() -> None:
    before, now = block(0, "p"), block(0, "q")
    plan = planned(before)
    assert kinds(plan.fit([now, block(1, num_heads=12)])) == [("attn0", "moved", now.id)]
    assert kinds(plan.fit([now, block(1)])) == [("attn0", "vanished", "")]  # which of the two is it?
    assert kinds(planned(before, now).fit([now])) == [("attn0", "vanished", "")]  # that one has a decision of its own


def test_blocks_that_all_have_other_names_moved_in_order() -> None:
    before = [block(number, f"p{number}") for number in range(12)]
    now = [block(number, f"q{number}") for number in range(12)]
    changes = planned(*before).fit(now)
    assert kinds(changes) == [(f"attn{number}", "moved", now[number].id) for number in range(12)]


def test_a_block_that_means_something_else_has_changed(model: Model) -> None:
    before = block(0)
    now = block(0, num_heads=12, kv_num_heads=12, mask=Mask("padding", (PADDING,)))
    plan = planned(before)
    (change,) = plan.fit([now])
    assert (change.kind, change.block) == ("changed", before.id)
    assert change.words == f"attn0 ({before.id}) changed: it was {describe(before)}, it is {describe(now)}"
    assert describe(now).startswith("12 heads of 64, logits [2, 16")
    assert "padding mask bool [batch, 1, 1, seq]" in describe(now)
    with pytest.raises(PlanError, match=r"was 16 heads of 64.* is 12 heads of 64"):
        plan.rebase(model, [now])


def test_a_block_that_is_not_there_any_more_has_vanished(model: Model) -> None:
    plan = planned(block(0), block(1))
    changes = plan.fit([block(0)])
    assert kinds(changes) == [("attn1", "vanished", "")]
    with pytest.raises(PlanError, match=r"attn1 .* vanished: it was 16 heads of 64"):
        plan.rebase(model, [block(0)])


def test_every_block_that_changed_is_named(model: Model) -> None:
    blocks = [block(number) for number in range(22)]
    now = [block(number, dtype="float32") for number in range(22)]
    with pytest.raises(PlanError) as caught:
        planned(*blocks).rebase(model, now)
    text = str(caught.value)
    assert text.count("it was") == 6
    assert "attn5 (" in text
    assert "attn6…attn21" in text


def test_a_plan_of_two_layers_does_for_their_sibling_of_many(model: Model) -> None:
    small = [block(0, "small.0"), block(1, "small.1"), block(2, "small.2", num_heads=8)]
    large = [block(number, f"large.{number}") for number in range(22)] + [block(22, "large.x", num_heads=4)]
    plan = replace(planned(small[0]), settings=Settings("cpu")).by_family(model, large)
    assert plan.source_digest == model.digest
    assert plan.settings == Settings("cpu")
    assert set(plan.blocks) == {item.id for item in large[:22]}
    assert {fusion.target for fusion in plan.fusions} == {"mha"}


def test_a_block_with_obstacles_is_left_alone_by_its_family(model: Model) -> None:
    free, blocked = block(0), block(1, obstacles=(Obstacle("interior-used", "p", "a", "b"),))
    assert planned(free).by_family(model, [free, blocked]).blocks == (free.id,)


def test_two_targets_for_one_family_are_no_plan_for_others(model: Model) -> None:
    plan = planned(block(0)).with_fusion(block(1), "attention")
    with pytest.raises(PlanError, match="mha for attn0 and attention for attn1"):
        plan.by_family(model, [block(0)])


def test_a_family_that_is_not_there_is_said(model: Model) -> None:
    with pytest.raises(PlanError, match=r"16 heads of 64.*found others \(12 heads"):
        planned(block(0)).by_family(model, [block(0, num_heads=12)])
    with pytest.raises(PlanError, match=r"none at all.*none at all"):
        Plan("d").by_family(model, [])
