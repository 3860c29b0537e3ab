"""What a tuning is: every way in which a model's attention was computed, how long each took, and the plan that wins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from explorer.errors import InputError
from explorer.fusion import TARGETS, Plan
from explorer.profile import codec
from explorer.profile.values import Latency, Ratio, Shapes

SCHEMA = 2

UNFUSED = ""
"""What stands for a target where blocks are left as they are."""
LEVEL = 1.02
"""Two ways to compute a block whose work on the GPU differs by less than this are as fast as each other."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to compute a block, cut out of the model, or the whole model.

    name          "unfused", "mha/bsd", "mha/bsd, sdpa_kernel 8", "the best of each family", "mha/bsd where it can be"
    targets       what the block became, or in the whole model each of `Tuning.families`, in their order
    sdpa_kernel   CUDA provider option that the session had; 0 leaves the choice to ONNX Runtime
    merged        further settings of it under which the same kernel ran: they are no trials of their own
    kernel        the attention kernel that ran, as in `Dispatch.kernel`; "" if that is not told, as on the CPU
    layout_nodes  what stands between the operators and what lies around their blocks
    latency       wall time of the timed runs; None if it was not measured
    ratio         how many times faster than unfused; None for that itself, or if one of the two did not run
    device_us     what the GPU worked in a traced run; None if nobody watched it
    refusal       a sentence: why it must not win (it does not run, it computes something else); "" if it may
    """

    name: str
    targets: tuple[str, ...]
    sdpa_kernel: int
    merged: tuple[int, ...]
    kernel: str
    layout_nodes: int
    latency: Latency | None
    ratio: Ratio | None
    device_us: float | None
    refusal: str

    @property
    def is_unfused(self) -> bool:
        """True if nothing is fused."""
        return not any(self.targets)


@dataclass(frozen=True, slots=True)
class FamilyTuning:
    """The blocks of one family that can be fused, and how one of them did, cut out.

    label     "attn0…attn21"
    blocks    their ids
    measured  id of the one that was cut out
    words     what they compute
    trials    unfused first, then target by target; those that were refused, too
    """

    label: str
    blocks: tuple[str, ...]
    measured: str
    words: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The one that costs least by itself."""
        fastest = next(iter(self.contenders), None)
        if fastest is None or not self.by_device:
            return best(self.trials)
        level = [trial for trial in self.contenders if self.cost_us(trial) <= LEVEL * self.cost_us(fastest)]
        return min(level, key=_order)

    @property
    def contenders(self) -> tuple[Trial, ...]:
        """The trials that may win and leave the kernel to ONNX Runtime, the one that costs least first."""
        return tuple(sorted(_contenders(self.trials), key=self.cost_us))

    @property
    def by_device(self) -> bool:
        """Whether the GPU's work is compared, and not the wall time.

        A block by itself is launched in longer than the GPU needs for it; in a model that hides behind other work.
        """
        return all(trial.device_us is not None for trial in _contenders(self.trials))

    def cost_us(self, trial: Trial) -> float:
        """What a trial that ran costs by itself: the GPU's work or, where nobody watched it, the median run."""
        return trial.device_us if self.by_device and trial.device_us is not None else 1000 * median_ms(trial)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the attention of one model is computed fastest on one device, and what was tried.

    source       digest of the model
    file         digest of its file alone: however its inputs are shaped, a tuning is for the file's blocks
    provider     where everything ran
    environment  (name, value) pairs: versions, devices
    shapes       of the model's inputs
    runs, seed   timed runs of each trial; seed of the intervals
    families     those with a block that can be fused
    trials       of the whole model, unfused first
    plan         what wins
    sdpa_kernel  the session option that makes the plan faster than ONNX Runtime's own choice of kernels; 0 if none does
    notes        sentences about what these numbers do and do not show
    """

    source: str
    file: str
    provider: Literal["cuda", "cpu"]
    environment: tuple[tuple[str, str], ...]
    shapes: Shapes
    runs: int
    seed: int
    families: tuple[FamilyTuning, ...]
    trials: tuple[Trial, ...]
    plan: Plan
    sdpa_kernel: int
    notes: tuple[str, ...]

    @property
    def device(self) -> str:
        """Name of what it ran on, "NVIDIA H200"."""
        return device(self.provider, dict(self.environment))

    @property
    def onnxruntime(self) -> str:
        """Version of ONNX Runtime."""
        return dict(self.environment).get("onnxruntime", "")

    @property
    def winner(self) -> Trial:
        """The trial of the whole model whose plan wins."""
        return best(self.trials)

    def target(self, block: str) -> str | None:
        """What the block with this id becomes in the plan that wins, "" if it stays; None if it was not tried."""
        tried = any(block in family.blocks for family in self.families)
        return (self.plan.target(block) or UNFUSED) if tried else None

    def words(self, block: str) -> str:
        """What was measured of a block that was tried, in a clause.

        "measured on NVIDIA H200 at x 2×938×100: mha/bsd 0.1 ms, attention/bnsh 0.13 ms, unfused 1.2 ms; in the model
        5.2 ms, unfused 12.1 ms"
        """
        family = next(family for family in self.families if block in family.blocks)
        shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in self.shapes)
        alone = ", ".join(
            f"{trial.targets[0] or 'unfused'} {family.cost_us(trial) / 1000:.3g} ms" for trial in family.contenders
        )
        words = f"measured on {self.device} at {shapes}: {alone or 'nothing ran'}"
        unfused, winner = self.trials[0], self.winner
        if winner.is_unfused:
            return f"{words}; in the model unfused {_ms(winner)}"
        level = unfused.latency is not None and winner.latency is not None and not is_faster(winner, unfused)
        noise = ", no difference beyond the noise" if level else ""
        return f"{words}; in the model {_ms(winner)}, unfused {_ms(unfused)}{noise}"

    # As a document

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object."""
        return {"schema": SCHEMA, **codec.to_json(self)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The tuning that `to_json` gave. InputError for anything else, also for that of another schema."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise InputError(f"expected a tuning of schema {SCHEMA}, found schema {schema!r}: tune the model again")
        try:
            tuning = codec.from_json(cls, data)
        except ValueError as error:
            raise InputError(f"expected a complete tuning, found that {error}: tune the model again") from error
        if flaw := next(_flaws(tuning), ""):
            raise InputError(f"expected a tuning that agrees with itself, found {flaw}: tune the model again")
        return tuning

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The tuning in a JSON file; InputError if there is none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"expected a saved tuning in {path}, found none that can be read: {error}") from error
        return cls.from_json(data)


