"""Blocks cut out as each of their targets, on what they really receive; what computes something else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tune_graphs import in_a_branch, network

from explorer.attention import Block, Obstacle, recognise
from explorer.attention.family import families
from explorer.errors import ModelError, SessionError, WorkerDied
from explorer.fusion import TARGETS
from explorer.fusion.targets.target import Site
from explorer.model import Model
from explorer.runtime import Worker
from explorer.tune.candidates import Bench, benches, kin_of
from explorer.verify import seeded_inputs
from explorer.verify.inputs import Feeds
from explorer.verify.runs import Runner

ALL = ("mha/bsd", "attention/bsd", "mha/bnsh", "attention/bnsh")
Open = Callable[[onnx.ModelProto], Model]


@pytest.fixture
def runner(worker: Worker, tmp_path: Path) -> Runner:
    return Runner(worker, tmp_path, provider="cpu")


def benches_of(runner: Runner, model: Model, feeds: Feeds | None = None) -> list[Bench]:
    blocks = recognise(model)
    given = seeded_inputs(model, None, 0, length=8) if feeds is None else feeds
    return benches(runner, model, kin_of(model, blocks, families(blocks)), given, 0)


def outputs(runner: Runner, bench: Bench) -> dict[str, np.ndarray]:
    found = {target: runner.run(part, [bench.feeds], "a part")[0] for target, part in bench.parts.items()}
    return {target: next(iter(arrays.values())) for target, arrays in found.items()}  # type: ignore[union-attr]


class TestKin:
    def test_families_and_their_targets(self, opened: Open) -> None:
        model = opened(network(0.3, 0.3, 0.1))
        blocks = recognise(model)
        found = kin_of(model, blocks, families(blocks))
        assert [[block.label for block in kin.blocks] for kin in found] == [["attn0", "attn1"], ["attn2"]]
        assert {kin.targets for kin in found} == {ALL}  # as auto would take them first

    def test_members_that_can_become_other_targets_are_no_kin(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = opened(network(0.3, 0.3, 0.3))
        blocks = recognise(model)
        target = TARGETS["mha/bnsh"]
        obstacles = target.obstacles
        monkeypatch.setattr(target, "obstacles", lambda model, block: obstacles(model, block) or _not_the_first(block))
        found = kin_of(model, blocks, families(blocks))
        assert [([block.label for block in kin.blocks], len(kin.targets)) for kin in found] == [
            (["attn0"], 3),
            (["attn1", "attn2"], 4),
        ]

    def test_what_cannot_be_fused_is_left_out(self, opened: Open) -> None:
        model = opened(network(0.0, 0.3))  # 0 is what operators read as their default
        blocks = recognise(model)
        assert [kin.first.label for kin in kin_of(model, blocks, families(blocks))] == ["attn1"]


class TestBenches:
    def test_every_part_computes_the_block(self, runner: Runner, opened: Open) -> None:
        model = opened(network(0.3, 0.1, mask=True))
        found = benches_of(runner, model)
        assert [bench.kin.first.label for bench in found] == ["attn0", "attn1"]
        for bench in found:
            assert set(bench.parts) == {"", *ALL}
            assert bench.refusals == {}
            results = outputs(runner, bench)
            assert all(np.allclose(array, results[""], atol=1e-5) for array in results.values())
            counts = {target: part.op_counts() for target, part in bench.parts.items()}
            assert "Softmax" in counts[""]
            assert all("Softmax" not in count for target, count in counts.items() if target)
            assert counts["attention/bnsh"]["Attention"] == counts["mha/bsd"]["MultiHeadAttention"] == 1

    def test_values_are_captured_from_one_run(
        self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = opened(network(0.3, 0.1))
        ran: list[str] = []
        original = Runner.run

        def run(self: Runner, part: Model, feeds: Any, what: str, **options: Any) -> Any:
            ran.append(what)
            return original(self, part, feeds, what, **options)

        monkeypatch.setattr(Runner, "run", run)
        feeds = seeded_inputs(model, None, 0, length=8)
        first, second = benches_of(runner, model, feeds)
        assert [what for what in ran if not what.startswith("attn")] == ["what the blocks receive"]
        assert len(ran) == 1 + 2 * (1 + len(ALL))
        assert np.array_equal(first.feeds["h0"], feeds["h0"])
        assert second.feeds["h1"].shape == feeds["h0"].shape
        assert not np.array_equal(second.feeds["h1"], feeds["h0"])

    def test_all_parts_take_the_same(self, runner: Runner, opened: Open) -> None:
        """Also a size from elsewhere that only some of them read."""
        for bench in benches_of(runner, opened(network(0.3, mask=True))):
            for part in bench.parts.values():
                assert {value.name for value in part.ir.graph.inputs} == set(bench.feeds)

    def test_made_up_values_in_a_body(self, runner: Runner, opened: Open) -> None:
        model = opened(in_a_branch())
        (bench,) = benches_of(runner, model)
        assert bench.refusals == {}
        assert bench.values["q"].shape == (2, 2, 8, 8)

    def test_a_model_that_does_not_run(self, runner: Runner, opened: Open) -> None:
        model = opened(network(0.3, 0.1, mask=True))
        feeds = seeded_inputs(model, None, 0, length=8)
        feeds["mask"] = feeds["mask"][..., :7]
        with pytest.raises(SessionError, match="cannot run"):
            benches_of(runner, model, feeds)


class TestRefusals:
    def test_another_scale(self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        _build(monkeypatch, "mha/bsd", lambda site: replace(site, block=replace(site.block, scale=0.31)))
        (bench,) = benches_of(runner, opened(network(0.3)))
        assert list(bench.refusals) == ["mha/bsd"]
        assert bench.refusals["mha/bsd"].startswith("it computes something else than the unfused block: it is ")

    def test_numbers_that_are_not_finite(self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        _build(monkeypatch, "mha/bsd", lambda site: replace(site, block=replace(site.block, scale=3e38)))
        (bench,) = benches_of(runner, opened(network(0.3)))
        assert "not finite" in bench.refusals["mha/bsd"]

    def test_what_onnxruntime_does_not_take(
        self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _build(
            monkeypatch, "mha/bnsh", lambda site: replace(site, block=replace(site.block, dtype="float32", heads="N"))
        )
        monkeypatch.setattr(
            TARGETS["mha/bnsh"],
            "build",
            lambda site: site.emit.node(
                "NoSuchOperator", [site.value("h0")], site.model.types["h0"], domain="com.microsoft"
            ),
        )
        (bench,) = benches_of(runner, opened(network(0.3)))
        assert list(bench.refusals) == ["mha/bnsh"]
        assert "NoSuchOperator" in bench.refusals["mha/bnsh"]

    def test_a_target_that_breaks_one_family_is_left_to_the_others(
        self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = TARGETS["attention/bsd"]
        build = target.build

        def broken(site: Site) -> ir.Value:
            if site.block.label == "attn0":
                raise ModelError("broken here")
            return build(site)

        monkeypatch.setattr(target, "build", broken)
        first, second = benches_of(runner, opened(network(0.3, 0.1)))
        assert first.refusals == {"attention/bsd": "broken here"}
        assert "attention/bsd" not in first.parts
        assert second.refusals == {}

    def test_a_worker_that_dies_of_one(self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Runner.run

        def run(self: Runner, part: Model, feeds: Any, what: str, **options: Any) -> Any:
            if what.endswith("as mha/bsd"):
                raise WorkerDied("it was killed.")
            return original(self, part, feeds, what, **options)

        monkeypatch.setattr(Runner, "run", run)
        (bench,) = benches_of(runner, opened(network(0.3)))
        assert bench.refusals == {"mha/bsd": "it was killed."}

    def test_an_unfused_block_that_does_not_run_is_judged_by_its_meaning(
        self, runner: Runner, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one for which there is not memory enough."""
        original = Runner.run

        def run(self: Runner, part: Model, feeds: Any, what: str, **options: Any) -> Any:
            if what.endswith("as it is"):
                raise WorkerDied("out of memory.")
            return original(self, part, feeds, what, **options)

        monkeypatch.setattr(Runner, "run", run)
        _build(monkeypatch, "mha/bsd", lambda site: replace(site, block=replace(site.block, scale=0.31)))
        (bench,) = benches_of(runner, opened(network(0.3)))
        assert list(bench.refusals) == ["", "mha/bsd"]
        assert bench.check(runner, "mha/bnsh") == ""


def _not_the_first(block: Block) -> tuple[Obstacle, ...]:
    return (Obstacle("layout", block.anchor, "another", "the first"),) if block.label == "attn0" else ()


def _build(monkeypatch: pytest.MonkeyPatch, name: str, changed: Callable[[Site], Site]) -> None:
    """Let a target be built of something else than it should."""
    target = TARGETS[name]
    build = target.build
    monkeypatch.setattr(target, "build", lambda site: build(changed(site)))
