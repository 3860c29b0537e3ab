"""Everything that must hold: style, types, the rooms' imports, and all tests. One command, run by CI and by hand.

    python tests/check.py [--require-browser] [pytest arguments]

Without a Chromium the browser tests are skipped and say so; with --require-browser that is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = ["explorer", "tests", "sample_models", "benchmarks"]


def main(arguments: list[str]) -> int:
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": os.pathsep.join((str(bin_folder), os.environ.get("PATH", "")))}
    if "--require-browser" in arguments:
        arguments = [argument for argument in arguments if argument != "--require-browser"]
        environment["REQUIRE_BROWSER"] = "1"
    python = sys.executable
    commands = [
        [python, "-m", "ruff", "check", *PATHS],
        [python, "-m", "ruff", "format", "--check", *PATHS],
        [python, "-m", "mypy"],
        [str(bin_folder / "lint-imports")],
        [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *arguments],
    ]
    for command in commands:
        print("→", " ".join(Path(part).name if part == command[0] else part for part in command), flush=True)
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
