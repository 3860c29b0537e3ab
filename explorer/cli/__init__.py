"""The command line: `onnx-explorer`, or `python -m explorer`.

Exit status: 0 done, 1 an error that is explained on stderr, 2 wrong usage, 3 the verification failed.

Each command is a module with `add(commands)`, which declares it, and `run(args)`, which does it and returns the status.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from explorer.cli import files, fuse, profile, scan, tune, verify
from explorer.cli.common import FAILED_TO_DO
from explorer.errors import ExplorerError
from explorer.terminal import plain
from explorer.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. SIGTERM ends it as Ctrl-C does."""
    args = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no → shows its number instead
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    finally:
        signal.signal(signal.SIGTERM, before)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onnx-explorer", description="See, fuse, verify and profile the attention of ONNX models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (files.add_lab, scan.add, fuse.add, verify.add, profile.add, tune.add, files.add_samples):
        command(commands)
    return parser
