"""What is timed of ONNX Runtime: the models, and the proof that they compute the same."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.networks import optimizer
from benchmarks.networks.catalogue import Network
from benchmarks.networks.results import GRAPH, ORIGINAL, Row
from explorer.attention import recognise
from explorer.errors import ExplorerError
from explorer.fusion import Plan, Settings, apply, choose
from explorer.model import Model, load
from explorer.model.save import data_folder, serialize
from explorer.profile import Subject
from explorer.runtime import arrays
from explorer.runtime.client import Worker

OPTIMIZER = "ORT's optimizer"
MARGIN = 3e-2
"""Relative to the largest value: above what a deep float16 network is off by, below what a wrong one is."""
TWIN_S, WHOLE_S = 120.0, 180.0  # time limits of an attempt of the optimizer

Inputs = Mapping[str, np.ndarray]


def ours(path: Path, targets: Sequence[str], device: str) -> tuple[list[Subject], list[Row]]:
    """The model at `path` fused to each target; for each target how many blocks it takes, and why not the others.

    Targets that come to the same plan are one contestant, "mha = auto".
    """
    model = load(path)
    blocks = recognise(model)
    settings = Settings("cuda" if device == "cuda" else "cpu")
    names: dict[tuple[tuple[str, str], ...], list[str]] = {}
    plans: dict[tuple[tuple[str, str], ...], Plan] = {}
    facts: list[Row] = []
    for target in targets:
        plan, obstacles = Plan(model.digest), Counter[str]()
        for block in blocks:
            choice = choose(model, block, target, settings)
            if choice.target:
                plan = plan.with_fusion(block, choice.target)
            else:
                obstacles[str(choice.obstacles[0])] += 1
        facts.append({"target": target, "blocks": len(blocks), "fused": len(plan.fusions), "why_not": dict(obstacles)})
        key = tuple((fusion.block, fusion.target) for fusion in plan.fusions)
        if key:
            plans[key] = plan
            names.setdefault(key, []).append(target)
    subjects = [Subject(" = ".join(names[key]), apply(model, blocks, plan), plan.digest) for key, plan in plans.items()]
    return subjects, facts


def with_cuda_graphs(subjects: Sequence[Subject], target: str) -> list[Subject]:
    """Copies of the original and of what `target` came to, to be replayed as CUDA graphs."""
    chosen = [item for item in subjects if item.name == ORIGINAL or target in item.name.split(" = ")]
    return [replace(item, name=item.name + GRAPH, cuda_graph=True) for item in chosen]


# --- proof ----------------------------------------------------------------------------------------------------------


def distance(found: np.ndarray, truth: np.ndarray) -> float | str:
    """The largest error, relative to the largest true value; words if a value is not finite."""
    if not np.isfinite(found).all():
        return "not finite"
    return float(np.abs(found.astype(np.float64) - truth).max() / np.abs(truth).max())


def output_of(worker: Worker, model: Model, inputs: Inputs, device: str) -> np.ndarray:
    """The model's first output, computed in the worker; an ExplorerError if it does not run."""
    with tempfile.TemporaryDirectory() as name:
        file, given, out = (Path(name, part) for part in ("model.onnx", "in.npz", "out.npz"))
        file.write_bytes(serialize(model.ir))
        arrays.save(given, inputs)
        data = data_folder(model.ir)
        args = {"model": str(file), "feeds_npz": [str(given)], "out_npz": [str(out)], "provider": device}
        args |= {"data_folder": None if data is None else str(data)}
        (refusal,) = worker.call("explorer.runtime.sessions:run", args)["refusals"]
        if refusal is not None:
            raise ExplorerError(refusal[1])
        return next(iter(arrays.load(out).values()))


def distances(
    worker: Worker, models: Mapping[str, Model], inputs: Inputs, truth: np.ndarray, device: str
) -> dict[str, float | str]:
    """How far each model's first output is from the truth; of one that does not run, the words."""
    found: dict[str, float | str] = {}
    for name, model in models.items():
        try:
            found[name] = distance(output_of(worker, model, inputs, device), truth)
        except ExplorerError as error:
            found[name] = str(error)
    return found


def is_right(found: float | str | None) -> bool:
    """Whether what `distances` found is a number within the margin."""
    return isinstance(found, float) and found <= MARGIN


# --- ORT's python optimizer -----------------------------------------------------------------------------------------


def attempts(
    worker: Worker, network: Network, sources: Mapping[str, Path], inputs: Inputs, truth: np.ndarray, device: str
) -> list[Row]:
    """What each recipe makes of the twin, whose file in each element type `sources` has; they run side by side."""
    tried = optimizer.recipes(network.model_types)
    folder = next(iter(sources.values())).parent
    files = [folder / f"attempt{index}.onnx" for index in range(len(tried))]

    def attempt(recipe: optimizer.Recipe, out: Path) -> Row:
        source = sources[recipe.given]
        return optimizer.attempt(recipe, source, out, network.small, gpu=device == "cuda", timeout_s=TWIN_S)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(attempt, tried, files))
    rows = []
    for recipe, result, file in zip(tried, results, files, strict=True):
        row: Row = {"recipe": str(recipe)} | result
        if "error" not in result:
            row |= {"distance": distances(worker, {"": load(file)}, inputs, truth, device)[""]}
        rows.append(row)
    return rows


def best(network: Network, rows: Sequence[Row]) -> optimizer.Recipe | None:
    """Of the recipes whose result is right the one that made most, of equals the first; None if none made anything."""
    tried = zip(optimizer.recipes(network.model_types), rows, strict=True)
    right = [(recipe, row["fused"]) for recipe, row in tried if is_right(row.get("distance")) and row["fused"]]
    return max(right, key=lambda item: optimizer.merit(item[1]))[0] if right else None
