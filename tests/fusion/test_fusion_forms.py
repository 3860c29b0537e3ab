"""What a fusion is said to cost is what stands in the graph afterwards."""

from __future__ import annotations

import itertools

import pytest
from attention_graphs import Meaning, Spelling, render
from attention_reading import loaded, only_block
from attention_spelling import RESULTS, SOURCES
from target_graphs import fused

from explorer.fusion import TARGETS, choose

LAYOUTS = [name for name in SOURCES if name != "native"]
PAIRS = [("native", "bsd"), ("bsd", "bnsh"), ("bnsh", "native"), ("sbd", "bsnh"), *((name, name) for name in SOURCES)]


@pytest.mark.parametrize("merge", RESULTS)
@pytest.mark.parametrize("query", LAYOUTS)
def test_all_transposes_around_the_operator_are_counted(query: str, merge: str) -> None:
    """Where others read nothing, whatever else was there goes."""
    for (key, value), target in itertools.product(PAIRS, ("mha", "attention")):
        model = loaded(render(Meaning(keys=7), Spelling(opset=23, query=query, key=key, value=value, merge=merge)))
        block = only_block(model)
        cost = choose(model, block, target).cost
        assert cost is not None
        counts = fused(model, block, target).op_counts()
        layout = counts.get("Transpose", 0), counts.get("Transpose", 0) + counts.get("Reshape", 0)
        assert layout == (cost.transposes, cost.layout_nodes), (key, value, target)


def test_of_two_targets_the_one_that_moves_less_data_is_chosen() -> None:
    """Both have the same kernel here."""
    chosen = set()
    for source in ("bsd", "bnsh"):
        merge = "reshape" if source == "bsd" else "none"
        model = loaded(render(Meaning(), Spelling(opset=23, query=source, key=source, value=source, merge=merge)))
        block = only_block(model)
        costs = {name: choose(model, block, name).cost for name in ("mha", "attention")}
        best = choose(model, block, "auto").target
        assert TARGETS[best].name == best
        assert all(costs[best].transposes <= cost.transposes for cost in costs.values())  # type: ignore[union-attr]
        chosen.add(best)
    assert chosen == {"mha", "attention"}
