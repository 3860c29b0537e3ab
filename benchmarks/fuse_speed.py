"""How long fusing takes against the size of the graph: all blocks of transformers of 1k to 100k nodes, after loading.

    python benchmarks/fuse_speed.py [--sizes 1000 10000 …] [--repeat 5] [--json OUT.json]

The graphs are those of scan_speed.py. `fuse_all_s` is one call of `Workspace.fuse_all`, the checker and strict shape
inference included; `choose_s` and `apply_s` are its parts, and of the latter `copy_s` copies the graph and `check_s`
checks the result. `raise_s` is what raising the model to opset 23 costs once, for the target that needs it. Each is the
fastest of the repeats. `cpu_s` is the process's own time for `fuse_all`, which other work on the machine changes less;
`us_per_node` is made of it, and `ratio` relates that to the smallest graph: 1.0 is linear.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir
from scan_speed import SIZES, transformer

from explorer.attention import recognise
from explorer.fusion import Plan, apply, choose
from explorer.fusion.check import new_flaw
from explorer.fusion.opset import raised
from explorer.model import load
from explorer.workspace import Workspace

NEWER_OPSET = 23


def fastest(repeat: int, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and seconds of the processor that `work` takes, each the least of `repeat` runs."""
    times = []
    for _ in range(repeat):
        gc.collect()
        start, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def measure(size: int, repeat: int) -> dict[str, float]:
    """One row: a transformer with about `size` nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(transformer(size).SerializeToString())
        model = load(path)
        blocks = recognise(model)
        plan = Plan(model.digest)
        for block in blocks:
            plan = plan.with_fusion(block, choose(model, block, "auto").target)
        fused = apply(model, blocks, plan)
        parts: dict[str, Callable[[], object]] = {
            "choose_s": lambda: [choose(model, block, "auto") for block in blocks],
            "apply_s": lambda: apply(model, blocks, plan),
            "copy_s": model.ir.clone,
            "check_s": lambda: new_flaw(fused.ir, model.ir),
            "raise_s": lambda: raised(load(path), NEWER_OPSET),
        }
        row = {name: fastest(repeat, work)[0] for name, work in parts.items()}
        row["raise_s"] -= fastest(repeat, lambda: load(path))[0]
        workspaces = [Workspace(model) for _ in range(repeat)]
        wall, cpu = fastest(repeat, lambda: workspaces.pop().fuse_all())
        row |= {"fuse_all_s": wall, "cpu_s": cpu}
    nodes = len(model.nodes)
    seconds = {name: round(value, 3) for name, value in row.items()}
    return {"nodes": nodes, "blocks": len(blocks), **seconds, "us_per_node": round(cpu / nodes * 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    rows: list[dict[str, float]] = []
    for size in args.sizes:
        row = measure(size, args.repeat)
        row["ratio"] = round(row["us_per_node"] / rows[0]["us_per_node"], 2) if rows else 1.0
        if not rows:
            print("".join(f"{column:>12}" for column in row))
        rows.append(row)
        print("".join(f"{value:>12}" for value in row.values()), flush=True)
    if args.json:
        machine = {
            "python": platform.python_version(),
            "onnx": onnx.__version__,
            "onnx_ir": onnx_ir.__version__,
            "machine": platform.machine(),
        }
        args.json.write_text(json.dumps({"machine": machine, "repeat": args.repeat, "curve": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
