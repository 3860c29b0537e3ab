"""Plans are plain JSON, and every way of being wrong is said in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from explorer.errors import PlanError
from explorer.fusion import Fusion, Plan


def test_a_plan_does_not_depend_on_the_order_of_its_making() -> None:
    one = Plan("d").with_fusion("b", "mha").with_fusion("a", "mha")
    two = Plan("d").with_fusion("a", "mha").with_fusion("c", "mha").without("c").with_fusion("b", "mha")
    assert one == two
    assert one.fusions == (Fusion("a", "mha"), Fusion("b", "mha"))
    assert one.with_fusion("a", "gqa").target("a") == "gqa"
    assert one.target("z") is None


def test_a_plan_survives_json(tmp_path: Path) -> None:
    plan = Plan("digest").with_fusion("attn-1", "mha")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    assert Plan.load(path) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[]", "schema"),
        ('{"schema": 2}', "found 2"),
        ('{"schema": 1, "source_digest": "d"}', "fusions"),
        ('{"schema": 1, "source_digest": "d", "fusions": [{"block": "a"}]}', "target"),
        (
            '{"schema": 1, "source_digest": "d", "fusions":'
            ' [{"block": "a", "target": "mha"}, {"block": "a", "target": "x"}]}',
            "twice",
        ),
    ],
)
def test_a_broken_plan_is_explained(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=words):
        Plan.load(path)


def test_a_missing_plan_is_explained(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="readable plan file"):
        Plan.load(tmp_path / "nope.json")
