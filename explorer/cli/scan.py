"""`onnx-explorer scan`: the attention blocks of a model."""

from __future__ import annotations

import argparse

from explorer import report
from explorer.cli.common import DONE, Commands, add_assumed_shape, add_json, command, print_result
from explorer.workspace import open_workspace


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(commands, "scan", run, "list the attention blocks of a model and what stands in their way")
    parser.add_argument("model", metavar="MODEL")
    add_assumed_shape(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--all", action="store_true", help="list every block, not one row for all that are alike")
    how.add_argument(
        "--explain", action="append", metavar="BLOCK", help="the evidence for the block of this id or label, in steps"
    )
    add_json(how)


def run(args: argparse.Namespace) -> int:
    """Scan and print."""
    with open_workspace(args.model, dict(args.shape)) as workspace:
        if args.json:
            print_result(report.scan_document(workspace))
        elif args.explain:
            print_result("\n\n".join(report.explain_text(workspace, name) for name in args.explain))
        else:
            print_result(report.scan_text(workspace, every_block=args.all))
    return DONE
