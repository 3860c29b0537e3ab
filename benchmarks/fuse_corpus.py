"""Every fusable block of a folder of graphs, fused with each target that claims it, and verified.

    python benchmarks/fuse_corpus.py FOLDER [--provider cpu] [--only GLOB] [--targets mha …] [--json OUT.json]

FOLDER holds NAME.onnx and, where they exist, the inputs to verify on: NAME.npz and NAME.alt.npz, with one array for
each graph input by its name, or in_0, in_1, … in the order that an array `names` tells. Without any the inputs are
seeded, in the cases that `Workspace.verify` chooses.

A cell says how many blocks were fused of those the graph has, and the verdict: the worst error of a block after fusing,
relative to the largest true value, and before it, in the original. "no kernel": ONNX Runtime has none for this operator
and element type on this provider, so that nothing was run. "original fails": ONNX Runtime runs the original on none of
the inputs given; those on which it does not run are left out.
Exit status: 1 if a verification failed or a tool broke, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

import explorer as ex
from explorer.errors import ExplorerError, InputError
from explorer.fusion import OPERATORS, TARGETS
from explorer.model.save import serialize
from explorer.runtime import Worker, arrays
from explorer.verify import Verdict

NO_KERNEL = re.compile(r"Could not find an implementation|kernel for")
Row = dict[str, Any]


def inputs_of(model: Path, folder: Path) -> list[Path]:
    """The files with inputs beside a model, each array by the name of its graph input, written into `folder`."""
    found = []
    for file in (model.with_suffix(".npz"), model.with_suffix(".alt.npz")):
        if not file.exists():
            continue
        with np.load(file) as stored:
            if "names" in stored:
                named = {str(name): stored[f"in_{at}"] for at, name in enumerate(stored["names"])}
            else:
                named = dict(stored)
        found.append(folder / file.name)
        np.savez(found[-1], **named)
    return found


def worst(verdict: Verdict) -> tuple[float, float]:
    """The largest error of a block (of an output, if no block was compared): fused, and in the original there."""
    item = max(verdict.blocks or verdict.outputs, key=lambda one: one.fused.relative)
    return item.fused.relative, item.original.relative


def measure(path: Path, targets: Sequence[str], provider: str) -> Iterator[Row]:
    """A row for each target that claims a block of the graph at `path`."""
    with tempfile.TemporaryDirectory() as name, ex.open(path) as workspace:
        files = inputs_of(path, Path(name))
        original = Path(name, path.name)
        original.write_bytes(serialize(workspace.model.ir))  # as it was loaded: its nodes in execution order
        blocks = [block for block in workspace.blocks if not block.fused_as]
        for target in targets:
            row: Row = {"graph": path.stem, "target": target, "blocks": len(blocks)}
            start = time.perf_counter()
            try:
                fused = len(workspace.fuse_all(target).fused)
                row["fused"] = fused
                if not fused:
                    continue
                row["fuse_s"] = time.perf_counter() - start
                usable = [file for file in files if not refusal(original, file, provider)]
                if files and not usable:
                    raise InputError("the original runs on none of the inputs given")
                verdicts = [workspace.verify(inputs=file, provider=provider) for file in usable] or [
                    workspace.verify(provider=provider)
                ]
                errors = [worst(verdict) for verdict in verdicts]
                row |= {
                    "passed": all(verdict.passed for verdict in verdicts),
                    "error": max(error for error, _ in errors),
                    "original_error": max(error for _, error in errors),
                    "provider": verdicts[0].provider,
                    "inputs": len(usable),
                    "words": " ".join(filter(None, (verdict.suggestion for verdict in verdicts))),
                    "verify_s": time.perf_counter() - start - row["fuse_s"],
                }
            except ExplorerError as problem:
                row |= {"passed": None, "words": str(problem)}
                row["reason"] = "no kernel" if NO_KERNEL.search(str(problem)) else reason(original, files, provider)
            finally:
                while workspace.can_undo:
                    workspace.undo()
            yield row


def reason(path: Path, files: Sequence[Path], provider: str) -> str:
    """ "original fails" if ONNX Runtime does not run the original on any of the inputs, "" for a defect of ours."""
    return "original fails" if files and all(refusal(path, file, provider) for file in files) else ""


def refusal(model: Path, feeds: Path, provider: str) -> str:
    """Why ONNX Runtime does not run a model on these inputs; "" if it does."""
    taken, given = f"{feeds}.feeds.npz", f"{feeds}.out.npz"
    with np.load(feeds) as stored:
        arrays.save(taken, dict(stored))
    arguments = {"model": str(model), "feeds_npz": [taken], "out_npz": [given], "provider": provider}
    arguments["optimization"] = "best"
    try:
        with Worker() as worker:
            (refused,) = worker.call("explorer.runtime.sessions:run", arguments)["refusals"]
    except ExplorerError as error:
        return str(error)
    return refused[1] if refused else ""


def cell(row: Row) -> str:
    """A row in words."""
    if row.get("passed") is None:
        return row.get("reason") or f"BROKE: {row['words']}"
    mark = "ok" if row["passed"] else "FAILED"
    return f"{mark}, error {row['error']:.1e} (original {row['original_error']:.1e}) {row['words']}".rstrip()


def _command(words: list[str]) -> str:
    """The command line, but for where the results go."""
    kept = [word for at, word in enumerate(words) if "--json" not in words[max(at - 1, 0) : at + 1]]
    return shlex.join(["python", *kept])


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto")
    options.add_argument("--only", default="*", help="graphs whose name matches this")
    options.add_argument("--targets", nargs="+", choices=(*TARGETS, "auto"), default=[*OPERATORS, "auto"])
    options.add_argument("--json", type=Path, metavar="OUT.json")
    args = options.parse_args()
    rows: list[Row] = []
    for path in sorted(args.folder.glob("*.onnx")):
        if not fnmatchcase(path.stem, args.only):
            continue
        for row in measure(path, args.targets, args.provider):
            rows.append(row)
            count = f"{row.get('fused', '?')} of {row['blocks']}"
            print(f"{row['graph']:36} {row['target']:10} {count:9} {cell(row)}", flush=True)
    failed = [row for row in rows if row["passed"] is False or (row["passed"] is None and not row["reason"])]
    totals = [
        (
            target,
            sum(row.get("fused", 0) for row in rows if row["target"] == target),
            sum(row.get("fused", 0) for row in rows if row["target"] == target and row["passed"]),
        )
        for target in args.targets
    ]
    print()
    for target, fused, verified in totals:
        print(f"{target:10} fused {fused}, verified {verified}")
    print(f"{len(failed)} failed")
    if args.json:
        document = {
            "command": _command(sys.argv),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "totals": [{"target": target, "fused": fused, "verified": verified} for target, fused, verified in totals],
            "rows": rows,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
