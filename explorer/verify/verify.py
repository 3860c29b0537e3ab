"""Run the original and the fused model on the same inputs and judge both by float64 truth."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from explorer.attention import Block, recognise
from explorer.errors import ExplorerError, InputError
from explorer.model import Model, dtype_name
from explorer.runtime import Worker
from explorer.verify.blocks import judge_blocks
from explorer.verify.cases import LARGE, Case, default_cases, given_case
from explorer.verify.fit import fitting_sizes, outside_tables
from explorer.verify.inputs import Feeds, Shapes
from explorer.verify.judge import DOUBTFUL, compare
from explorer.verify.runs import OnProgress, Outcome, Runner, parameters
from explorer.verify.verdict import CaseVerdict, Comparison, Verdict

_STAGES = 8


def verify(
    worker: Worker,
    original: Model,
    fused: Model,
    blocks: Sequence[Block],
    cases: Sequence[Case] | None = None,
    *,
    shapes: Shapes | None = None,
    seed: int = 0,
    provider: str = "auto",
    sdpa_kernel: int = 0,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> Verdict:
    """Compare `fused` with `original`, whose `blocks` were fused, on each of `cases`.

    Without `cases` these are `default_cases` (of `shapes` and `seed`), at sizes at which the original runs. Each block
    is cut out of both models and judged on the Q, K, V and mask that it receives in the original, by attention in
    float64; the outputs are judged by the whole original in float64. `sdpa_kernel` is that of `SessionSpec`.

    Raises InputError or SessionError if the original does not run on the first case or a model does not load,
    WorkerError if the worker fails.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        runner = Runner(
            worker,
            Path(folder),
            provider=provider,
            sdpa_kernel=sdpa_kernel,
            on_progress=on_progress,
            cancel=cancel,
            stages=_STAGES,
        )
        if cases is not None and not cases:
            raise InputError("expected at least one case to verify on, found none")
        if cases is None:
            cases, before = _fitting_cases(runner, original, shapes, seed)
        else:
            before = _run_original(runner, original, cases)
        if isinstance(before[0], ExplorerError):
            raise before[0]
        ran = [(case, own) for case, own in zip(cases, before, strict=True) if not isinstance(own, ExplorerError)]
        feeds = [case.feeds for case, _ in ran]
        truths = runner.truths(original, feeds, [own for _, own in ran])
        after = runner.run(fused, feeds, "the fused model")
        judged = judge_blocks(runner, original, fused, blocks, [case for case, _ in ran])
    found = iter(zip(after, truths, judged.cases, strict=True))
    verdicts = tuple(
        CaseVerdict(case.words, case.shapes, case.seed, refusal=str(own), refused_by="original")
        if isinstance(own, ExplorerError)
        else _judged(original, case, own, *next(found))
        for case, own in zip(cases, before, strict=True)
    )
    verdict = Verdict(verdicts, runner.device)
    lowered = f"ONNX Runtime loads the original only with fewer optimisations, so both ran with these: {runner.lowered}"
    notes = [lowered] if runner.lowered else []
    return replace(verdict, notes=(*notes, *judged.notes, *_notes(original, blocks, verdict)))


def verify_models(
    worker: Worker,
    original: Model,
    fused: Model,
    *,
    inputs: str | Path | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
    provider: str = "auto",
    on_progress: OnProgress | None = None,
) -> Verdict:
    """Compare two files, whoever made the second of the first, on the inputs in an .npz file or on seeded ones.

    The blocks compared are those of the original whose Softmax is gone and whose output the other still has by name.
    InputError if the two do not take the same inputs or give the same outputs.
    """
    for what in ("inputs", "outputs"):
        before, after = ([value.name or "" for value in getattr(model.ir.graph, what)] for model in (original, fused))
        if before != after:
            raise InputError(
                f"expected two models with the same {what}, found {', '.join(before)} and {', '.join(after)}: "
                "compare a model with one that was made from it"
            )
    blocks = [block for block in recognise(original) if block.output is not None and not block.fused_as]
    return verify(
        worker,
        original,
        fused,
        [block for block in blocks if not fused.has_value(block.anchor_output)],
        None if inputs is None else [given_case(original, inputs)],
        shapes=shapes,
        seed=seed,
        provider=provider,
        on_progress=on_progress,
    )


