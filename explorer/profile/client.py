"""Profiling as the rest of the explorer sees it: models and inputs in, a Profile out."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import onnx_ir as ir

from explorer.errors import Cancelled, ExplorerError, InputError, WorkerTimeout
from explorer.model import Model
from explorer.model.save import data_folder, serialize
from explorer.profile import answers, codec, words
from explorer.profile.answers import Regions, Timings, Traces
from explorer.profile.remarks import LAUNCH_BLOCKING, NO_GRAPHS, NO_SDPA_KERNELS, remarks
from explorer.profile.values import Profile, Region, Variant, counts
from explorer.runtime import Deadline, arrays
from explorer.runtime.arrays import Array
from explorer.runtime.client import Worker

OnProgress = Callable[[float, str], None]

_MEASURE = "explorer.profile.measure:measure"
_INSPECT = "explorer.profile.inspection:inspect"
_BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}
_TIMED_SHARE = 0.7  # of the progress, when runs are traced after it


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model to measure.

    name         what the profile calls it; unique in a profile
    plan         digest of the fusion plan that made it; "" for the source
    regions      its attention blocks, so that their time can be told; nodes by `Model.key`
    sdpa_kernel  attention kernels that CUDA may use, as in SessionSpec
    cuda_graph   whether its timed runs replay a CUDA graph; without effect on the CPU
    """

    name: str
    model: Model
    plan: str = ""
    regions: tuple[Region, ...] = ()
    sdpa_kernel: int = 0
    cuda_graph: bool = False


def profile(
    worker: Worker,
    subjects: Sequence[Subject],
    points: Sequence[Mapping[str, Array]],
    *,
    provider: str = "auto",
    runs: int = 20,
    seed: int = 0,
    trace: bool = True,
    labels: tuple[tuple[str, str], ...] = (),
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    timeout_s: float | None = None,
) -> Profile:
    """Time the subjects against each other on each of `points` (their inputs), then trace where their time goes.

    `provider` is "auto" (CUDA where a session really runs on it, else the CPU), "cuda" or "cpu". `runs` is the number
    of timed runs of each subject at each point; `seed` is that of the intervals of the ratios, which are the first
    subject's time over another's: give the original first. `trace` says whether runs are traced at all; `labels` are
    those of the regions' blocks. `timeout_s` is a limit for everything.

    A subject that does not load, or not run at some point, is refused there in words and leaves the others untouched;
    one that cannot be traced gets a note. Raises InputError when the inputs fit none and SessionError when none runs or
    the provider is not there; WorkerDied, WorkerTimeout and Cancelled.
    """
    names = [subject.name for subject in subjects]
    if not subjects or not points or runs < 1:
        raise InputError(
            f"expected at least one model, one set of inputs and one run, found {len(subjects)}, {len(points)} and "
            f"{runs}: give them"
        )
    if len(set(names)) < len(names):
        raise InputError(f"expected a name of its own for each model, found {', '.join(names)}: rename one")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-explorer-")))
        calls = _Calls(on_progress, cancel, timeout_s)
        files = _write_models(folder, subjects)
        feeds = [folder / f"feeds{index}.npz" for index in range(len(points))]
        for path, point in zip(feeds, points, strict=True):
            arrays.save(path, point)
        calls.span = 0.0, _TIMED_SHARE if trace else 1.0
        timings = _timings(calls, worker, subjects, files, feeds, folder / "timings.json", provider, runs, seed)
        found = _untraced(subjects, timings, labels, runs, seed)
        if trace:
            tracer = stack.enter_context(_Tracer(calls, worker))
            for index, (subject, file) in enumerate(zip(subjects, files, strict=True)):
                steps = (_TIMED_SHARE + (1 - _TIMED_SHARE) * done / len(subjects) for done in (index, index + 1))
                calls.span = next(steps), next(steps)
                found = _traced(found, tracer, subject, file, feeds, folder / "traces.json")
            found = replace(found, notes=found.notes + tracer.notes)
    return replace(found, notes=found.notes + remarks(found))


