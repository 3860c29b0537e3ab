"""Measure every way to compute a model's attention, and say which is the fastest on this device."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from explorer.attention import Block
from explorer.attention.family import Family, describe, label_range
from explorer.errors import BlockError, Cancelled, ModelError, SessionError, WorkerDied
from explorer.fusion import Plan, apply, choose
from explorer.fusion.plan import Provider, Settings
from explorer.model import Model
from explorer.profile.client import profile
from explorer.runtime import Worker
from explorer.tune.candidates import Bench, Kin, benches, is_captured, kin_of
from explorer.tune.trials import Targets, Way, combinations, merged, promising, trial_of
from explorer.tune.values import UNFUSED, FamilyTuning, Trial, Tuning, best, is_faster, median_ms
from explorer.verify import Loading
from explorer.verify.inputs import Feeds
from explorer.verify.runs import Runner

KERNELS: dict[Provider, tuple[int, ...]] = {"cuda": (1, 2, 8, 16), "cpu": ()}
"""Settings of sdpa_kernel tried beside ONNX Runtime's own choice (0): Flash, memory-efficient, cuDNN, MATH."""

OnProgress = Callable[[float, str], None]

# How much is done when all candidates are checked, all are measured alone, and all in the model.
_CHECKED, _ALONE, _IN_MODEL = 0.2, 0.6, 0.9