def best(trials: Sequence[Trial]) -> Trial:
    """The one that wins: the fastest, or what is no slower beyond the noise and has fewer layout nodes.

    Of the trials that leave the kernel to ONNX Runtime; the first (unfused) if none may win. What fuses more wins over
    what is no faster: it takes less memory.
    """
    contenders = _contenders(trials)
    if not contenders:
        return trials[0]
    fastest = min(contenders, key=median_ms)
    level = [trial for trial in contenders if not is_faster(fastest, trial)]
    return min(level, key=_order)


def _order(trial: Trial) -> tuple[int, int]:
    """What decides between trials that are as fast as each other."""
    return trial.targets.count(UNFUSED), trial.layout_nodes


def is_faster(one: Trial, other: Trial) -> bool:
    """True if `one` took less time than `other` in the same rounds, beyond their noise. Both ran."""
    assert one.latency is not None
    assert other.latency is not None
    return Ratio.of(other.latency, one.latency, seed=0).sign > 0


def device(provider: str, environment: Mapping[str, str]) -> str:
    """Name of the device on which `provider` runs."""
    return environment.get("gpu" if provider == "cuda" else "cpu", "")


def _contenders(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.latency and not trial.refusal and not trial.sdpa_kernel]


def median_ms(trial: Trial) -> float:
    """Half of the runs of a trial that ran were at most this long."""
    assert trial.latency is not None
    return trial.latency.median_ms


def _ms(trial: Trial) -> str:
    return "does not run" if trial.latency is None else f"{trial.latency.median_ms:.3g} ms"


def _flaws(tuning: Tuning) -> Iterator[str]:
    """What contradicts itself, in words."""
    if tuning.plan.source_digest != tuning.source:
        yield "a plan for another model"
    if len(set(tuning.plan.blocks)) != len(tuning.plan.blocks):
        yield "a block twice in its plan"
    if tuning.runs < 1 or not tuning.families:
        yield f"{tuning.runs} runs and {len(tuning.families)} families"
    places = [(len(family.trials), 1, family.trials) for family in tuning.families]
    for count, width, trials in (*places, (len(tuning.trials), len(tuning.families), tuning.trials)):
        if not count:
            yield "a family or model without trials"
        for trial in trials:
            if len(trial.targets) != width:
                yield f"{len(trial.targets)} targets where there are {width}"
            if trial.latency is not None and len(trial.latency.runs_ms) != tuning.runs:
                yield f"{len(trial.latency.runs_ms)} runs where there are {tuning.runs}"
    targets = {fusion.target for fusion in tuning.plan.fusions}
    targets |= {target for family in tuning.families for trial in family.trials for target in trial.targets}
    if unknown := sorted(targets - {UNFUSED, *TARGETS}):
        yield f"the target {unknown[0][:40]!r}, which is none"