class _Calls:
    """Calls of the worker that share one progress, one cancel event and one time limit.

    span  the part (from and to, 0 to 1) of the whole that the next calls are
    """

    def __init__(self, on_progress: OnProgress | None, cancel: threading.Event | None, timeout_s: float | None) -> None:
        self.span = 0.0, 1.0
        self._on_progress, self._cancel = on_progress, cancel
        self._deadline = Deadline(timeout_s)
        self._done = 0.0

    def call(self, worker: Worker, function: str, args: Mapping[str, Any]) -> None:
        try:
            left_s = self._deadline.left_s()
            worker.call(function, args, on_progress=self._report, cancel=self._cancel, timeout_s=left_s)
        except WorkerTimeout as error:
            raise WorkerTimeout(f"The profile's time limit is over: {error}") from error

    def _report(self, fraction: float, text: str) -> None:
        start, end = self.span
        self._done = max(self._done, start + (end - start) * fraction)  # what is done again is not done less
        if self._on_progress is not None:
            self._on_progress(self._done, text)


class _Tracer:
    """Traces variants in a process that can: the worker's, else a fresh one, else one whose launches wait for the GPU.

    CUPTI may not start a second time in a process. Without it, ONNX Runtime's own node times tell how long the GPU
    works if every launch waits for it, which is decided when a process starts.
    """

    def __init__(self, calls: _Calls, worker: Worker) -> None:
        self.notes: tuple[str, ...] = ()
        self._calls, self._worker = calls, worker
        self._has_traced = True  # in another profile, perhaps
        self._own = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._own.close()

    def traces(self, args: Mapping[str, Any]) -> Traces:
        """What `inspect` writes when it is called with `args`."""
        found = self._try(args)
        if found.no_tracer and self._has_traced:
            self._start({})
            found = self._try(args)
        if found.no_tracer:
            self.notes = (f"{found.no_tracer} {LAUNCH_BLOCKING}",)
            self._start(_BLOCKING)
            found = self._try(args)
        self._has_traced = True
        return found

    def _start(self, env: Mapping[str, str]) -> None:
        self._own.close()
        self._worker = self._own.enter_context(Worker(env))
        self._has_traced = False

    def _try(self, args: Mapping[str, Any]) -> Traces:
        self._calls.call(self._worker, _INSPECT, args)
        return answers.read(args["out_json"], Traces)


@dataclass(frozen=True, slots=True)
class _File:
    """A model as the worker finds it."""

    model: str
    data_folder: str | None


def _write_models(folder: Path, subjects: Sequence[Subject]) -> list[_File]:
    """Each model written once, under the name of its own file, which is what ONNX Runtime's errors speak of."""
    files: dict[int, _File] = {}
    for subject in subjects:
        model = subject.model
        if id(model) not in files:
            path = folder / str(len(files)) / model.path.name
            path.parent.mkdir()
            path.write_bytes(serialize(_with_names(model)))
            data = data_folder(model.ir)
            files[id(model)] = _File(str(path), None if data is None else str(data))
    return [files[id(subject.model)] for subject in subjects]


def _with_names(model: Model) -> ir.Model:
    """The graph with every node named by its key, which traces tell nodes by; a copy if any is named otherwise."""
    nodes = list(model.ir.graph.all_nodes())
    if all(node.name == model.key(node) for node in nodes):
        return model.ir
    copy = model.ir.clone()
    for node, own in zip(copy.graph.all_nodes(), nodes, strict=True):
        node.name = model.key(own)
    return copy


