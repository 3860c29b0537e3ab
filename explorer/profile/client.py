"""Profiling as the rest of the explorer sees it: models and inputs in, a Profile out."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from explorer.model import Model
from explorer.model.save import data_folder, serialize
from explorer.profile.values import Profile
from explorer.runtime import arrays
from explorer.runtime.arrays import Array
from explorer.runtime.client import Worker


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """A model to measure: what to call it, its .onnx file, and where its external data lies if not beside it."""

    name: str
    model: str
    data_folder: str | None = None


def profile(
    worker: Worker,
    variants: Sequence[VariantSpec],
    feeds: Mapping[str, Array],
    *,
    provider: str = "auto",
    runs: int = 20,
    seed: int = 0,
    on_progress: Callable[[float, str], None] | None = None,
    cancel: threading.Event | None = None,
    timeout_s: float | None = None,
) -> Profile:
    """Time the variants against each other on the same `feeds`, and see what ONNX Runtime makes of each.

    `provider` is "auto" (CUDA where a session really runs on it, else the CPU), "cuda" or "cpu". `runs` is the number
    of timed runs of each variant; `seed` is that of the interval of their ratio. The ratio is the first variant's time
    over the last's, so give the original first. `on_progress`, `cancel` and `timeout_s` are those of `Worker.call`.

    Raises InputError when the feeds do not fit, SessionError when a model does not load or run or the provider is not
    there, WorkerDied, WorkerTimeout and Cancelled.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        feeds_npz = Path(folder, "feeds.npz")
        arrays.save(feeds_npz, feeds)
        args = {
            "variants": [asdict(variant) for variant in variants],
            "feeds_npz": str(feeds_npz),
            "provider": provider,
            "runs": runs,
            "seed": seed,
        }
        answer = worker.call(
            "explorer.profile.measure:measure", args, on_progress=on_progress, cancel=cancel, timeout_s=timeout_s
        )
    return Profile.from_json(answer)


def profile_models(
    worker: Worker,
    variants: Sequence[tuple[str, Model]],
    feeds: Mapping[str, Array],
    *,
    provider: str = "auto",
    runs: int = 20,
    seed: int = 0,
    on_progress: Callable[[float, str], None] | None = None,
    cancel: threading.Event | None = None,
) -> Profile:
    """The same for models that need not be files: they are written to a temporary folder and profiled there."""
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        specs = []
        for name, model in variants:
            file = Path(folder, f"{name}.onnx")
            file.write_bytes(serialize(model.ir))
            data = data_folder(model.ir)
            specs.append(VariantSpec(name, str(file), None if data is None else str(data)))
        return profile(
            worker, specs, feeds, provider=provider, runs=runs, seed=seed, on_progress=on_progress, cancel=cancel
        )
