"""A network through all its lengths: built, exported, fused, proved, timed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.networks import optimizer
from benchmarks.networks.catalogue import Network
from benchmarks.networks.contestants import (
    OPTIMIZER,
    WHOLE_S,
    attempts,
    best,
    distance,
    distances,
    is_right,
    ours,
    with_cuda_graphs,
)
from benchmarks.networks.export import DTYPES, build, computed, export, truth
from benchmarks.networks.results import EAGER, HEADER, ORIGINAL, Row, line, ort_rows, summarise, torch_rows
from benchmarks.networks.runs import TorchRuns
from explorer.errors import ExplorerError
from explorer.model import load
from explorer.profile import Profile, Subject, profile
from explorer.runtime.client import Worker

PROOF_LENGTH, EXPORT_LENGTH = 96, 48
LONG = 4096
"""Lengths above it are timed half as often: the original then takes half a second a run, and spreads by a percent."""


@dataclass(frozen=True)
class Suite:
    """A network, where it runs ("cuda" or "cpu"), and the options of the command. `write` saves what there is so far.

    folder  for the models; all of a network's are dropped with it
    """

    network: Network
    worker: Worker
    device: str
    folder: Path
    options: argparse.Namespace
    write: Callable[[], None]

    @property
    def sizes(self) -> Mapping[str, Any]:
        """What the network is built with: with --quick it is its own twin."""
        return self.network.small if self.options.quick else self.network.sizes

    def run(self, entry: Row) -> bool:
        """Measure at each length, into `entry`; False if PyTorch or the original is not close to the truth."""
        module = build(self.network.kind, self.sizes, self.device)
        entry["parameters"] = sum(weight.numel() for weight in module.parameters())
        path = self._export(self.sizes, "float16", "original")
        subjects, entry["targets"] = ours(path, self.options.targets, self.device)
        optimized, entry["optimizer"] = self._optimized(path)
        subjects = [Subject(ORIGINAL, load(path)), *optimized, *subjects]
        errors = entry["distance_from_float64"] = self._proof(module, subjects)
        subjects = [item for item in subjects if item.name == ORIGINAL or is_right(errors[item.name])]
        if self.device == "cuda":
            subjects += with_cuda_graphs(subjects, self.options.graph_target)
        entry["lengths"] = []
        for length in self.options.lengths or ((128,) if self.options.quick else self.network.lengths):
            entry["lengths"].append(self._length(module, subjects, length))
            self.write()
        return is_right(errors[ORIGINAL]) and is_right(errors[EAGER])

    def _length(self, module: nn.Module, subjects: Sequence[Subject], length: int) -> Row:
        """All contestants at one length: PyTorch, ONNX Runtime, PyTorch."""
        start = time.monotonic()
        inputs = module.inputs(length, np.random.default_rng(0))
        runs = max(2, self.options.runs // 2 if length > LONG else self.options.runs)
        row: Row = {"length": length, "shapes": {name: array.shape for name, array in inputs.items()}, "runs": runs}
        found: Profile | None = None
        torch_runs = TorchRuns(module, inputs, self.options.compile)
        torch_runs.time(runs // 2)
        try:
            found = profile(
                self.worker, subjects, [inputs], provider=self.device, runs=runs, trace=not self.options.no_trace
            )
            (point,) = found.points
            row |= {"warmup": point.warmup, "steady": point.steady, "notes": found.notes}
            row["gpu"] = [(state.sm_clock_mhz, state.power_w) for state in point.gpu]
        except ExplorerError as error:
            row["refusal"] = str(error)
        torch_runs.time(runs - runs // 2)
        rows = [*(ort_rows(found) if found else ()), *torch_rows(torch_runs)]
        torch_runs.close()
        summarise(rows)
        row["seconds"] = round(time.monotonic() - start, 1)
        print(f"S = {length}  {row['shapes']}  in {row['seconds']:.0f} s  {row.get('refusal', '')}\n{HEADER}")
        print("\n".join(map(line, rows)), flush=True)
        return row | {"contestants": rows}

    def _proof(self, module: nn.Module, subjects: Sequence[Subject]) -> dict[str, float | str]:
        inputs = module.inputs(PROOF_LENGTH, np.random.default_rng(0))
        exact = truth(module, inputs)
        models = {item.name: item.model for item in subjects}
        errors = distances(self.worker, models, inputs, exact, self.device)
        errors[EAGER] = distance(computed(module, inputs), exact)
        print(f"Distance from float64 at S = {PROOF_LENGTH}, relative to the largest value:")
        for name, error in errors.items():
            shown = f"{error:.1e}" if isinstance(error, float) else error
            print(f"{name:28}{shown:>10}{'' if is_right(error) else '  WRONG'}", flush=True)
        return errors

    def _optimized(self, original: Path) -> tuple[list[Subject], Row]:
        """The best that ORT's python optimizer makes of the network, if anything, and what was tried on the twin."""
        twin = build(self.network.kind, self.network.small, self.device)
        inputs = twin.inputs(PROOF_LENGTH, np.random.default_rng(0))
        sources = {dtype: self._export(self.network.small, dtype, f"twin_{dtype}") for dtype in DTYPES}
        tried = attempts(self.worker, self.network, sources, inputs, truth(twin, inputs), self.device)
        recipe = best(self.network, tried)
        if recipe is None:
            ran = [row for row in tried if "error" not in row]
            why = "" if ran else f", it fails: {tried[0]['error'] if tried else 'no recipe'}"
            print(f"{OPTIMIZER} makes nothing that is right{why}", flush=True)
            return [], {"tried": tried, "best": ""}
        whole = original if recipe.given == "float16" else self._export(self.sizes, recipe.given, "whole_float32")
        out = self.folder / "optimized.onnx"
        result = optimizer.attempt(recipe, whole, out, self.sizes, gpu=self.device == "cuda", timeout_s=WHOLE_S)
        print(f"{OPTIMIZER} ({recipe}): {result.get('error') or result['fused']}", flush=True)
        subjects = [] if "error" in result else [Subject(OPTIMIZER, load(out))]
        return subjects, {"tried": tried, "best": str(recipe)} | result

    def _export(self, sizes: Mapping[str, Any], dtype: str, name: str) -> Path:
        module = build(self.network.kind, sizes, self.device, dtype)
        path = self.folder / f"{name}.onnx"
        export(module, module.inputs(EXPORT_LENGTH, np.random.default_rng(0)), path)
        return path
