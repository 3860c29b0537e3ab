"""`onnx-explorer profile`: models measured against each other, or a profile that was saved."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from explorer import report
from explorer.attention import recognise
from explorer.cli.common import (
    DONE,
    Commands,
    add_json,
    add_points,
    add_provider,
    add_runs,
    add_time_limit,
    check_outputs,
    command,
    print_result,
)
from explorer.model import Model, load
from explorer.profile import Profile, Subject, compare, parse_shapes
from explorer.profile.perfetto import chrome_trace
from explorer.profile.words import SDPA_KERNELS
from explorer.runtime import Deadline, Worker
from explorer.terminal import Progress
from explorer.workspace import plan_digest, points, regions
from explorer.workspace.exports import write_json
from explorer.workspace.measure import measure

_KERNELS = {name: option for option, name in SDPA_KERNELS.items()}


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(commands, "profile", run, "measure models against each other, the original first")
    parser.set_defaults(wrong_usage=parser.error)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="the original, then others")
    add_points(parser)
    add_provider(parser)
    add_runs(parser)
    parser.add_argument("--cuda-graph", action="store_true", help="measure each model as a CUDA graph, too")
    parser.add_argument(
        "--sdpa-kernel",
        action="append",
        choices=tuple(_KERNELS),
        help="attention kernels that CUDA may use; given again, each model is measured with each",
    )
    parser.add_argument("--no-trace", action="store_true", help="latencies alone, not where the time goes")
    add_time_limit(parser)
    parser.add_argument("--load", metavar="P.json", help="show this saved profile instead of measuring")
    parser.add_argument("--save", metavar="P.json", help="write the profile")
    parser.add_argument("--perfetto", metavar="T.json", help="write the timelines for ui.perfetto.dev")
    parser.add_argument("--compare", metavar="OLD.json", help="show what changed since this saved profile")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--all", action="store_true", help="every set of inputs in detail, not the last alone")
    add_json(how)


def run(args: argparse.Namespace) -> int:
    """Measure or load, write what was asked for, print."""
    if bool(args.models) == bool(args.load):
        args.wrong_usage("give either models to measure or --load P.json")
    check_outputs((args.save, args.perfetto), force=args.force)
    before = None if args.compare is None else Profile.load(args.compare)
    measured = Profile.load(args.load) if args.load else _measured(args)
    if args.save:
        measured.save(args.save, overwrite=args.force)
    if args.perfetto:
        write_json(chrome_trace(measured), args.perfetto, overwrite=args.force)
    if before is None:
        print_result(measured.to_json() if args.json else report.profile_text(measured, every_point=args.all))
    else:
        changed = compare(before, measured)
        print_result(report.comparison_document(changed) if args.json else report.comparison_text(changed))
    return DONE


def _measured(args: argparse.Namespace) -> Profile:
    deadline = Deadline(args.time_limit)
    shapes = parse_shapes(args.shape)
    models = dict(zip(unique(Path(name).stem for name in args.models), map(load, args.models), strict=True))
    subjects: list[Subject] = []
    labels: dict[str, str] = {}
    for name, model in models.items():
        blocks = recognise(model)
        labels = {**{block.id: block.label for block in blocks}, **labels}
        subjects.append(Subject(name, model, plan_digest(model), regions(model, blocks)))
    if args.sdpa_kernel:
        subjects = [
            replace(item, name=f"{item.name}, {kernel}", sdpa_kernel=_KERNELS[kernel])
            for item in subjects
            for kernel in dict.fromkeys(args.sdpa_kernel)
        ]
    first: Model = subjects[0].model
    with Worker() as worker, Progress("profiling") as progress:
        feeds = points(worker, first, shapes, args.seed, provider=args.provider, timeout_s=deadline.left_s())
        return measure(
            worker,
            subjects,
            feeds,
            provider=args.provider,
            runs=args.runs,
            seed=args.seed,
            cuda_graph=args.cuda_graph,
            trace=not args.no_trace,
            labels=tuple(labels.items()),
            on_progress=progress,
            timeout_s=deadline.left_s(),
        )


def unique(names: Iterable[str]) -> Iterator[str]:
    """The names, one that was there before with a number."""
    seen: set[str] = set()
    for name in names:
        number, own = 1, name
        while own in seen:
            number += 1
            own = f"{name} ({number})"
        seen.add(own)
        yield own
