"""What the commands share: their options, exit statuses, and how a result is printed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from explorer.errors import ExportError, InputError
from explorer.model.publish import check_writable
from explorer.profile import parse_shapes
from explorer.verify.verdict import finite_or_null

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, FAILED_TO_DO, FAILED_VERIFICATION = 0, 1, 3


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], words: str
) -> argparse.ArgumentParser:
    """Declare a command; `words` say what it does, beginning with a small letter and without a full stop."""
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def print_result(result: Mapping[str, Any] | str) -> None:
    """Text as it is; a document as JSON."""
    text = result if isinstance(result, str) else json.dumps(finite_or_null(result), indent=2, allow_nan=False)
    print(text, flush=True)  # noqa: T201


def check_outputs(paths: Iterable[str | None], *, force: bool) -> None:
    """ExportError if one of these files cannot be written, or exists and may not be replaced: before any work."""
    given = list(filter(None, paths))
    if len({os.path.realpath(path) for path in given}) < len(given):
        raise ExportError(f"expected a file of its own for each result, found {' and '.join(given)}: name another")
    for path in given:
        if os.path.lexists(path) and not force:
            raise ExportError(f"expected a new file, found that {path} exists: name another or add --force")
        check_writable(Path(path), overwrite=force)


def positive(text: str) -> int:
    """An option's number of at least 1."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return int(text)


def seed(text: str) -> int:
    """An option's number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """An option's time in seconds, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text!r}")
    return value


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """One input's name and shape, without ranges."""
    name, equals, sizes = text.rpartition("=")
    try:
        found = tuple(int(size) for size in sizes.replace("×", "x").split("x") if sizes)
    except ValueError:
        equals = ""
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=2x938x100, found {text!r}")
    return name, found


def shapes(text: str) -> str:
    """One input's name and shapes, which may be a range: checked by itself, read with the others."""
    try:
        parse_shapes([text])
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_json(parser: argparse._ActionsContainer) -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def add_shape(parser: argparse.ArgumentParser, words: str) -> None:
    """--shape, one for each input."""
    parser.add_argument("--shape", action="append", type=shape, default=[], metavar="NAME=2x938x100", help=words)


def add_assumed_shape(parser: argparse.ArgumentParser) -> None:
    """--shape of a model that is opened."""
    add_shape(
        parser,
        "shape of an input (may be repeated), taken for granted where the file leaves it open: what is found holds for "
        "it, and a model that is written declares it",
    )


def add_points(parser: argparse.ArgumentParser) -> None:
    """--shape of a measurement, which takes several: texts for `parse_shapes`."""
    parser.add_argument(
        "--shape",
        action="append",
        type=shapes,
        default=[],
        metavar="NAME=2x938x100",
        help="shape of an input to run on; given again for the same input it is one more to measure, and a size may be "
        "a range: 256..8192 (doubled) or 128..1024+128 (in steps)",
    )


def add_provider(parser: argparse.ArgumentParser) -> None:
    """--provider"""
    parser.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="execution provider")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """--runs and --seed"""
    parser.add_argument("--runs", type=positive, default=20, metavar="N", help="timed runs of each (20)")
    add_seed(parser, "seed of the inputs (0)")


def add_seed(parser: argparse.ArgumentParser, words: str) -> None:
    """--seed"""
    parser.add_argument("--seed", type=seed, default=0, help=words)


def add_time_limit(parser: argparse.ArgumentParser) -> None:
    """--time-limit"""
    parser.add_argument(
        "--time-limit", type=seconds, metavar="SECONDS", help="stop when it takes longer than this (no limit)"
    )
