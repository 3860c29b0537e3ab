"""Whether a profile tells which attention kernel ran: each target, with each kernel that `sdpa_kernel` can force.

    python benchmarks/dispatch.py [--length 512] [--only GLOB] [--targets mha attention gqa] [--json OUT.json]

Needs a CUDA GPU. The blocks are those of attention_kernels.py in float16, fused to every target that claims them; all
settings of a block are one profile. `said` is ONNX Runtime's debug line, `seen` is told from the names of the kernels
that CUPTI recorded under the node. A block that cannot take the kernel asked for runs another, which must come with a
warning that says why, or is refused by ONNX Runtime, in its own words.

Exit status: 1 if the two disagree, one of them is missing, or another kernel than the one asked for ran without a word.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attention_kernels import CASES, KERNELS, Case, _command, feeds_of, graph
from onnx import parser

from explorer.attention import recognise
from explorer.fusion import OPERATORS, TARGETS, Plan, apply, choose
from explorer.model import load
from explorer.profile import Measurement, Subject, profile
from explorer.runtime.client import Worker

WORDS = {
    "flash": "FLASH_ATTENTION",
    "memory-efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_FLASH_ATTENTION",
    "math": "MATH",
}
"""What ONNX Runtime calls each kernel that can be asked for."""
DTYPE = "float16"

Row = dict[str, Any]


def subjects_of(case: Case, length: int, targets: Sequence[str], folder: Path) -> list[tuple[Row, Subject]]:
    """The block fused to each target that claims it, once for each kernel, and what was asked for."""
    source = folder / "block.onnx"
    source.write_bytes(parser.parse_model(graph(case, DTYPE, length)).SerializeToString())
    model = load(source)
    (block,) = recognise(model)
    found = []
    for target in targets:
        if not choose(model, block, target).target:
            continue
        plan = Plan(model.digest).with_fusion(block, target)
        fused = apply(model, [block], plan)
        for asked, bits in KERNELS.items():
            row = {"case": case.name, "target": target, "asked": asked}
            found.append((row, Subject(f"{target}, {asked}", fused, plan.digest, sdpa_kernel=bits)))
    return found


def judged(row: Row, found: Measurement) -> Row:
    """The row with what ran, what was said of it, and in `wrong` what a profile must not leave like this."""
    if found.refusal:
        return row | {"said": "", "seen": "", "warning": found.refusal, "wrong": ""}
    if len(found.dispatch) != 1:
        return row | {"said": "", "seen": "", "warning": "", "wrong": f"{len(found.dispatch)} attention nodes told"}
    (told,) = found.dispatch
    wrong = ""
    if not told.said or not told.seen:
        wrong = "said nothing" if told.seen else "seen nothing"
    elif told.said != told.seen:
        wrong = "said and seen disagree"
    elif told.kernel != WORDS.get(row["asked"], told.kernel) and not told.warning:
        wrong = "gave way without a word"
    return row | {"said": told.said, "seen": told.seen, "warning": told.warning, "wrong": wrong}


def measure(worker: Worker, case: Case, length: int, targets: Sequence[str], provider: str) -> Iterator[Row]:
    """A row for each target and kernel."""
    with tempfile.TemporaryDirectory() as name:
        asked = subjects_of(case, length, targets, Path(name))
        found = profile(
            worker, [subject for _, subject in asked], [feeds_of(case, DTYPE, length)], provider=provider, runs=1
        )
    for row, subject in asked:
        yield judged(row, found.points[0].of(subject.name))


def main() -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--length", type=int, default=512, help="positions of queries and keys")
    options.add_argument("--only", default="*", help="cases whose name matches this")
    options.add_argument("--targets", nargs="+", choices=TARGETS, default=[*OPERATORS])
    options.add_argument("--json", type=Path, metavar="OUT.json")
    args = options.parse_args()
    rows: list[Row] = []
    with Worker() as worker:
        facts = worker.call("explorer.runtime.environment:environment")
        for case in CASES:
            if not fnmatchcase(case.name, args.only):
                continue
            for row in measure(worker, case, args.length, args.targets, "cuda"):
                rows.append(row)
                print(
                    f"{row['case']:20} {row['target']:10} {row['asked']:17} {row['said']:22} {row['seen']:22}"
                    f" {row['wrong'].upper()}  {row['warning']}",
                    flush=True,
                )
            if args.json:
                document: Row = {"command": _command(sys.argv), "when": datetime.now(UTC).isoformat(timespec="seconds")}
                document |= {"environment": facts, "rows": rows}
                args.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = sum(bool(row["wrong"]) for row in rows)
    print(f"{len(rows)} settings, {wrong} told wrongly")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
