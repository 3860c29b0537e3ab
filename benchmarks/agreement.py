"""How far `onnx-explorer profile` and a plain loop are apart: the same models, by turns, several times in one run.

python benchmarks/agreement.py MODEL [MODEL ...] [--sizes 256 938] [--rounds 5] [--runs 30] [--json FILE]

A round is the plain loop (`plain_loop.py`, a process of its own) over each model alone, then one profile in which all
models take turns in the worker: what is compared holds the overhead of the worker and of taking turns. The halves of a
round are measured right after each other, so each round has a ratio of its own, and the median of these keeps most of
the machine's drift out; how far the plain loop's own rounds are apart says what the machine itself is good for. The
exit status is 1 if any model is further apart than `--limit` percent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from explorer.model import Model, load
from explorer.profile import Subject, profile
from explorer.runtime import Worker

PLAIN_LOOP = Path(__file__).with_name("plain_loop.py")


@dataclass(frozen=True)
class Agreement:
    """Medians, in milliseconds, of one model at one size: one of each for each round."""

    model: str
    size: int
    plain_ms: tuple[float, ...]
    profile_ms: tuple[float, ...]

    @property
    def apart(self) -> float:
        """By what share the profile is above the plain loop: the median of the rounds."""
        return median(ours / plain for ours, plain in zip(self.profile_ms, self.plain_ms, strict=True)) - 1

    @property
    def spread(self) -> float:
        """By what share the plain loop's own rounds differ."""
        return max(self.plain_ms) / min(self.plain_ms) - 1

    def __str__(self) -> str:
        return (
            f"{self.model}  {self.size:>6}  plain {median(self.plain_ms):8.3f} ms  profile "
            f"{median(self.profile_ms):8.3f} ms  {self.apart:+6.1%}  (plain rounds within {self.spread:.1%})"
        )


def plain_ms(path: str, size: int) -> float:
    """What the plain loop prints for one model."""
    command = [sys.executable, str(PLAIN_LOOP), str(size), path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1].split()[0])


def profiled_ms(worker: Worker, models: Mapping[str, Model], size: int, runs: int) -> dict[str, float]:
    """The median of each model in one profile of all."""
    subjects = [Subject(name, model) for name, model in models.items()]
    feeds = plain_feeds(next(iter(models.values())), size)
    (point,) = profile(worker, subjects, [feeds], runs=runs, trace=False).points
    for item in point.measurements:
        if item.latency is None:
            raise SystemExit(f"{item.variant}: {item.refusal}")
    return {item.variant: item.latency.median_ms for item in point.measurements if item.latency}


def plain_feeds(model: Model, size: int) -> dict[str, np.ndarray]:
    """The plain loop's inputs: standard normal, every dynamic dimension of this size."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.ir.graph.inputs:
        dims, dtype = model.shape(value), model.dtype(value)
        assert dims is not None
        assert dtype is not None
        shape = [dim if isinstance(dim, int) else size for dim in dims]
        feeds[value.name or ""] = rng.standard_normal(shape).astype(dtype.numpy())
    return feeds


def compare(paths: Sequence[str], sizes: Sequence[int], rounds: int, runs: int) -> list[Agreement]:
    """All models at all sizes."""
    models = {path: load(path) for path in paths}
    found = []
    with Worker() as worker:
        for size in sizes:
            plain: list[dict[str, float]] = []
            profiled: list[dict[str, float]] = []
            for _ in range(rounds):
                plain.append({path: plain_ms(path, size) for path in paths})
                profiled.append(profiled_ms(worker, models, size, runs))
            for path in paths:
                plain_rounds, profile_rounds = (tuple(row[path] for row in side) for side in (plain, profiled))
                found.append(Agreement(path, size, plain_rounds, profile_rounds))
                print(found[-1], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 938], help="of every dynamic dimension")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each model in a profile")
    parser.add_argument("--limit", type=float, default=3.0, help="percent that the two may be apart")
    parser.add_argument("--json", type=Path, help="write the medians of all rounds there")
    args = parser.parse_args()
    found = compare(args.models, args.sizes, args.rounds, args.runs)
    if args.json:
        rows = [{**asdict(row), "apart": row.apart, "spread": row.spread} for row in found]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    furthest = max(abs(row.apart) for row in found)
    print(f"at most {furthest:.1%} apart; the limit is {args.limit:g} %")
    return int(100 * furthest > args.limit)


if __name__ == "__main__":
    sys.exit(main())