def tune(
    worker: Worker,
    model: Model,
    blocks: Sequence[Block],
    families: Iterable[Family],
    feeds: Feeds,
    *,
    provider: str = "auto",
    runs: int = 20,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> Tuning:
    """Find the fastest targets for the `blocks` of `model`, of which `families` are alike.

    One block of each family is cut out and measured as every target of one layout under every setting of sdpa_kernel,
    on what it receives when the model runs on `feeds`; what gives other numbers than the unfused block is refused.
    Then the whole model is measured: unfused, with the best of each family alone, with what "auto" takes unasked, and
    with each target wherever it is near the best. All that is compared runs in turns.

    `provider` is "auto", "cuda" or "cpu"; `runs` and `seed` are those of `profile`. BlockError if there is nothing to
    fuse; ModelError, InputError, SessionError or WorkerError if the model does not run, or no block of it does.
    """
    kin = kin_of(model, blocks, families)
    if not kin:
        raise BlockError("expected a block that can be fused, found none: scan the model for what is in the way")
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        return _Tuner(worker, model, kin, feeds, Path(folder), runs, seed, on_progress, cancel).tuned(provider)


@dataclass(slots=True, eq=False)
class _Tuner:
    """One tuning under way."""

    worker: Worker
    model: Model
    kin: Sequence[Kin]
    feeds: Feeds
    folder: Path
    runs: int
    seed: int
    on_progress: OnProgress | None
    cancel: threading.Event | None
    settings: Settings = field(default_factory=Settings)
    """Those of the provider that everything runs on, once that is known."""
    environment: tuple[tuple[str, str], ...] = ()
    notes: dict[str, None] = field(default_factory=dict)

    def tuned(self, provider: str) -> Tuning:
        """Measure all there is to measure."""
        stages = 1 + sum(1 + len(item.targets) for item in self.kin)
        runner = self._runner(provider, on_progress=self._share(0, _CHECKED), stages=stages)
        found = benches(runner, self.model, self.kin, self.feeds, self.seed)
        usable = [bench for bench in found if bench.parts]
        if not runner.device or not usable:
            raise SessionError(f"expected a block that runs cut out of its model, found none: {_reason(found[0])}")
        for bench in found:
            if not bench.parts:
                self.notes[f"{bench.kin.first.label} and those like it were not measured: {_reason(bench)}"] = None
        self.settings = Settings(cast(Provider, runner.device))
        self.kin = [bench.kin for bench in usable]
        families = tuple(self._alone(bench, place, len(usable)) for place, bench in enumerate(usable))
        ways, refused = self._in_model(families)
        trials = self._measured(ways, self.feeds, self._share(_ALONE, _IN_MODEL), trace=False)
        winner = best(trials)
        way = next(way for way in ways if way.targets == winner.targets)
        forced, sdpa_kernel = self._forced(ways[0], way, promising(families, way.targets))
        return Tuning(
            source=self.model.digest,
            file=self.model.file_digest,
            provider=self.settings.provider,
            environment=self.environment,
            shapes=tuple((name, array.shape) for name, array in self.feeds.items()),
            runs=self.runs,
            seed=self.seed,
            families=families,
            trials=(*trials, *forced, *refused),
            plan=self._plan(winner.targets),
            sdpa_kernel=sdpa_kernel,
            notes=tuple(self.notes),
        )

    def _alone(self, bench: Bench, place: int, count: int) -> FamilyTuning:
        """Measure the candidates of the family at `place` of `count`, cut out."""
        kin, first = bench.kin, bench.kin.first
        ways = [Way("unfused", (UNFUSED,), 0, bench.parts[UNFUSED])]
        refused = []
        for target in kin.targets:
            way = Way(target, (target,), self._layout_nodes(first, target), bench.parts.get(target, self.model))
            if reason := bench.refusals.get(target):
                refused.append(way.refused(reason))
            else:
                ways += [way, *(way.under(kernel) for kernel in KERNELS[self.settings.provider])]
        step = (_ALONE - _CHECKED) / count
        share = self._share(_CHECKED + place * step, _CHECKED + (place + 1) * step)
        trials = merged(self._measured(ways, bench.feeds, share, trace=True))
        if not is_captured(self.model, first):
            self.notes[f"{first.label} is in the body of an If, Loop or Scan: measured alone on made-up values."] = None
        blocks = sorted(kin.blocks, key=lambda block: (len(block.label), block.label))
        return FamilyTuning(
            label=label_range([block.label for block in blocks]),
            blocks=tuple(block.id for block in blocks),
            measured=first.id,
            words=describe(first),
            trials=(*(self._checked(bench, trial) for trial in trials), *refused),
        )

    def _checked(self, bench: Bench, trial: Trial) -> Trial:
        """The trial, refused if what was asked for gives wrong numbers."""
        if trial.refusal or not trial.sdpa_kernel:
            reason = trial.refusal or bench.refusals.get(trial.targets[0], "")
        else:
            reason = bench.check(self._runner(self.settings.provider, trial.sdpa_kernel), trial.targets[0])
        return replace(trial, refusal=reason)

    def _in_model(self, families: Sequence[FamilyTuning]) -> tuple[list[Way], list[Trial]]:
        """What is measured of the whole model, unfused first, and what cannot be."""
        unasked = tuple(choose(self.model, item.first, "auto", self.settings).exact for item in self.kin)
        ways, refused = [], []
        for targets, name in combinations(families, unasked).items():
            plan = self._plan(targets)
            nodes = sum(
                self._layout_nodes(block, target)
                for item, target in zip(self.kin, targets, strict=True)
                for block in item.blocks
            )
            way = Way(name, targets, nodes, self.model, plan.digest)
            try:
                ways.append(replace(way, model=self._fused(plan)) if plan.fusions else replace(way, plan=""))
            except (ModelError, SessionError, WorkerDied) as error:
                refused.append(way.refused(str(error)))
        return ways, refused

    def _forced(self, unfused: Way, winner: Way, kernels: Sequence[int]) -> tuple[list[Trial], int]:
        """The winner under other settings of sdpa_kernel, and the one that makes it faster than without, or 0."""
        if not kernels:
            return [], 0
        ways = [unfused, winner, *(winner.under(kernel) for kernel in kernels)]
        _, default, *trials = self._measured(ways, self.feeds, self._share(_IN_MODEL, 1), trace=False)
        faster = [trial for trial in trials if not trial.refusal and not default.refusal and is_faster(trial, default)]
        return trials, min(faster, key=median_ms).sdpa_kernel if faster else 0

    def _measured(
        self, ways: Sequence[Way], feeds: Feeds, on_progress: OnProgress | None, *, trace: bool
    ) -> list[Trial]:
        found = profile(
            self.worker,
            [way.subject for way in ways],
            [feeds],
            provider=self.settings.provider,
            runs=self.runs,
            seed=self.seed,
            trace=trace,
            on_progress=on_progress,
            cancel=self.cancel,
        )
        self.environment = found.environment
        self.notes |= dict.fromkeys(found.notes)
        return [trial_of(way, found) for way in ways]

    def _plan(self, targets: Targets) -> Plan:
        plan = Plan(self.model.digest, settings=self.settings)
        for item, target in zip(self.kin, targets, strict=True):
            for block in item.blocks if target else ():
                plan = plan.with_fusion(block, target)
        return plan

    def _fused(self, plan: Plan) -> Model:
        """The model under `plan`; ModelError, SessionError or WorkerDied if it cannot be made or loaded."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("The tuning was cancelled before it finished.")
        fused = apply(self.model, [block for item in self.kin for block in item.blocks], plan)
        Loading(self.worker, self.model, ()).model(plan, fused)
        return fused

    def _layout_nodes(self, block: Block, target: str) -> int:
        cost = choose(self.model, block, target, self.settings).cost if target else None
        return 0 if cost is None else cost.layout_nodes

    def _runner(
        self, provider: str, sdpa_kernel: int = 0, stages: int = 1, on_progress: OnProgress | None = None
    ) -> Runner:
        return Runner(
            self.worker, self.folder, provider=provider, sdpa_kernel=sdpa_kernel, on_progress=on_progress,
            cancel=self.cancel, stages=stages,
        )  # fmt: skip

    def _share(self, start: float, end: float) -> OnProgress | None:
        """Reports what is done of one stage as that share of the whole."""
        report = self.on_progress
        return None if report is None else lambda done, text: report(start + (end - start) * done, text)


def _reason(bench: Bench) -> str:
    return next(iter(bench.refusals.values()))
