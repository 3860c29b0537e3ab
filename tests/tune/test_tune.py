"""A whole tuning: for real on the CPU, and with exact times by a profiler that is told them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx
import pytest
from tune_graphs import in_a_branch, network
from tuning_values import FakeProfiler

from explorer.attention import recognise
from explorer.attention.family import families
from explorer.errors import BlockError, Cancelled, InputError, ModelError, SessionError, WorkerDied
from explorer.fusion import TARGETS, apply
from explorer.fusion.targets.target import Site
from explorer.model import Model
from explorer.profile.values import Profile
from explorer.runtime import Worker
from explorer.tune import Tuning, candidates, tune, tuner
from explorer.verify import Loading, seeded_inputs

Open = Callable[[onnx.ModelProto], Model]
ALL = ("mha/bsd", "attention/bsd", "mha/bnsh", "attention/bnsh")
SLOW = {"unfused": 9.0, **dict.fromkeys(ALL, 8.0)}


def tuned(worker: Worker, model: Model, **options: Any) -> Tuning:
    blocks = recognise(model)
    feeds = options.pop("feeds", None) or seeded_inputs(model, None, 0, length=8)
    return tune(worker, model, blocks, families(blocks), feeds, **{"provider": "cpu", "runs": 6, **options})


@pytest.fixture
def profiler(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeProfiler]:
    """Puts one that is told times, kernels and refusals in the place of `profile`; `then` others for later calls."""

    def profiler(*told: Any, then: Sequence[FakeProfiler] = ()) -> FakeProfiler:
        fake = FakeProfiler(*told)
        fakes = [fake, *then]

        def profile(*args: Any, **options: Any) -> Profile:
            return (fakes.pop(0) if len(fakes) > 1 else fakes[0])(*args, **options)

        monkeypatch.setattr(tuner, "profile", profile)
        return fake

    return profiler


class TestForReal:
    def test_two_families_on_the_cpu(self, worker: Worker, opened: Open) -> None:
        model = opened(network(0.3, 0.3, 0.1))
        done: list[float] = []
        found = tuned(worker, model, on_progress=lambda share, text: done.append(share))
        assert done == sorted(done)
        assert done[0] >= 0
        assert done[-1] <= 1
        assert [family.label for family in found.families] == ["attn0…attn1", "attn2"]
        for family in found.families:
            assert [trial.name for trial in family.trials] == ["unfused", *ALL]
            for trial in family.trials:
                assert trial.refusal == ""
                assert trial.latency is not None
                assert len(trial.latency.runs_ms) == 6
                assert trial.device_us is None  # what the CPU worked is no other time than the wall's
                assert (trial.ratio is None) == trial.is_unfused
                assert (trial.kernel, trial.sdpa_kernel, trial.merged) == ("", 0, ())
        assert found.trials[0].is_unfused
        assert all(trial.latency is not None and trial.device_us is None for trial in found.trials)
        assert found.shapes == (("h0", (2, 8, 16)),)
        assert (found.provider, found.sdpa_kernel, found.source) == ("cpu", 0, model.digest)
        assert found.device
        assert found.onnxruntime
        assert len(found.plan.fusions) == sum(map(bool, found.winner.targets[:1] * 2 + found.winner.targets[1:]))
        assert "Softmax" not in apply(model, recognise(model), found.plan).op_counts() or not all(found.winner.targets)
        assert Tuning.from_json(found.to_json()) == found

    def test_a_block_in_a_branch(self, worker: Worker, opened: Open) -> None:
        found = tuned(worker, opened(in_a_branch()))
        (family,) = found.families
        assert all(trial.latency is not None for trial in family.trials)
        assert "attn0 is in the body of an If, Loop or Scan: measured alone on made-up values." in found.notes

    def test_values_that_cannot_be_made_up(self, worker: Worker, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(candidates, "made_values", _cannot)
        with pytest.raises(SessionError, match="expected a block that runs cut out of its model, found none: no sizes"):
            tuned(worker, opened(in_a_branch()))
        monkeypatch.setattr(candidates, "is_captured", lambda model, block: block.label == "attn0")
        found = tuned(worker, opened(network(0.3, 0.1)))
        assert "attn1 and those like it were not measured: no sizes" in found.notes
        assert [family.label for family in found.families] == ["attn0"]
        assert {len(trial.targets) for trial in found.trials} == {1}


def _cannot(*args: object) -> None:
    raise ModelError("no sizes")


class TestWhoWins:
    def test_the_fastest_in_the_model_not_alone(
        self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]
    ) -> None:
        """What stands between two layers is not in a block."""
        whole = FakeProfiler({"unfused": 9.0, "mha/bsd": 1.0, "attention/bnsh": 1.5})
        alone = profiler({**SLOW, "mha/bsd": 2.0, "attention/bnsh": 1.5}, then=[whole])
        found = tuned(worker, opened(network(0.3, 0.3)))
        assert [subject.name for subject in alone.asked[0]] == ["unfused", *ALL]
        assert [subject.name for subject in whole.asked[0]] == ["unfused", "attention/bnsh", "mha/bsd"]
        assert (alone.traced, whole.traced) == ([True], [False])
        assert found.families[0].best.targets == ("attention/bnsh",)
        assert found.winner.targets == ("mha/bsd",)
        assert [fusion.target for fusion in found.plan.fusions] == ["mha/bsd", "mha/bsd"]
        assert found.plan.settings.provider == "cpu"
        assert found.winner.layout_nodes == 0
        assert found.notes == ("a note of the profile",)

    def test_plans_are_those_of_the_subjects(
        self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]
    ) -> None:
        model = opened(network(0.3))
        fake = profiler({**SLOW, "mha/bnsh": 1.0})
        found = tuned(worker, model)
        unfused, winner, *_ = fake.asked[1]
        assert (unfused.model, unfused.plan) == (model, "")
        assert winner.plan == found.plan.digest
        assert winner.model.op_counts()["MultiHeadAttention"] == 1
        assert found.trials[1].layout_nodes == found.families[0].trials[3].layout_nodes == 4

    def test_nothing_is_faster_than_the_model_as_it_is(
        self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]
    ) -> None:
        profiler({**SLOW, "unfused": 1.0})
        found = tuned(worker, opened(network(0.3)))
        assert found.winner.is_unfused
        assert found.plan.fusions == ()
        assert found.target(found.families[0].blocks[0]) == ""

    def test_one_family_stays(self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]) -> None:
        model = opened(network(0.3, 0.1))
        second = FakeProfiler({**SLOW, "unfused": 1.0})
        whole = FakeProfiler({"unfused": 9.0, "the best of each family": 3.0, "mha/bsd": 4.0})
        profiler({**SLOW, "mha/bsd": 1.0}, then=[second, whole])
        found = tuned(worker, model)
        assert [trial.targets for trial in found.trials] == [("", ""), ("mha/bsd", ""), ("mha/bsd", "mha/bsd")]
        assert found.winner.targets == ("mha/bsd", "")
        assert [fusion.label for fusion in found.plan.fusions] == ["attn0"]
        assert found.target(found.families[1].blocks[0]) == ""

    def test_what_is_wrong_does_not_win(
        self,
        worker: Worker,
        opened: Open,
        profiler: Callable[..., FakeProfiler],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        target = TARGETS["mha/bsd"]
        build = target.build

        def wrong(site: Site) -> Any:
            return build(replace(site, block=replace(site.block, scale=0.31)))

        monkeypatch.setattr(target, "build", wrong)
        fake = profiler({**SLOW, "mha/bsd": 0.1})
        found = tuned(worker, opened(network(0.3)))
        refused = found.families[0].trials[-1]
        assert (refused.name, refused.latency) == ("mha/bsd", None)
        assert "computes something else" in refused.refusal
        assert all(subject.name != "mha/bsd" for asked in fake.asked for subject in asked)
        assert "mha/bsd" not in found.winner.targets

    def test_a_whole_model_that_cannot_be_loaded(
        self,
        worker: Worker,
        opened: Open,
        profiler: Callable[..., FakeProfiler],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(self: Loading, plan: Any, fused: Model) -> None:
            if plan.fusions[0].target == "mha/bsd":
                raise WorkerDied("it crashed.")

        monkeypatch.setattr(Loading, "model", refuse)
        profiler({**SLOW, "mha/bsd": 1.0, "mha/bnsh": 1.2})
        found = tuned(worker, opened(network(0.3)))
        assert [(trial.name, trial.refusal) for trial in found.trials] == [
            ("unfused", ""),
            ("mha/bnsh", ""),
            ("mha/bsd", "it crashed."),
        ]
        assert found.winner.name == "mha/bnsh"

    def test_an_original_for_which_there_is_no_memory(
        self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]
    ) -> None:
        profiler({**SLOW, "mha/bsd": 1.0}, {}, ["unfused"])
        found = tuned(worker, opened(network(0.3)))
        assert (found.trials[0].latency, found.trials[0].refusal) == (None, "out of memory")
        assert found.winner.targets == ("mha/bsd",)
        assert found.winner.ratio is None


class TestKernels:
    """As on CUDA; a session on the CPU takes the option and does not mind it."""

    CUDNN, FLASH, MATH = "CUDNN_FLASH_ATTENTION", "FLASH_ATTENTION", "MATH"

    @pytest.fixture(autouse=True)
    def _kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tuner, "KERNELS", {"cpu": (1, 8, 16)})

    def times(self, **told: float) -> dict[str, float]:
        names = [f"{target}{kernel}" for target in ALL for kernel in ("", *(f", sdpa_kernel {k}" for k in (1, 8, 16)))]
        return {"unfused": 9.0, **dict.fromkeys(names, 8.0), "mha/bsd": 2.0, **told}

    def kernels(self) -> dict[str, str]:
        ran = {
            "": self.CUDNN,
            ", sdpa_kernel 1": self.FLASH,
            ", sdpa_kernel 8": self.CUDNN,
            ", sdpa_kernel 16": self.MATH,
        }
        return {f"mha/bsd{setting}": kernel for setting, kernel in ran.items()}

    def test_a_setting_that_is_faster_in_the_model_is_recommended(
        self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]
    ) -> None:
        fake = profiler(self.times(**{"mha/bsd, sdpa_kernel 1": 1.5}), self.kernels())
        found = tuned(worker, opened(network(0.3)))
        own = [trial for trial in found.families[0].trials if trial.targets == ("mha/bsd",)]
        assert [(trial.sdpa_kernel, trial.merged, trial.kernel) for trial in own] == [
            (0, (8,), self.CUDNN),
            (1, (), self.FLASH),
            (16, (), self.MATH),
        ]
        assert [subject.sdpa_kernel for subject in fake.asked[2]] == [0, 0, 1]
        assert found.sdpa_kernel == 1
        assert found.winner.sdpa_kernel == 0
        assert [(trial.name, trial.sdpa_kernel) for trial in found.trials] == [
            ("unfused", 0),
            ("mha/bsd", 0),
            ("mha/bsd, sdpa_kernel 1", 1),
        ]
        assert {fusion.target for fusion in found.plan.fusions} == {"mha/bsd"}

    def test_one_that_is_not_is_not(self, worker: Worker, opened: Open, profiler: Callable[..., FakeProfiler]) -> None:
        fake = profiler(self.times(**{"mha/bsd, sdpa_kernel 1": 2.0}), self.kernels())
        assert tuned(worker, opened(network(0.3))).sdpa_kernel == 0
        assert len(fake.asked) == 2

    def test_one_that_gives_wrong_numbers_is_refused(
        self,
        worker: Worker,
        opened: Open,
        profiler: Callable[..., FakeProfiler],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("explorer.tune.candidates.Bench.check", _wrong_under_flash)
        fake = profiler(self.times(**{"mha/bsd, sdpa_kernel 1": 1.5}), self.kernels())
        found = tuned(worker, opened(network(0.3)))
        (flash,) = (trial for trial in found.families[0].trials if trial.kernel == self.FLASH)
        assert flash.refusal == "wrong"
        assert found.sdpa_kernel == 0
        assert len(fake.asked) == 2


def _wrong_under_flash(self: object, runner: Any, target: str) -> str:
    return "wrong" if runner._options["sdpa_kernel"] == 1 else ""


class TestErrors:
    def test_nothing_to_fuse(self, worker: Worker, opened: Open) -> None:
        with pytest.raises(BlockError, match="expected a block that can be fused, found none"):
            tuned(worker, opened(network(0.0)))

    def test_a_model_that_does_not_run(self, worker: Worker, opened: Open) -> None:
        model = opened(network(0.3, 0.1, mask=True))
        feeds = seeded_inputs(model, None, 0, length=8)
        feeds["mask"] = feeds["mask"][..., :7]
        with pytest.raises(SessionError, match="cannot run"):
            tuned(worker, model, feeds=feeds)

    def test_a_provider_that_is_none(self, worker: Worker, opened: Open) -> None:
        with pytest.raises(InputError, match="auto, cuda or cpu"):
            tuned(worker, opened(network(0.3, 0.1)), provider="tpu")

    def test_cancelled(self, worker: Worker, opened: Open) -> None:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            tuned(worker, opened(network(0.3)), cancel=cancel)

    def test_cancelled_between_two_measurements(
        self, worker: Worker, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cancel = threading.Event()
        fake = FakeProfiler(SLOW)

        def profile(*args: Any, **options: Any) -> Profile:
            cancel.set()
            return fake(*args, **options)

        monkeypatch.setattr(tuner, "profile", profile)
        with pytest.raises(Cancelled):
            tuned(worker, opened(network(0.3)), cancel=cancel)
        assert len(fake.asked) == 1
