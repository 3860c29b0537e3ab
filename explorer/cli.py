"""The command line: `onnx-explorer`, or `python -m explorer`.

Exit status: 0 done, 1 an error that is explained on stderr, 2 wrong usage, 3 the verification failed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from explorer import bundled, lab, report
from explorer.errors import ExplorerError, ExportError
from explorer.fusion import TARGETS, Plan
from explorer.model import load
from explorer.model.external import linked_data
from explorer.model.publish import check_writable
from explorer.profile import profile_models
from explorer.runtime import Worker
from explorer.terminal import Progress, plain
from explorer.verify import Verdict, fitting_inputs, verify_models
from explorer.verify.verdict import finite_or_null
from explorer.version import __version__
from explorer.workspace import PROFILE_LENGTH, FuseReport, Workspace, open_workspace

DONE, FAILED_TO_DO, FAILED_VERIFICATION = 0, 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no → shows its number instead
    try:
        status: int = args.run(args)
    except ExplorerError as error:
        print(f"onnx-explorer: {plain(str(error))}", file=sys.stderr)  # noqa: T201
        return FAILED_TO_DO
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us left: nobody to tell
        return FAILED_TO_DO
    except KeyboardInterrupt:
        print("onnx-explorer: stopped", file=sys.stderr)  # noqa: T201
        return FAILED_TO_DO
    return status


def _lab(args: argparse.Namespace) -> int:
    return lab.start(args.folder, args.model)


def _scan(args: argparse.Namespace) -> int:
    with open_workspace(args.model, dict(args.shape)) as workspace:
        if args.json:
            _print(report.scan_document(workspace))
        elif args.explain:
            _print("\n\n".join(report.explain_text(workspace, name) for name in args.explain))
        else:
            _print(report.scan_text(workspace, every_block=args.all))
    return DONE


def _fuse(args: argparse.Namespace) -> int:
    if args.plan and (args.block or args.skip or args.target != "auto"):
        raise ExportError(
            "expected either --plan or --block, --skip and --target, found both: the plan already says what to fuse"
        )
    if args.by_family and not args.plan:
        raise ExportError("expected a plan with --by-family, found none: add --plan PLAN.json")
    for path in filter(None, (args.output, args.save_plan, args.save_verdict)):
        if os.path.lexists(path) and not args.force:
            raise ExportError(f"expected a new file, found that {path} exists: name another or add --force")
        check_writable(Path(path), overwrite=args.force)
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
        _print(render(workspace, done, verdict, output))
        if not workspace.plan.fusions:
            raise ExportError(f"expected a block that can be fused in {args.model}, found none: no model was written")
    return FAILED_VERIFICATION if failed else DONE


def _fuse_as_asked(workspace: Workspace, args: argparse.Namespace) -> FuseReport:
    if args.plan:
        return workspace.apply_plan(Plan.load(args.plan), by_family=args.by_family)
    if args.block:
        left_out = {workspace.block(name).id for name in args.skip}
        return workspace.fuse(
            *(name for name in args.block if workspace.block(name).id not in left_out), target=args.target
        )
    return workspace.fuse_all(args.target, args.skip)


def _verify(args: argparse.Namespace) -> int:
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
    _print(verdict.to_json() if args.json else report.verdict_text(verdict, {}))
    return DONE if verdict.passed else FAILED_VERIFICATION


def _profile(args: argparse.Namespace) -> int:
    model = load(args.model)
    variants = [(Path(args.model).stem, model)]
    if args.other:
        other = Path(args.other)
        name = other.stem if other.stem != variants[0][0] else f"{other.stem} (2)"
        variants.append((name, load(other)))
    with Worker() as worker, Progress("profiling") as progress:
        feeds = fitting_inputs(worker, model, dict(args.shape), args.seed, PROFILE_LENGTH, provider=args.provider)
        profile = profile_models(
            worker,
            variants,
            feeds,
            provider=args.provider,
            runs=args.runs,
            seed=args.seed,
            on_progress=progress,
        )
    _print(profile.to_json() if args.json else report.profile_text(profile))
    return DONE


def _samples(args: argparse.Namespace) -> int:
    for path in bundled.copy("sample_models", ".onnx", args.folder):
        _print(plain(str(path)))
    return DONE


def _print(result: dict[str, Any] | str) -> None:
    text = result if isinstance(result, str) else json.dumps(finite_or_null(result), indent=2, allow_nan=False)
    print(text, flush=True)  # noqa: T201


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.replace("×", "x").split("x") if sizes)
    except ValueError:
        equals = ""
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=2x938x100, found {text!r}")
    return name, shape


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onnx-explorer", description="See, fuse, verify and profile the attention of ONNX models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    sub = command("lab", _lab, "open JupyterLab on the quickstart notebook, or on a model of yours")
    sub.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="an .onnx file to open instead of the sample")
    sub.add_argument("--folder", type=Path, default=Path("onnx-explorer"), help="where notebooks and samples go")

    sub = command("scan", _scan, "list the attention blocks of a model and what stands in their way")
    sub.add_argument("model", metavar="MODEL")
    _assumed_shapes(sub)
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--all", action="store_true", help="list every block, not one row for all that are alike")
    how.add_argument(
        "--explain", action="append", metavar="BLOCK", help="the evidence for the block of this id or label, in steps"
    )
    _json(how)

    sub = command("fuse", _fuse, "fuse attention blocks, verify the result and write it")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    sub.add_argument("--block", action="append", metavar="ID", help="fuse this block only (may be repeated)")
    sub.add_argument("--skip", action="append", default=[], metavar="ID", help="leave this block as it is (likewise)")
    sub.add_argument(
        "--target", choices=("auto", *TARGETS), default="auto", help="operator to fuse to (the fastest that is exact)"
    )
    sub.add_argument(
        "--fastest-on",
        choices=("cuda", "cpu"),
        default="cuda",
        help="where the target auto is the fastest (cuda)",
    )
    sub.add_argument("--plan", metavar="PLAN.json", help="fuse what this plan says")
    sub.add_argument(
        "--by-family", action="store_true", help="give every block what the plan gives to blocks like it in its model"
    )
    sub.add_argument("--save-plan", metavar="PLAN.json", help="write what was fused as a plan")
    _assumed_shapes(sub)
    sub.add_argument("--no-verify", action="store_true", help="write the model without verifying it")
    sub.add_argument("--inputs", metavar="X.npz", help="inputs to verify on, one array for each graph input")
    sub.add_argument("--seed", type=int, default=0, help="seed of the inputs otherwise (0)")
    _provider(sub)
    sub.add_argument("--save-verdict", metavar="VERDICT.json", help="write all numbers of the verification")
    sub.add_argument(
        "--data",
        choices=("share", "copy", "link"),
        default="share",
        help="external data: share the source's file (OUT stays in its folder), copy it, or give it a second name",
    )
    sub.add_argument("--force", action="store_true", help="replace OUT, and write it even if the verification fails")
    _json(sub)

    sub = command("verify", _verify, "compare a fused model with its original against float64 truth")
    sub.add_argument("original", metavar="ORIGINAL")
    sub.add_argument("fused", metavar="FUSED")
    sub.add_argument("--inputs", metavar="X.npz", help="inputs to compare on, one array for each graph input")
    _shapes(sub)
    _provider(sub)
    _json(sub)

    sub = command("profile", _profile, "measure a model, or two against each other")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("other", nargs="?", metavar="OTHER")
    _shapes(sub)
    _provider(sub)
    sub.add_argument("--runs", type=_positive, default=20, metavar="N", help="timed runs of each model (20)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the inputs (0)")
    _json(sub)

    sub = command("samples", _samples, "copy the sample models into a folder")
    sub.add_argument("folder", nargs="?", type=Path, default=Path("sample_models"), metavar="DIR")
    return parser


def _json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def _shapes(parser: argparse.ArgumentParser) -> None:
    _shape_option(parser, "shape of an input to run on (may be repeated)")


def _assumed_shapes(parser: argparse.ArgumentParser) -> None:
    _shape_option(
        parser,
        "shape of an input (may be repeated), taken for granted where the file leaves it open: what is found holds for "
        "it, and a model that is written declares it",
    )


def _shape_option(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--shape", action="append", type=_shape, default=[], metavar="NAME=2x938x100", help=words)


def _provider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="execution provider")
