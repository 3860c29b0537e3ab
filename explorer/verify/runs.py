"""Running models on several inputs in the worker, through files in one temporary folder."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from explorer import errors
from explorer.errors import ExplorerError, ModelError, SessionError, WorkerTimeout
from explorer.model import Model
from explorer.model.cut import cut
from explorer.model.dims import evaluate, symbols
from explorer.model.save import data_folder, serialize
from explorer.runtime import Deadline, Worker, arrays
from explorer.verify.inputs import Feeds, symbol_sizes
from explorer.verify.judge import near

MAX_TRUTH_PARAMETERS = 1_000_000_000
"""Above this many parameters the float64 copy for the end-to-end truth would not fit an ordinary machine."""
MAX_TRUTH_BYTES = 1 << 31
"""Nor would an intermediate value of more than this in float64."""
TRUTH_LIMIT_S = 180.0
"""The reference evaluator is for meaning, not for speed; it is stopped after this long …"""
TRUTH_BUDGET_S = 10.0
"""… and on the other inputs than the first only if this is not over."""

_RUN = "explorer.runtime.sessions:run"
_FLOAT64 = "explorer.verify.truth:float64_outputs"
_FLOAT32 = "explorer.verify.truth:float32_outputs"
_IN_FLOAT64 = "the original in float64, by ONNX's reference evaluator"
_IN_FLOAT32 = "the original in float32, by ONNX Runtime on the CPU"
_NOT_OPTIMISED = "the original's own outputs, without ONNX Runtime's optimisations"
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

OnProgress = Callable[[float, str], None]
Outcome = Feeds | ExplorerError
"""The arrays that a run gave, by name, or why it gave none."""


class Runner:
    """Runs models in the worker. `stages` is about how many calls there will be, for the progress.

    `timeout_s` is a limit for all calls of `run` together, from now on.
    """

    def __init__(
        self,
        worker: Worker,
        folder: Path,
        *,
        provider: str = "auto",
        sdpa_kernel: int = 0,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        timeout_s: float | None = None,
        stages: float = 1.0,
    ) -> None:
        self.device = ""
        """What the provider turned out to be, "cuda" or "cpu", once a model has run on it."""
        self._worker = worker
        self._folder = folder
        self.lowered = ""
        """Why ONNX Runtime does not load the first model at its highest optimization level; "" if it does."""
        # In TF32, which CUDA takes for some float32 products and not for others, errors would say little
        self._options = {"provider": provider, "optimization": "best", "sdpa_kernel": sdpa_kernel, "tf32": False}
        self._on_progress = on_progress
        self._cancel = cancel
        self._deadline = Deadline(timeout_s)
        self._stages = stages
        self._done = 0
        self._written: tuple[Model, Path, Path | None] | None = None

    def run(self, model: Model, feeds: Sequence[Feeds], what: str, **options: object) -> list[Outcome]:
        """The outputs of `model` for each of `feeds`, all by one session; `options` are those of `sessions.run`.

        With `until_one_runs` the outcomes end at the first that ran. SessionError if the model does not load.
        """
        if not feeds:
            return []
        self._progress(f"running {what}")
        facts, outs = self._call(_RUN, model, feeds, {**self._options, **options}, self._deadline.left_s())
        if "provider" not in options:
            self.device = str(facts["provider"])
        if self._options["optimization"] == "best" and "optimization" not in options:
            self._options["optimization"] = facts["optimization"]  # the same for all that are compared
            self.lowered = facts["optimization_note"]
        return [
            arrays.load(out) if refused is None else getattr(errors, refused[0])(refused[1])
            for out, refused in zip(outs, facts["refusals"], strict=False)
        ]

    def truths(self, model: Model, feeds: Sequence[Feeds], own: Sequence[Feeds]) -> list[tuple[Feeds, str]]:
        """For each of `feeds` the outputs that are taken for true, and how they came about.

        Those of the model in float64; else, if its types are narrower than that, in float32; else not optimised, which
        rounds in other places; else its `own`. Where a rounding decides something discrete in the model (a bucket, a
        mask), float64 decides otherwise and says nothing about it: then the next best is taken, too.
        """
        ways = (_IN_FLOAT64, self._float64), (_IN_FLOAT32, self._float32), (_NOT_OPTIMISED, self._plain)
        found = [(item, "the original's own outputs") for item in own]
        reasons = [""] * len(feeds)
        missing = list(range(len(feeds)))
        for how, way in ways:
            outcomes = way(model, [feeds[place] for place in missing])
            for place, outcome in zip(tuple(missing), outcomes, strict=True):
                if isinstance(outcome, ExplorerError):
                    reasons[place] = reasons[place] or f", since there is no float64 truth: {outcome}"
                else:
                    found[place] = (outcome, how)
                    missing.remove(place)
        far = [place for place, (truth, how) in enumerate(found) if how == _IN_FLOAT64 and not near(own[place], truth)]
        how, way = ways[1] if _is_narrow(model) else ways[2]
        for place, outcome in zip(far, way(model, [feeds[place] for place in far]), strict=True):
            if not isinstance(outcome, ExplorerError) and near(own[place], outcome):
                found[place] = (outcome, how)
                reasons[place] = ", since in float64 a rounding decides otherwise"
        return [(outputs, how + reason) for (outputs, how), reason in zip(found, reasons, strict=True)]

    def exact(self, part: Model, feeds: Feeds) -> Outcome:
        """The outputs of a part of a model in float64, or where that cannot be in float32 if its types are narrower."""
        (found,) = self._widened(_FLOAT64, part, [feeds], {}, TRUTH_LIMIT_S)
        return self._float32(part, [feeds])[0] if isinstance(found, ExplorerError) else found

    def _float64(self, model: Model, feeds: Sequence[Feeds]) -> list[Outcome]:
        outcomes: list[Outcome] = [ModelError(_too_large(model, item)) for item in feeds]
        possible = [place for place, outcome in enumerate(outcomes) if not str(outcome)]
        start = time.monotonic()
        # The first alone: should the others take too long, it still has its truth
        for places in (possible[:1], possible[1:]):
            given = [feeds[place] for place in places]
            budget = {} if places == possible[:1] else {"budget_s": TRUTH_BUDGET_S - (time.monotonic() - start)}
            found = self._widened(_FLOAT64, model, given, budget, TRUTH_LIMIT_S)
            for place, outcome in zip(places, found, strict=True):
                outcomes[place] = outcome
            if any(isinstance(outcome, WorkerTimeout) for outcome in found):
                for place in possible[1:]:
                    outcomes[place] = found[0]
                break
        return outcomes

    def _float32(self, model: Model, feeds: Sequence[Feeds]) -> list[Outcome]:
        if not _is_narrow(model):
            return [ModelError("it computes in float32 already")] * len(feeds)
        return self._widened(_FLOAT32, model, feeds, {}, None)

    def _plain(self, model: Model, feeds: Sequence[Feeds]) -> list[Outcome]:
        try:
            return self.run(model, feeds, "the original, not optimised", optimization="disabled")
        except SessionError as error:
            return [error] * len(feeds)

    def _widened(
        self, function: str, model: Model, feeds: Sequence[Feeds], args: Mapping[str, object], limit_s: float | None
    ) -> list[Outcome]:
        if not feeds:
            return []
        self._progress(f"computing the truth in {'float64' if function == _FLOAT64 else 'float32'}")
        try:
            reasons, outs = self._call(function, model, feeds, args, limit_s)
        except WorkerTimeout:
            return [WorkerTimeout(f"ONNX's reference evaluator takes longer than {limit_s:g} s")] * len(feeds)
        return [
            arrays.load(out) if reason is None else ModelError(reason)
            for out, reason in zip(outs, reasons, strict=True)
        ]

    def _call(
        self, function: str, model: Model, feeds: Sequence[Feeds], args: Mapping[str, object], limit_s: float | None
    ) -> tuple[Any, list[Path]]:
        """What `function` returns for the model and feeds in files, and where it wrote the outputs."""
        if self._written is None or self._written[0] is not model:
            path = self._folder / model.path.name
            path.write_bytes(serialize(model.ir))
            self._written = model, path, data_folder(model.ir)
        _, path, data = self._written
        ins, outs = ([self._folder / f"{kind}{at}.npz" for at in range(len(feeds))] for kind in ("in", "out"))
        for file, item in zip(ins, feeds, strict=True):
            arrays.save(file, item)
        given = {
            "model": str(path),
            "feeds_npz": list(map(str, ins)),
            "out_npz": list(map(str, outs)),
            "data_folder": None if data is None else str(data),
        }
        return self._worker.call(function, {**given, **args}, cancel=self._cancel, timeout_s=limit_s), outs

    def _progress(self, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(min(self._done / self._stages, 1.0), text)
        self._done += 1


def run_part(
    runner: Runner,
    model: Model,
    inputs: Sequence[str],
    outputs: Sequence[str],
    values: Sequence[Feeds],
    what: str,
    **options: object,
) -> list[Outcome]:
    """The values called `outputs`, computed from those of `inputs` in each of `values` by that part of `model`.

    A ModelError where the part cannot be made or loaded.
    """
    if not outputs:
        return [{} for _ in values]
    try:
        part = cut(model, inputs, outputs)
        return runner.run(part, [needed(part, item) for item in values], what, **options)
    except (ModelError, SessionError) as error:
        return [ModelError(str(error))] * len(values)


def needed(part: Model, values: Feeds) -> Feeds:
    """Those of `values` that are inputs of `part`."""
    return {name: values[name] for value in part.ir.graph.inputs if (name := value.name or "") in values}


def _is_narrow(model: Model) -> bool:
    """True if the model has 16-bit numbers."""
    return any(known.dtype in _NARROW for known in model.types.values())


def parameters(model: Model) -> int:
    """How many numbers the weights of `model` hold."""
    tensors = (value.const_value for graph in model.ir.graphs() for value in graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None)


def elements(model: Model, names: Iterable[str], sizes: Mapping[str, int]) -> list[int]:
    """How many elements each of these values has with these sizes of symbols; 0 if that is not known."""
    types = [model.types.get(name) for name in names]
    shapes = [None if known is None else known.shape for known in types]
    dims = {dim for shape in shapes for dim in shape or () if symbols(dim) <= sizes.keys()}
    numbers = {dim: evaluate(dim, sizes) for dim in dims}
    return [0 if shape is None else math.prod(numbers.get(dim, 0) for dim in shape) for shape in shapes]


def _too_large(model: Model, feeds: Feeds) -> str:
    """Why the model with these inputs is too large for float64, "" if it is not."""
    count = parameters(model)
    if count > MAX_TRUTH_PARAMETERS:
        return f"the model has {count / 1e9:.1f} billion parameters, too many to hold in float64"
    size = 8 * max(elements(model, model.types, symbol_sizes(model, feeds)), default=0)
    return f"one of its values takes {size / 1e9:.1f} GB in float64" if size > MAX_TRUTH_BYTES else ""
