"""`onnx-explorer fuse`: fuse, verify, write."""

from __future__ import annotations

import argparse
from dataclasses import replace

from explorer import report
from explorer.cli.common import (
    DONE,
    FAILED_VERIFICATION,
    Commands,
    add_assumed_shape,
    add_json,
    add_provider,
    add_seed,
    check_outputs,
    command,
    print_result,
)
from explorer.errors import ExportError, InputError
from explorer.fusion import TARGETS, Plan
from explorer.model.external import linked_data
from explorer.terminal import Progress
from explorer.workspace import FuseReport, Workspace, open_workspace


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(commands, "fuse", run, "fuse attention blocks, verify the result and write it")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    parser.add_argument("--block", action="append", metavar="ID", help="fuse this block only (may be repeated)")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="ID", help="leave this block as it is (likewise)"
    )
    parser.add_argument(
        "--target",
        choices=("auto", *TARGETS),
        default="auto",
        help="operator to fuse to, of any or of one layout (the fastest: by a tuning if there is one, else by rules)",
    )
    parser.add_argument(
        "--fastest-on",
        choices=("cuda", "cpu"),
        default="cuda",
        help="where the target auto is the fastest (cuda)",
    )
    parser.add_argument(
        "--tuning", metavar="T.json", help="the tuning that --target auto goes by (the one kept for this machine)"
    )
    parser.add_argument("--plan", metavar="PLAN.json", help="fuse what this plan says")
    parser.add_argument(
        "--by-family", action="store_true", help="give every block what the plan gives to blocks like it in its model"
    )
    parser.add_argument("--save-plan", metavar="PLAN.json", help="write what was fused as a plan")
    add_assumed_shape(parser)
    parser.add_argument("--no-verify", action="store_true", help="write the model without verifying it")
    parser.add_argument("--inputs", metavar="X.npz", help="inputs to verify on, one array for each graph input")
    add_seed(parser, "seed of the inputs otherwise (0)")
    add_provider(parser)
    parser.add_argument("--save-verdict", metavar="VERDICT.json", help="write all numbers of the verification")
    parser.add_argument(
        "--data",
        choices=("share", "copy", "link"),
        default="share",
        help="external data: share the source's file (OUT stays in its folder), copy it, or give it a second name",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT, and write it even if the verification fails")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Fuse as asked, and write nothing that does not pass."""
    if args.plan and (args.block or args.skip or args.target != "auto" or args.tuning):
        raise ExportError(
            "expected either --plan or --block, --skip, --target and --tuning, found both: the plan already says what "
            "to fuse"
        )
    if args.tuning and args.target != "auto":
        raise ExportError(f"expected the target auto with --tuning, found {args.target}: give one of them")
    if args.by_family and not args.plan:
        raise ExportError("expected a plan with --by-family, found none: add --plan PLAN.json")
    check_outputs((args.output, args.save_plan, args.save_verdict), force=args.force)
    with open_workspace(args.model, dict(args.shape), args.fastest_on) as workspace:
        done = _fuse_as_asked(workspace, args)
        verdict = None
        if workspace.plan.fusions and not args.no_verify:
            with Progress("verifying") as progress:
                verdict = workspace.verify(
                    inputs=args.inputs, seed=args.seed, provider=args.provider, on_progress=progress
                )
        failed = verdict is not None and not verdict.passed
        output = None
        if workspace.plan.fusions and (not failed or args.force):
            output = str(workspace.export(args.output, overwrite=args.force, data=args.data))
            if args.data == "link":
                done = replace(done, notes=(*done.notes, *linked_data(workspace.model.ir)))
        if args.save_plan:
            workspace.export_plan(args.save_plan, overwrite=args.force)
        if args.save_verdict and verdict is not None:
            workspace.export_verdict(args.save_verdict, overwrite=args.force)
        render = report.fuse_document if args.json else report.fuse_text
        print_result(render(workspace, done, verdict, output))
        if not workspace.plan.fusions:
            raise ExportError(f"expected a block that can be fused in {args.model}, found none: no model was written")
    return FAILED_VERIFICATION if failed else DONE


def _fuse_as_asked(workspace: Workspace, args: argparse.Namespace) -> FuseReport:
    if args.tuning and (found := workspace.use_tuning(args.tuning).provider) != args.fastest_on:
        raise InputError(
            f"expected a tuning for --fastest-on {args.fastest_on}, found one that was measured on {found}: "
            f"tune there, or add --fastest-on {found}"
        )
    if args.plan:
        return workspace.apply_plan(Plan.load(args.plan), by_family=args.by_family)
    if args.block:
        left_out = {workspace.block(name).id for name in args.skip}
        return workspace.fuse(
            *(name for name in args.block if workspace.block(name).id not in left_out), target=args.target
        )
    return workspace.fuse_all(args.target, args.skip)
