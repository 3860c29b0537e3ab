"""Run the original and the fused model on the same inputs and judge both by float64 truth."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, MaskTerm, recognise
from explorer.attention.block import Layout
from explorer.errors import InputError, ModelError
from explorer.model import Model, dtype_name
from explorer.model.save import data_folder, serialize
from explorer.runtime import Worker, arrays
from explorer.verify.inputs import Feeds, Shapes, load_inputs, seeded_inputs
from explorer.verify.oracle import arrange, attention, measure
from explorer.verify.verdict import Comparison, Errors, Verdict, allowed_error

# Above this many parameters the float64 copy for the end-to-end truth would not fit an ordinary machine.
MAX_TRUTH_PARAMETERS = 1_000_000_000
# An original further than this (relative) from its own float64 truth is no yardstick.
DOUBTFUL = 0.05
# Q, K, V, mask and output of this many blocks are fetched in one run.
_BLOCKS_A_RUN = 8

OnProgress = Callable[[float, str], None]


def verify(
    worker: Worker,
    original: Model,
    fused: Model,
    blocks: Sequence[Block],
    feeds: Feeds,
    *,
    seed: int | None = None,
    provider: str = "auto",
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    timeout_s: float | None = None,
) -> Verdict:
    """Compare `fused` with `original`, whose `blocks` were fused, on `feeds`.

    Each block is judged on the Q, K, V and mask that it really received, in each model; the outputs are judged by the
    original computed in float64. Raises SessionError if a model does not run, WorkerError if the worker fails.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        run = _Run(worker, Path(folder), feeds, provider, on_progress, cancel, timeout_s, 4 + len(blocks) / 4)
        outputs = [value.name or "" for value in original.ir.graph.outputs]
        before = run.outputs(original, "the original")
        after = run.outputs(fused, "the fused model")
        truth, how = run.truth(original, before)
        block_verdicts: list[Comparison] = []
        fetchable = [block for block in blocks if _in_main_graph(original, block)]
        for at in range(0, len(fetchable), _BLOCKS_A_RUN):
            block_verdicts += _compare_blocks(run, original, fused, fetchable[at : at + _BLOCKS_A_RUN])
        output_verdicts = tuple(
            _compare(name, "", before[name], after[name], truth[name], truth[name], _dtype(original, name))
            for name in outputs
            if np.issubdtype(before[name].dtype, np.floating)
        )
    return Verdict(
        blocks=tuple(block_verdicts),
        outputs=output_verdicts,
        truth=how,
        provider=run.device,
        shapes=tuple((name, array.shape) for name, array in feeds.items()),
        seed=seed,
        notes=tuple(_notes(run.device, blocks, len(blocks) - len(fetchable), output_verdicts)),
    )


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
    """Compare two files, whoever made the second of the first.

    The blocks compared are those of the original whose Softmax is gone and whose inputs and output the other still has
    by name. InputError if the two do not take the same inputs or give the same outputs.
    """
    for what in ("inputs", "outputs"):
        before, after = ([value.name or "" for value in getattr(model.ir.graph, what)] for model in (original, fused))
        if before != after:
            raise InputError(
                f"expected two models with the same {what}, found {', '.join(before)} and {', '.join(after)}: "
                "compare a model with one that was made from it"
            )
    blocks = [block for block in recognise(original) if block.output is not None and not block.fused_as]
    gone = [block for block in blocks if not fused.has_value(block.anchor_output)]
    comparable = [block for block in gone if all(fused.has_value(name) for name in _values_of(block))]
    feeds = seeded_inputs(original, shapes, seed) if inputs is None else load_inputs(original, inputs)
    return verify(
        worker,
        original,
        fused,
        comparable,
        feeds,
        seed=seed if inputs is None else None,
        provider=provider,
        on_progress=on_progress,
    )


