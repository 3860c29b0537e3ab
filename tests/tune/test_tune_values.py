"""Who wins, exactly; and what a tuning file must be like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tuning_values import family, latency, trial, tuning

from explorer.errors import InputError
from explorer.fusion import Fusion, Plan
from explorer.tune import Trial, Tuning
from explorer.tune.values import best, is_faster


class TestBest:
    def test_the_fastest_wins(self) -> None:
        trials = [trial(ms=3), trial("mha/bsd", 2, nodes=0), trial("attention/bnsh", 1, nodes=9)]
        assert best(trials).targets == ("attention/bnsh",)

    def test_within_the_noise_the_one_with_fewer_layout_nodes(self) -> None:
        trials = [trial(ms=9), trial("attention/bnsh", 1.0, nodes=4, noise=0.3), trial("mha/bsd", 1.1, noise=-0.3)]
        assert not is_faster(trials[1], trials[2])
        assert best(trials).targets == ("mha/bsd",)

    def test_of_equals_the_one_tried_first(self) -> None:
        assert best([trial(ms=9), trial("gqa", 1), trial("mha/bsd", 1)]).targets == ("gqa",)

    def test_what_is_slower_fused_stays(self) -> None:
        assert best([trial(ms=1), trial("mha/bsd", 1.01)]).is_unfused

    def test_what_is_no_faster_is_fused_all_the_same(self) -> None:
        """It needs less memory."""
        assert best([trial(ms=1.0, noise=0.2), trial("mha/bsd", 1.02, nodes=8, noise=-0.2)]).targets == ("mha/bsd",)

    def test_of_several_families_as_many_as_possible(self) -> None:
        trials = [trial(("", ""), 3), trial(("mha/bsd", ""), 1), trial(("mha/bsd", "mha/bsd"), 1, nodes=5)]
        assert best(trials).targets == ("mha/bsd", "mha/bsd")

    @pytest.mark.parametrize(
        "other",
        [
            trial("mha/bnsh", 0.5, refusal="it computes something else"),
            trial("mha/bnsh", None, refusal="no memory"),
            trial("mha/bsd", 0.5, sdpa=8),  # an option of the session, not of the model
        ],
    )
    def test_who_cannot_win(self, other: Trial) -> None:
        assert best([trial(ms=2), trial("mha/bsd", 1), other]).latency == latency(1)

    def test_unfused_stands_in_where_nothing_ran(self) -> None:
        assert best([trial(ms=None, refusal="no memory"), trial("mha/bsd", None, refusal="no memory")]).is_unfused

    def test_an_original_that_does_not_fit_loses(self) -> None:
        assert best([trial(ms=None, refusal="no memory"), trial("mha/bsd", 7)]).targets == ("mha/bsd",)


class TestTuning:
    def test_who_won(self) -> None:
        found = tuning()
        assert found.winner.name == "mha/bsd"
        assert found.families[0].best.name == "mha/bsd"
        assert [item.name for item in found.families[0].contenders] == ["mha/bsd", "attention/bnsh", "unfused"]
        assert (found.device, found.onnxruntime) == ("NVIDIA H200", "1.31.1")
        assert tuning(provider="cpu").device == "A processor"

    def test_by_itself_the_work_of_the_gpu_counts(self) -> None:
        """Launching takes longer than a small block, and cuDNN may prepare itself again in every run."""
        cudnn, flash = trial("mha/bsd", 46.0, device_us=33), trial("attention/bsd", 0.084, device_us=40)
        found = family(trial(ms=0.36, device_us=306), flash, cudnn)
        assert found.best == cudnn
        assert [item.targets[0] for item in found.contenders] == ["mha/bsd", "attention/bsd", ""]
        assert (
            tuning(families=(found,))
            .words("b0")
            .startswith(
                "measured on NVIDIA H200 at x 2×938×100: mha/bsd 0.033 ms, attention/bsd 0.04 ms, unfused 0.306 ms;"
            )
        )

    def test_work_that_differs_by_little_is_level(self) -> None:
        one, other = trial("mha/bnsh", device_us=100, nodes=5), trial("mha/bsd", device_us=101.9, nodes=4)
        assert family(trial(device_us=300), one, other).best == other
        assert family(trial(device_us=300), one, trial("mha/bsd", device_us=102.1, nodes=4)).best == one

    def test_where_one_was_not_watched_the_wall_time_counts(self) -> None:
        found = family(trial(ms=3), trial("mha/bsd", 2, device_us=33), trial("mha/bnsh", 1))
        assert found.best.targets == ("mha/bnsh",)
        assert found.cost_us(found.trials[1]) == 2000

    def test_targets_by_block(self) -> None:
        assert tuning().target("b0") == "mha/bsd"
        assert tuning(plan=Plan("5" * 64)).target("b0") == ""
        assert tuning().target("b1") is None

    def test_words(self) -> None:
        assert tuning().words("b0") == (
            "measured on NVIDIA H200 at x 2×938×100: mha/bsd 0.1 ms, attention/bnsh 0.13 ms, unfused 1.2 ms; in the "
            "model 5.2 ms, unfused 12.1 ms"
        )
        level = tuning(trials=(trial(ms=5.0, noise=1), trial("mha/bsd", 5.1, noise=-1)))
        assert level.words("b0").endswith("in the model 5.1 ms, unfused 5 ms, no difference beyond the noise")
        slower = tuning(trials=(trial(ms=5), trial("mha/bsd", 6)))
        assert slower.words("b0").endswith("in the model unfused 5 ms")
        no_memory = tuning(trials=(trial(ms=None, refusal="no memory"), trial("mha/bsd", 6)))
        assert no_memory.words("b0").endswith("in the model 6 ms, unfused does not run")


class TestDocument:
    def test_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "tuning.json"
        path.write_text(json.dumps(tuning().to_json(), allow_nan=False))
        assert Tuning.load(path) == tuning()

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 0}', "[" * 100_000, "\udcff"])
    def test_something_else(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "tuning.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=r"^expected a (saved )?tuning"):
            Tuning.load(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="expected a saved tuning"):
            Tuning.load(tmp_path / "none.json")

    @pytest.mark.parametrize("name", [field.name for field in fields(Tuning)])
    def test_every_field_is_needed(self, name: str) -> None:
        data = tuning().to_json()
        del data[name]
        with pytest.raises(InputError, match=f"expected a complete tuning, found that Tuning has no '{name}'"):
            Tuning.from_json(data)

    @pytest.mark.parametrize(
        ("changed", "found"),
        [
            (lambda: tuning(plan=Plan("6" * 64)), "a plan for another model"),
            (lambda: tuning(plan=Plan("5" * 64, (Fusion("b0", "mha"), Fusion("b0", "gqa")))), "a block twice"),
            (lambda: tuning(plan=Plan("5" * 64, (Fusion("b0", "mha/sbd"),))), "the target 'mha/sbd'"),
            (lambda: tuning(families=(family(trial("flash")),)), "the target 'flash'"),
            (lambda: tuning(families=()), "6 runs and 0 families"),
            (lambda: tuning(trials=()), "without trials"),
            (lambda: tuning(families=(family(),)), "without trials"),
            (lambda: tuning(trials=(trial(("", "")),)), "2 targets where there are 1"),
            (lambda: tuning(runs=5), "6 runs where there are 5"),
        ],
    )
    def test_what_contradicts_itself(self, changed: Callable[[], Tuning], found: str) -> None:
        with pytest.raises(InputError, match=f"agrees with itself, found .*{found}"):
            Tuning.from_json(changed().to_json())

    @pytest.mark.parametrize("damage", [{"provider": "tpu"}, {"runs": "6"}, {"families": {}}, {"plan": None}])
    def test_other_types(self, damage: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"expected a complete tuning, found that Tuning\."):
            Tuning.from_json({**tuning().to_json(), **damage})
