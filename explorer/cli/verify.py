"""`onnx-explorer verify`: two files against float64 truth."""

from __future__ import annotations

import argparse

from explorer import report
from explorer.cli.common import (
    DONE,
    FAILED_VERIFICATION,
    Commands,
    add_json,
    add_provider,
    add_shape,
    command,
    print_result,
)
from explorer.model import load
from explorer.runtime import Worker
from explorer.terminal import Progress
from explorer.verify import Verdict, verify_models


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(commands, "verify", run, "compare a fused model with its original against float64 truth")
    parser.add_argument("original", metavar="ORIGINAL")
    parser.add_argument("fused", metavar="FUSED")
    parser.add_argument("--inputs", metavar="X.npz", help="inputs to compare on, one array for each graph input")
    add_shape(parser, "shape of an input to run on (may be repeated)")
    add_provider(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print the verdict."""
    with Worker() as worker, Progress("verifying") as progress:
        verdict: Verdict = verify_models(
            worker,
            load(args.original),
            load(args.fused),
            inputs=args.inputs,
            shapes=dict(args.shape),
            provider=args.provider,
            on_progress=progress,
        )
    print_result(verdict.to_json() if args.json else report.verdict_text(verdict, {}))
    return DONE if verdict.passed else FAILED_VERIFICATION
