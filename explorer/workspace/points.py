"""The inputs that a profile runs on: one set for each set of shapes."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from explorer.model import Model
from explorer.runtime import Deadline, Worker
from explorer.verify import fitting_inputs, input_shapes, seeded_inputs
from explorer.verify.fit import outside_tables
from explorer.verify.inputs import Feeds
from explorer.verify.runs import Runner

PROFILE_LENGTH = 256
"""Size of a dynamic dimension (other than the batch) in a profile, unless shapes are given."""

Shapes = Mapping[str, tuple[int, ...]]


def points(
    worker: Worker,
    model: Model,
    shapes: Iterable[Shapes],
    seed: int = 0,
    *,
    provider: str = "auto",
    cancel: threading.Event | None = None,
    timeout_s: float | None = None,
) -> tuple[Feeds, ...]:
    """Seeded inputs for each of `shapes`, which fix some inputs or all.

    Dynamic dimensions left open are 2 for a batch, 256 otherwise or as many as the model takes. Where none is left open
    the model is not tried first: a size that it does not take is a result of the profile. Raises InputError, or
    SessionError if no size that is left open fits; WorkerTimeout when all together take longer than `timeout_s`.
    """
    deadline = Deadline(timeout_s)
    return tuple(_point(worker, model, dict(given), seed, provider, cancel, deadline.left_s()) for given in shapes)


def _point(
    worker: Worker,
    model: Model,
    shapes: Shapes,
    seed: int,
    provider: str,
    cancel: threading.Event | None,
    timeout_s: float | None,
) -> Feeds:
    if input_shapes(model, shapes, PROFILE_LENGTH, 2) != input_shapes(model, shapes, 2 * PROFILE_LENGTH, 3):
        return fitting_inputs(
            worker, model, shapes, seed, PROFILE_LENGTH, provider=provider, cancel=cancel, timeout_s=timeout_s
        )
    feeds = seeded_inputs(model, shapes, seed)
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        runner = Runner(worker, Path(folder), provider=provider, cancel=cancel, timeout_s=timeout_s)
        (outside,) = outside_tables(runner, model, [feeds])
    if outside is not None:
        raise outside
    return feeds
