"""From measurements to trials, and from trials to what is worth trying next: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from explorer.fusion import TARGETS
from explorer.model import Model
from explorer.profile.client import Subject
from explorer.profile.values import Profile
from explorer.tune.values import LEVEL, UNFUSED, FamilyTuning, Trial, is_faster

WORTH_TRYING = 1.5
"""A target that takes this many times as long as the best of its family alone is not tried in the model."""

Targets = tuple[str, ...]
"""One for each family."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """What a trial is to be of; the fields are those of `Trial` and `Subject`."""

    name: str
    targets: Targets
    layout_nodes: int
    model: Model
    plan: str = ""
    sdpa_kernel: int = 0

    @property
    def subject(self) -> Subject:
        """What the profiler is given."""
        return Subject(self.name, self.model, self.plan, sdpa_kernel=self.sdpa_kernel)

    def under(self, sdpa_kernel: int) -> Way:
        """The same under that setting."""
        return replace(self, name=f"{self.name}, sdpa_kernel {sdpa_kernel}", sdpa_kernel=sdpa_kernel)

    def refused(self, reason: str) -> Trial:
        """A trial that is not made."""
        return Trial(self.name, self.targets, self.sdpa_kernel, (), "", self.layout_nodes, None, None, None, reason)


def trial_of(way: Way, profile: Profile) -> Trial:
    """What a profile says of `way`, whose first variant is unfused and whose only point has the values of all."""
    found = profile.points[0].of(way.name)
    return Trial(
        name=way.name,
        targets=way.targets,
        sdpa_kernel=way.sdpa_kernel,
        merged=(),
        kernel=", ".join(dict.fromkeys(item.kernel for item in found.dispatch)),
        layout_nodes=way.layout_nodes,
        latency=found.latency,
        ratio=found.ratio,
        device_us=found.trace.busy_us if found.trace is not None and found.trace.method == "cupti" else None,
        refusal=found.refusal,
    )


def merged(trials: Iterable[Trial]) -> list[Trial]:
    """The trials without those in which another setting of sdpa_kernel led to the kernel of an earlier one.

    A kernel that cannot take a block gives way to another: what was measured then is that one again.
    """
    found: list[Trial] = []
    for trial in trials:
        same = [one for one in found if trial.kernel and (one.targets, one.kernel) == (trial.targets, trial.kernel)]
        if same and not trial.refusal and not same[0].refusal:
            found[found.index(same[0])] = replace(same[0], merged=(*same[0].merged, trial.sdpa_kernel))
        else:
            found.append(trial)
    return found


def combinations(families: Sequence[FamilyTuning], unasked: Targets) -> dict[Targets, str]:
    """What is worth trying in the whole model, and what to call it; unfused first.

    The best of each family alone; `unasked`, what "auto" takes, unless something in it was refused; and each target
    wherever it is near the best, since layouts that fit each other save nodes in between.
    """
    best = tuple(family.best.targets[0] for family in families)
    names = {(UNFUSED,) * len(families): "unfused"}
    names.setdefault(best, "the best of each family")
    able = [{UNFUSED, *(trial.targets[0] for trial in family.contenders)} for family in families]
    if all(target in some for target, some in zip(unasked, able, strict=True)):
        names.setdefault(unasked, "auto")
    near = [_near_the_best(family) for family in families]
    for target in TARGETS:
        wide = tuple(target if target in some else own for some, own in zip(near, best, strict=True))
        names.setdefault(wide, f"{target} where it can be")
    return {targets: _only(targets) or name for targets, name in names.items()}


def promising(families: Sequence[FamilyTuning], targets: Targets) -> tuple[int, ...]:
    """The settings of sdpa_kernel under which some of `targets` was faster alone beyond the noise, and none wrong."""
    found: set[int] = set()
    wrong: set[int] = set()
    for family, target in zip(families, targets, strict=True):
        own = [trial for trial in family.trials if trial.targets == (target,)]
        wrong |= {kernel for trial in own if trial.refusal for kernel in (trial.sdpa_kernel, *trial.merged)}
        default = next((trial for trial in own if not trial.sdpa_kernel and trial.latency is not None), None)
        if target != UNFUSED and default is not None:
            ran = (trial for trial in own if trial.sdpa_kernel and trial.latency is not None)
            found |= {trial.sdpa_kernel for trial in ran if _is_cheaper(family, trial, default)}
    return tuple(sorted(found - wrong))


def _near_the_best(family: FamilyTuning) -> set[str]:
    """The targets that do not take much longer than the fastest."""
    costs_us = {trial.targets[0]: family.cost_us(trial) for trial in family.contenders}
    return {target for target, us in costs_us.items() if target and us <= WORTH_TRYING * min(costs_us.values())}


def _is_cheaper(family: FamilyTuning, trial: Trial, default: Trial) -> bool:
    """True if one setting of sdpa_kernel costs less than another by more than is level, or beyond the noise."""
    if family.by_device and trial.device_us is not None and default.device_us is not None:
        return LEVEL * trial.device_us < default.device_us
    return is_faster(trial, default)


def _only(targets: Targets) -> str:
    """The target of all families, "" if they have several or none."""
    return targets[0] if len(set(targets)) == 1 else ""
