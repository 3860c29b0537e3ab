"""`onnx-explorer lab` and `onnx-explorer samples`: notebooks and sample models in a folder of the user's."""

from __future__ import annotations

import argparse
from pathlib import Path

from explorer import bundled, lab
from explorer.cli.common import DONE, Commands, command, print_result
from explorer.terminal import plain


def add_lab(commands: Commands) -> None:
    """Declare `lab`."""
    parser = command(commands, "lab", run_lab, "open JupyterLab on the quickstart notebook, or on a model of yours")
    parser.add_argument(
        "model", nargs="?", type=Path, metavar="MODEL", help="an .onnx file to open instead of the sample"
    )
    parser.add_argument("--folder", type=Path, default=Path("onnx-explorer"), help="where notebooks and samples go")


def run_lab(args: argparse.Namespace) -> int:
    """Run JupyterLab until it ends."""
    return lab.start(args.folder, args.model)


def add_samples(commands: Commands) -> None:
    """Declare `samples`."""
    parser = command(commands, "samples", run_samples, "copy the sample models into a folder")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("sample_models"), metavar="DIR")


def run_samples(args: argparse.Namespace) -> int:
    """Copy them and name each."""
    for path in bundled.copy("sample_models", ".onnx", args.folder):
        print_result(plain(str(path)))
    return DONE
