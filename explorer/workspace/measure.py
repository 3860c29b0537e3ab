"""Profiles of a workspace, the source against a plan's model, kept by plan; and tunings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from explorer.attention import Block
from explorer.attention.family import Family
from explorer.errors import InputError
from explorer.fusion import Plan
from explorer.model import Model
from explorer.profile import Profile, Subject, profile
from explorer.profile.remarks import NO_GRAPHS
from explorer.runtime import Deadline, Worker
from explorer.tune import Tuning, tune
from explorer.verify.inputs import Feeds
from explorer.workspace.points import Shapes, points
from explorer.workspace.regions import regions

OnProgress = Callable[[float, str], None]

_ENVIRONMENT = "explorer.runtime.environment:environment"


class Measurements:
    """The latest profile of each plan for one source."""

    def __init__(self, worker: Worker, model: Model, blocks: Sequence[Block]) -> None:
        self._worker = worker
        self._model = model
        self._blocks = blocks
        self._profiles: dict[Plan, Profile] = {}

    def of(self, plan: Plan) -> Profile | None:
        """The latest profile of the source under this plan."""
        return self._profiles.get(plan)

    def profile(
        self,
        plan: Plan,
        fused: Model,
        *,
        shapes: Shapes | Sequence[Shapes] | None,
        runs: int,
        seed: int,
        provider: str,
        cuda_graph: bool,
        trace: bool,
        on_progress: OnProgress | None,
        cancel: threading.Event | None,
        timeout_s: float | None,
    ) -> Profile:
        """Measure the source and, if the plan fuses anything, `fused` against it; `cuda_graph` adds each as a graph.

        `timeout_s` is a limit for everything, finding the inputs included.
        """
        deadline = Deadline(timeout_s)
        given = [shapes or {}] if shapes is None or isinstance(shapes, Mapping) else shapes
        feeds = points(
            self._worker, self._model, given, seed, provider=provider, cancel=cancel, timeout_s=deadline.left_s()
        )
        subjects = [Subject("original", self._model, regions=regions(self._model, self._blocks))]
        if plan.fusions:
            subjects.append(Subject("fused", fused, plan.digest, regions(fused, self._blocks)))
        result = measure(
            self._worker,
            subjects,
            feeds,
            provider=provider,
            runs=runs,
            seed=seed,
            cuda_graph=cuda_graph,
            trace=trace,
            labels=tuple((block.id, block.label) for block in self._blocks),
            on_progress=on_progress,
            cancel=cancel,
            timeout_s=deadline.left_s(),
        )
        self._profiles[plan] = result
        return result

    def tune(
        self,
        families: Sequence[Family],
        *,
        shapes: Shapes | None,
        runs: int,
        seed: int,
        provider: str,
        on_progress: OnProgress | None,
        cancel: threading.Event | None,
    ) -> Tuning:
        """Find the plan for the source that wins on inputs of these shapes."""
        (feeds,) = points(self._worker, self._model, [shapes or {}], seed, provider=provider, cancel=cancel)
        return tune(
            self._worker,
            self._model,
            self._blocks,
            families,
            feeds,
            provider=provider,
            runs=runs,
            seed=seed,
            on_progress=on_progress,
            cancel=cancel,
        )

    def keep(self, plan: Plan, profile: Profile) -> None:
        """Take a profile that was made elsewhere for that of `plan`; InputError if it is of another model or plan."""
        if profile.source != self._model.digest:
            raise InputError(
                "expected a profile of the opened model, found one of another: open the model that was profiled"
            )
        fused = {variant.plan for variant in profile.variants} - {""}
        if fused != ({plan.digest} if plan.fusions else set()):
            raise InputError(
                "expected a profile of the current plan, found one of another: apply the plan that was profiled first"
            )
        self._profiles[plan] = profile


def measure(
    worker: Worker,
    subjects: Sequence[Subject],
    feeds: Sequence[Feeds],
    *,
    provider: str,
    runs: int,
    seed: int,
    cuda_graph: bool,
    trace: bool,
    labels: tuple[tuple[str, str], ...],
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    timeout_s: float | None = None,
) -> Profile:
    """What `explorer.profile.profile` does; `cuda_graph` adds each subject as a CUDA graph where there is CUDA."""
    deadline = Deadline(timeout_s)
    graphs: list[Subject] = []
    if cuda_graph and provider != "cpu":
        facts = worker.call(_ENVIRONMENT, cancel=cancel, timeout_s=deadline.left_s())
        if "CUDA" in facts.get("providers", ""):
            graphs = [replace(item, name=f"{item.name}, CUDA graph", cuda_graph=True) for item in subjects]
    found = profile(
        worker,
        [*subjects, *graphs],
        feeds,
        provider=provider,
        runs=runs,
        seed=seed,
        trace=trace,
        labels=labels,
        on_progress=on_progress,
        cancel=cancel,
        timeout_s=deadline.left_s(),
    )
    return replace(found, notes=(*found.notes, NO_GRAPHS)) if cuda_graph and not graphs else found
