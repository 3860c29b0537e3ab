"""Sizes at which a model runs: graphs have tables of positions, and sizes that were written into them on export."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from explorer.errors import ExplorerError, InputError, ModelError
from explorer.model import Model
from explorer.model.cut import cut
from explorer.runtime import Worker
from explorer.verify.inputs import DEFAULT_BATCH, DEFAULT_LENGTH, Feeds, Shapes, fed, seeded_inputs
from explorer.verify.runs import Runner, run_part

_EVERY_LENGTH_FROM = 32
# What computes positions has small constants; what reads larger ones is the network itself.
_MAX_CONSTANT = 1 << 16
_MAX_TABLES = 64


def fitting_inputs(
    worker: Worker,
    model: Model,
    shapes: Shapes | None = None,
    seed: int = 0,
    length: int = DEFAULT_LENGTH,
    *,
    provider: str = "auto",
    cancel: threading.Event | None = None,
    timeout_s: float | None = None,
) -> Feeds:
    """Seeded inputs at the largest sizes up to `length` at which the model runs.

    Raises InputError or SessionError if there are none, WorkerTimeout if finding them takes longer than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        runner = Runner(worker, Path(folder), provider=provider, cancel=cancel, timeout_s=timeout_s)
        sizes = fitting_sizes(runner, model, shapes, seed, length)
    return seeded_inputs(model, shapes, seed, *sizes)


def fitting_sizes(
    runner: Runner, model: Model, shapes: Shapes | None, seed: int, length: int = DEFAULT_LENGTH
) -> tuple[int, int]:
    """The largest length up to `length`, and the batch with it, at which the model runs; raises what the first try does
    if there is none."""
    tries: dict[tuple[tuple[int, ...], ...], tuple[tuple[int, int], Feeds]] = {}
    first: ExplorerError | None = None
    for sizes in _sizes(length):
        try:
            feeds = seeded_inputs(model, shapes, seed, *sizes)
            tries.setdefault(tuple(array.shape for array in feeds.values()), (sizes, feeds))
        except InputError as error:
            first = first or error
    candidates = list(tries.values())
    outside = outside_tables(runner, model, [feeds for _, feeds in candidates])
    first = first or next((error for error in outside if error is not None), None)
    inside = [candidate for candidate, error in zip(candidates, outside, strict=True) if error is None]
    outcomes = runner.run(model, [feeds for _, feeds in inside], "the original at fitting sizes", until_one_runs=True)
    for (sizes, _), outcome in zip(inside, outcomes, strict=False):
        if not isinstance(outcome, ExplorerError):
            return sizes
        first = first or outcome
    assert first is not None
    raise first


def _sizes(length: int) -> Iterator[tuple[int, int]]:
    """Lengths and batches in the order in which they are tried: by halves, then one by one.

    Lastly without a batch, and with one as large as the length: the first axis may be that of the positions.
    """
    lengths = [length]
    while lengths[-1] > _EVERY_LENGTH_FROM:
        lengths.append(lengths[-1] // 2)
    lengths += range(lengths[-1] - 1, 0, -1)
    for batch in (DEFAULT_BATCH, 1, None):
        for size in lengths:
            yield size, batch or size


def outside_tables(runner: Runner, model: Model, feeds: Sequence[Feeds]) -> list[InputError | None]:
    """For each of `feeds` why the model must not be run on it: it would read a row behind the end of a table.

    A CPU refuses to do that; a GPU reads whatever is there. Only the indices are computed for this.
    """
    outcomes: list[InputError | None] = [None] * len(feeds)
    inputs = [value.name or "" for value in fed(model)]
    tables = list(_tables(model, inputs))[:_MAX_TABLES]
    if not tables:
        return outcomes
    computed = list(dict.fromkeys(index for index, _, _ in tables if index not in inputs))
    for place, found in enumerate(
        run_part(runner, model, inputs, computed, feeds, "the indices of tables", provider="cpu")
    ):
        if isinstance(found, ExplorerError):  # the run of the whole model will say what is wrong
            continue
        for index, table, rows in tables:
            array = feeds[place][index] if index in inputs else found[index]
            if array.size and not -rows <= array.min() <= array.max() < rows:
                outcomes[place] = InputError(
                    f"expected indices below {rows}, the rows of the table {table!r}, found {array.max()}: "
                    "give shorter shapes (--shape) or inputs of your own (--inputs)"
                )
    return outcomes


def _tables(model: Model, inputs: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Name of the indices, name of the table and its rows, for each Gather from a weight at computed places."""
    for node in model.ir.graph:
        if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        table, index = node.inputs[0], node.inputs[1]
        axis = node.attributes.get_int("axis", 0)
        shape = model.shape(table) or ()
        rows = shape[axis] if -len(shape) <= axis < len(shape) else None
        if (
            isinstance(rows, int)
            and _is_weight(table)
            and not index.is_initializer()
            and _is_cheap(model, inputs, index)
        ):
            yield index.name or "", table.name or "", rows


def _is_weight(value: ir.Value) -> bool:
    """True for an initializer, or one in another type or layout."""
    node = value.producer()
    return (
        value.is_initializer() if node is None else all(item is None or item.is_initializer() for item in node.inputs)
    )


def _is_cheap(model: Model, inputs: Sequence[str], index: ir.Value) -> bool:
    """True if the indices are computed from inputs without the network's weights."""
    if index.name in inputs:
        return True
    try:
        part = cut(model, inputs, [index.name or ""])
    except ModelError:
        return False
    stored = (value.const_value for value in part.ir.graph.initializers.values())
    return bool(part.ir.graph.inputs) and all(item is None or item.size <= _MAX_CONSTANT for item in stored)