def _fitting_cases(
    runner: Runner, original: Model, shapes: Shapes | None, seed: int
) -> tuple[Sequence[Case], list[Outcome]]:
    """The default cases and what the original gives for them, at smaller sizes if it does not run at the usual ones."""
    try:
        cases = default_cases(original, shapes, seed)
        before = _run_original(runner, original, cases)
        if not isinstance(before[0], ExplorerError):
            return cases, before
    except InputError:  # the usual sizes contradict each other
        pass
    length, batch = fitting_sizes(runner, original, shapes, seed)
    cases = default_cases(original, shapes, seed, length=length, batch=batch)
    return cases, _run_original(runner, original, cases)


def _run_original(runner: Runner, original: Model, cases: Sequence[Case]) -> list[Outcome]:
    outcomes: list[Outcome | None] = list(outside_tables(runner, original, [case.feeds for case in cases]))
    inside = [case.feeds for case, outcome in zip(cases, outcomes, strict=True) if outcome is None]
    found = iter(runner.run(original, inside, "the original"))
    return [next(found) if outcome is None else outcome for outcome in outcomes]


def _judged(
    original: Model,
    case: Case,
    own: Feeds,
    fused: Outcome,
    truth: tuple[Feeds, str],
    blocks: tuple[Comparison, ...],
) -> CaseVerdict:
    verdict = CaseVerdict(case.words, case.shapes, case.seed, truth[1], blocks)
    if isinstance(fused, ExplorerError):
        return replace(verdict, refusal=str(fused), refused_by="fused")
    outputs = tuple(
        replace(compare(name, _dtype(original, name), array, fused[name], truth[0][name]), case=case.words)
        for name, array in own.items()
        if array.dtype.kind == "f"
    )
    return replace(verdict, outputs=outputs)


def _dtype(model: Model, name: str) -> str:
    return dtype_name(model.dtype(model.value(name)))


def _notes(original: Model, blocks: Sequence[Block], verdict: Verdict) -> Iterator[str]:
    """Sentences on what the verdict does not prove."""
    if refused := [case.words for case in verdict.cases if case.refused_by == "original"]:
        yield f"The original itself does not run at {', '.join(refused)}: nothing is said about the fusion there."
    if verdict.cases[0].seed is not None and (count := parameters(original)) > LARGE:
        yield f"With {count / 1e9:.1f} billion parameters the model is tried on fewer inputs than a smaller one."
    if verdict.provider == "cpu" and any(block.dtype in ("float16", "bfloat16") for block in blocks):
        yield (
            "Run on the CPU, which computes 16-bit attention in other ways than a GPU: this proves that the fused "
            "graph means the same, not how a GPU's kernels round. Verify on the GPU for that."
        )
    if verdict.provider == "cuda" and any(block.dtype == "float32" for block in blocks):
        yield "Float32 products were computed in float32, not in TF32, which CUDA sessions use for some by default."
    compared = [(block.label, block.masked) for case in verdict.cases for block in case.blocks]
    if mended := dict.fromkeys(name for name, rows in compared if rows and rows.original_nan > rows.fused_nan):
        yield (
            f"In {', '.join(mended)} the original gives NaN for queries whose mask hides every key, the fused block "
            "numbers."
        )
    for output in verdict.outputs:
        if output.original.relative > DOUBTFUL:
            yield (
                f"The original's own output {output.name!r} is {output.original.relative:.0%} away from its float64 "
                f"truth at {output.case}, by its roundings alone: it proves little there, trust the blocks."
            )