@dataclass
class _Run:
    """Runs models in the worker, through files in one temporary folder."""

    worker: Worker
    folder: Path
    feeds: Feeds
    provider: str
    on_progress: OnProgress | None
    cancel: threading.Event | None
    timeout_s: float | None
    stages: float
    device: str = ""
    done: int = 0

    def __post_init__(self) -> None:
        arrays.save(self.folder / "feeds.npz", self.feeds)

    def outputs(self, model: Model, what: str, extra: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Values of the graph outputs of `model`, or of the values named in `extra` instead."""
        self._progress(f"running {what}")
        path, out = self.folder / model.path.name, self.folder / "out.npz"
        path.write_bytes(serialize(_with_outputs(model, extra) if extra else model.ir))
        facts = self._call(
            "explorer.runtime.sessions:run",
            {"model": str(path), "out_npz": str(out), "provider": self.provider, "outputs": list(extra) or None},
            model,
        )
        self.device = str(facts["provider"])
        return arrays.load(out)

    def truth(self, model: Model, fallback: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], str]:
        """The outputs in float64 and how they came about; without a reference for it, the original's own outputs."""
        self._progress("computing the truth in float64")
        parameters = sum(
            value.const_value.size for value in model.ir.graph.initializers.values() if value.const_value is not None
        )
        if parameters > MAX_TRUTH_PARAMETERS:
            reason = f"the model has {parameters / 1e9:.1f} billion parameters, too many to hold in float64"
        else:
            path, out = self.folder / model.path.name, self.folder / "truth.npz"
            path.write_bytes(serialize(model.ir))
            try:
                self._call("explorer.verify.truth:float64_outputs", {"model": str(path), "out_npz": str(out)}, model)
            except ModelError as error:
                reason = str(error)
            else:
                return arrays.load(out), "the original in float64, by ONNX's reference evaluator"
        wide = {name: np.asarray(array) for name, array in fallback.items()}
        return wide, f"the original's own outputs, since there is no float64 truth for this model: {reason}"

    def _call(self, function: str, args: dict[str, Any], model: Model) -> Any:
        args |= {
            "feeds_npz": str(self.folder / "feeds.npz"),
            "data_folder": None if (folder := data_folder(model.ir)) is None else str(folder),
        }
        return self.worker.call(function, args, cancel=self.cancel, timeout_s=self.timeout_s)

    def _progress(self, text: str) -> None:
        if self.on_progress is not None:
            self.on_progress(min(self.done / self.stages, 1.0), text)
        self.done += 1


def _with_outputs(model: Model, names: Iterable[str]) -> ir.Model:
    """A copy of the model whose graph outputs are the values called `names`."""
    clone = model.ir.clone()
    graph = clone.graph
    by_name = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    for name in names:
        value = by_name[name]
        dtype = model.dtype(model.value(name))
        if value.type is None and dtype is not None:
            value.type = ir.TensorType(dtype)
        graph.outputs.append(value)
    return clone


def _compare_blocks(run: _Run, original: Model, fused: Model, blocks: Sequence[Block]) -> list[Comparison]:
    names = list(dict.fromkeys(name for block in blocks for name in _values_of(block)))
    what = f"blocks {blocks[0].label} to {blocks[-1].label}" if len(blocks) > 1 else f"block {blocks[0].label}"
    results = []
    for model, which in ((original, "the original"), (fused, "the fused model")):
        computed = [name for name in names if model.value(name).producer() is not None]
        values = run.outputs(model, f"{what} of {which}", computed)
        values |= {name: _given(model, name, run.feeds) for name in names if name not in values}
        results.append(values)
    comparisons = []
    before, after = results
    for block in blocks:
        assert block.output is not None
        name = block.output.value
        comparisons.append(
            _compare(
                name,
                block.id,
                before[name],
                after[name],
                _block_truth(block, before, before[name].shape),
                _block_truth(block, after, after[name].shape),
                _dtype(original, name),
            )
        )
    return comparisons


def _values_of(block: Block) -> list[str]:
    """Names of what a block reads and of what it gives: values that the original and the fused model both have."""
    assert block.query is not None
    assert block.key is not None
    assert block.value is not None
    assert block.output is not None
    operands = [operand.source.value for operand in (block.query, block.key, block.value)]
    masks = [term.value for term in block.mask.terms if term.kind != "causal"]
    if block.factor is not None:
        masks.append(block.factor.value)
    return [*operands, *masks, block.output.value]


def _given(model: Model, name: str, feeds: Feeds) -> np.ndarray:
    """A graph input or an initializer."""
    if name in feeds:
        return feeds[name]
    tensor = model.value(name).const_value
    if tensor is None:
        raise ModelError(f"expected {name!r} to be an input or an initializer, found neither: scan the model again")
    return np.asarray(tensor.numpy())


def _block_truth(block: Block, values: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The block's output in float64 from the inputs it received, in the shape that the model gives it."""
    assert block.query is not None
    assert block.key is not None
    assert block.value is not None
    assert block.output is not None
    assert block.scale is not None
    operands = (
        (block.query.source, (block.batch, block.heads, block.rows, "H")),
        (block.key.source, (block.batch, block.heads, block.keys, "H")),
        (block.value.source, (block.batch, block.heads, block.keys, "V")),
    )
    sizes = measure(block, [(view.layout, values[view.value].shape) for view, _ in operands])
    query, key, value = (
        arrange(values[view.value].astype(np.float64), view.layout, wanted, sizes) for view, wanted in operands
    )
    mask = (block.batch, block.heads, block.rows, block.keys)
    terms = [_term(block, term, values, mask, sizes) for term in block.mask.terms]
    factor = None
    if block.factor is not None:
        own = block.term_layout(block.factor)
        factor = arrange(values[block.factor.value].astype(np.float64), own, mask, sizes)
    result = attention(query, key, value, block.scale, terms, block.softcap, factor)
    if block.nan_guard:
        result = np.nan_to_num(result, nan=0.0)
    result = arrange(result, (block.batch, block.heads, block.rows, "V"), block.output.layout, sizes)
    # A model whose block has another number of elements is compared as it is, and fails by its shape
    return result.reshape(shape) if result.size == math.prod(shape) else result


def _term(
    block: Block, term: MaskTerm, values: Mapping[str, np.ndarray], wanted: Layout, sizes: Mapping[str, int]
) -> tuple[MaskTerm, np.ndarray]:
    """A term with its array. A causal one is made anew: the fused model may have no such tensor."""
    if term.kind != "causal":
        return term, arrange(values[term.value], block.term_layout(term), wanted, sizes)
    rows, keys = (math.prod(sizes[letter] for letter in letters) for letters in (block.rows, block.keys))
    triangle = np.tri(rows, keys, dtype=bool)
    plain = replace(term, dtype="bool", keep_when=True)
    return plain, np.broadcast_to(triangle, [math.prod(sizes[x] for x in group) for group in wanted])


def _compare(
    name: str,
    block: str,
    original: np.ndarray,
    fused: np.ndarray,
    original_truth: np.ndarray,
    fused_truth: np.ndarray,
    dtype: str,
) -> Comparison:
    errors = _errors(original, original_truth)
    return Comparison(
        name=name,
        block=block,
        dtype=dtype,
        shape=original.shape,
        original=errors,
        fused=_errors(fused, fused_truth),
        allowed=allowed_error(errors, dtype),
    )


def _errors(array: np.ndarray, truth: np.ndarray) -> Errors:
    if array.shape != truth.shape:
        return Errors(float("inf"), float("inf"), array.size)
    finite = np.isfinite(truth)
    nonfinite = int(np.count_nonzero(~np.isfinite(array) & finite))
    usable = finite & np.isfinite(array)
    if not usable.any():
        return Errors(float("nan"), float("nan"), nonfinite)
    largest = float(np.abs(truth[usable]).max())
    distance = float(np.abs(array[usable].astype(np.float64) - truth[usable]).max())
    return Errors(distance, distance / largest if largest else distance, nonfinite)


def _dtype(model: Model, name: str) -> str:
    return dtype_name(model.dtype(model.value(name)))


def _in_main_graph(model: Model, block: Block) -> bool:
    """True if the block's values can be made outputs of the model: those inside a body cannot."""
    return model.node(block.anchor).graph is model.ir.graph


def _notes(device: str, blocks: Sequence[Block], hidden: int, outputs: Sequence[Comparison]) -> Iterable[str]:
    if hidden:
        yield (
            f"{hidden} fused block{'s lie' if hidden > 1 else ' lies'} inside the body of an If, Loop or Scan, whose "
            "values cannot be fetched: judged by the outputs of the model alone."
        )
    if device == "cpu" and any(block.dtype in ("float16", "bfloat16") for block in blocks):
        yield (
            "Run on the CPU, which computes 16-bit attention in float32: this proves that the fused graph means the "
            "same, not how a GPU's 16-bit kernels round. Verify on the GPU for that."
        )
    for output in outputs:
        if output.original.relative > DOUBTFUL:
            yield (
                f"The original's own output {output.name!r} is {output.original.relative:.0%} away from its float64 "
                "truth (a rounding decides something discrete in it): that output proves little, trust the blocks."
            )
