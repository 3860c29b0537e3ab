"""What is timed of torch: a network eager and compiled, with and without a CUDA graph."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.networks.export import tensors
from benchmarks.networks.layers import Inputs
from benchmarks.networks.results import COMPILED, EAGER, GRAPH
from benchmarks.scan_corpus import without_paths
from explorer.profile.measure import CUDA_WARMUP_S, SETTLE_RUNS, take_turns, warm_up
from explorer.profile.statistics import quantile

RECORDED_AFTER = 3
"""Runs on a stream of its own before a CUDA graph is recorded: libraries allocate what they need in them."""

Run = Callable[[], Tensor]


class TorchRuns:
    """A network's variants at one length, timed in several blocks: by `onnx-explorer profile`'s own protocol.

    times_ms    by variant, of all blocks
    blocks_ms   the median of each block, by variant: how much the machine drifted meanwhile
    first_ms    the first run; of a compiled variant this is compiling it
    difference  largest distance from eager's output, relative to its largest value
    refusals    why a variant does not run
    """

    def __init__(self, network: nn.Module, inputs: Inputs, modes: Sequence[str]) -> None:
        """`modes` are those of torch.compile; "default" is called `torch.compile` alone."""
        self.times_ms: dict[str, list[float]] = {}
        self.blocks_ms: dict[str, list[float]] = {}
        self.first_ms: dict[str, float] = {}
        self.difference: dict[str, float] = {}
        self.refusals: dict[str, str] = {}
        self._given = tensors(network, inputs)
        self._cuda = self._given[0].is_cuda
        self._runs: dict[str, Run] = {}
        self._add(EAGER, lambda: network(*self._given))
        for mode in modes:
            compiled = torch.compile(network, mode=mode, fullgraph=True, dynamic=False)
            name = COMPILED if mode == "default" else f"{COMPILED} {mode}"
            self._add(name, lambda compiled=compiled: compiled(*self._given))
        if self._cuda:
            for name in list(self._runs):
                self._record(name)

    def time(self, rounds: int) -> None:
        """One block: warm up until steady, then time each variant `rounds` times, in turns."""
        runners = [partial(self._finished, run) for run in self._runs.values()]
        with torch.inference_mode():
            warm_up(runners, minimum_s=CUDA_WARMUP_S if self._cuda else 0.0)
            found = take_turns(runners, rounds, settle=SETTLE_RUNS if len(runners) > 1 else 0)
        for name, own in zip(self._runs, found, strict=True):
            self.times_ms.setdefault(name, []).extend(own)
            self.blocks_ms.setdefault(name, []).append(round(quantile(own, 0.5), 4))
        self._release()

    def close(self) -> None:
        """Give back the GPU's memory."""
        self._runs.clear()
        torch.compiler.reset()
        self._release()

    def _add(self, name: str, run: Run) -> None:
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                output = self._finished(run)
                self.first_ms[name] = (time.perf_counter() - start) * 1e3
                eager = self._runs.get(EAGER, run)()
                distance = (output.float() - eager.float()).abs().max() / eager.float().abs().max()
        except Exception as error:  # noqa: BLE001 - however a contestant fails, that is its result
            self.refusals[name] = _words(error)
            return
        self.difference[name] = float(distance)
        self._runs[name] = run

    def _record(self, name: str) -> None:
        run, graph, kept = self._runs[name], torch.cuda.CUDAGraph(), []
        try:
            with torch.inference_mode():
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(RECORDED_AFTER):
                        run()
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(graph):
                    kept.append(run())
        except Exception as error:  # noqa: BLE001
            self.refusals[name + GRAPH] = _words(error)
            return

        def replay() -> Tensor:
            graph.replay()
            return kept[0]

        self._add(name + GRAPH, replay)

    def _finished(self, run: Run) -> Tensor:
        output = run()
        if self._cuda:
            torch.cuda.synchronize()
        return output

    def _release(self) -> None:
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()


def _words(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return without_paths(f"{type(error).__name__}: {first}")[:300]
