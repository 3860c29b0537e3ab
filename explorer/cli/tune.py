"""`onnx-explorer tune`: which target is the fastest for each kind of block, measured on this device."""

from __future__ import annotations

import argparse

from explorer import report
from explorer.cli.common import (
    DONE,
    Commands,
    add_json,
    add_provider,
    add_runs,
    add_shape,
    check_outputs,
    command,
    print_result,
)
from explorer.terminal import Progress
from explorer.workspace import open_workspace
from explorer.workspace.exports import write_json


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(
        commands, "tune", run, "measure each kind of block as each target on this device, for fuse --target auto"
    )
    parser.add_argument("model", metavar="MODEL")
    add_shape(parser, "shape of an input to run on (may be repeated)")
    add_provider(parser)
    add_runs(parser)
    parser.add_argument("--save", metavar="T.json", help="write the tuning, for fuse --tuning; it is kept here anyway")
    parser.add_argument("--save-plan", metavar="PLAN.json", help="write the plan that wins")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tune, keep it, print it."""
    check_outputs((args.save, args.save_plan), force=args.force)
    with open_workspace(args.model) as workspace:
        with Progress("tuning") as progress:
            tuning = workspace.tune(
                shapes=dict(args.shape), runs=args.runs, seed=args.seed, provider=args.provider, on_progress=progress
            )
        if args.save:
            write_json(tuning.to_json(), args.save, overwrite=args.force)
        if args.save_plan:
            write_json(tuning.plan.to_json(), args.save_plan, overwrite=args.force)
    print_result(tuning.to_json() if args.json else report.tuning_text(tuning))
    return DONE