def _timings(
    calls: _Calls,
    worker: Worker,
    subjects: Sequence[Subject],
    files: Sequence[_File],
    feeds: Sequence[Path],
    out: Path,
    provider: str,
    runs: int,
    seed: int,
) -> Timings:
    variants = [
        {**asdict(file), "name": subject.name, "sdpa_kernel": subject.sdpa_kernel, "cuda_graph": subject.cuda_graph}
        for subject, file in zip(subjects, files, strict=True)
    ]
    args = {
        "variants": variants,
        "feeds_npz": list(map(str, feeds)),
        "out_json": str(out),
        "provider": provider,
        "runs": runs,
        "seed": seed,
    }
    calls.call(worker, _MEASURE, args)
    return answers.read(out, Timings)


def _untraced(
    subjects: Sequence[Subject], timings: Timings, labels: tuple[tuple[str, str], ...], runs: int, seed: int
) -> Profile:
    """The profile as far as times tell."""
    cuda = timings.provider == "cuda"
    digests = {subject.model.digest for subject in subjects}
    variants = tuple(
        Variant(
            name=subject.name,
            plan=subject.plan,
            sdpa_kernel=subject.sdpa_kernel if cuda else 0,
            cuda_graph=subject.cuda_graph and cuda,
            load_s=loading.load_s,
            optimization=loading.optimization,
            ops=counts(node.op_type for node in subject.model.nodes),
            ops_optimized=(),
            memcpy_nodes=0,
            placement=(),
        )
        for subject, loading in zip(subjects, timings.loadings, strict=True)
    )
    notes = [
        f"ONNX Runtime loads {variant.name} only at optimization level {variant.optimization}: {loading.lowered}"
        for variant, loading in zip(variants, timings.loadings, strict=True)
        if loading.lowered
    ]
    if not cuda and any(subject.cuda_graph for subject in subjects):
        notes.append(NO_GRAPHS)
    if not cuda and any(subject.sdpa_kernel for subject in subjects):
        notes.append(NO_SDPA_KERNELS)
    return Profile(
        provider=timings.provider,
        provider_note=timings.provider_note,
        environment=timings.environment,
        labels=labels,
        source=digests.pop() if len(digests) == 1 else "",
        runs=runs,
        seed=seed,
        variants=variants,
        points=timings.points,
        notes=tuple(notes),
    )


def _traced(
    found: Profile, tracer: _Tracer, subject: Subject, file: _File, feeds: Sequence[Path], out: Path
) -> Profile:
    """The profile with traces of one subject wherever it ran; with a note instead if that cannot be."""
    variant = found.variant(subject.name)
    ran = [index for index, point in enumerate(found.points) if point.of(subject.name).latency is not None]
    if not ran:
        return found
    args = {
        **asdict(file),
        "name": subject.name,
        "provider": found.provider,
        "optimization": variant.optimization,
        "sdpa_kernel": variant.sdpa_kernel,
        "compute_capability": dict(found.environment).get("compute_capability", ""),
        "regions": codec.to_json(Regions(subject.regions)),
        "feeds_npz": [str(feeds[index]) for index in ran],
        "out_json": str(out),
    }
    try:
        traces = tracer.traces(args)
    except (Cancelled, WorkerTimeout):
        raise
    except ExplorerError as error:  # its times are still worth having
        return replace(found, notes=(*found.notes, f"{subject.name} was not traced: {error}"))
    points, notes = list(found.points), list(found.notes)
    for index, traced in zip(ran, traces.traced, strict=True):
        own = replace(points[index].of(subject.name), trace=traced.trace, dispatch=traced.dispatch)
        others = points[index].measurements
        measurements = tuple(own if other.variant == subject.name else other for other in others)
        points[index] = replace(points[index], measurements=measurements)
        if traced.refusal:
            notes.append(f"{subject.name} was not traced at {words.shapes(points[index].shapes)}: {traced.refusal}")
    variants = tuple(
        replace(
            item,
            ops_optimized=traces.ops_optimized,
            memcpy_nodes=traces.memcpy_nodes,
            placement=traces.placement,
        )
        if item is variant
        else item
        for item in found.variants
    )
    return replace(found, variants=variants, points=tuple(points), notes=tuple(notes))
