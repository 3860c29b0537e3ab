"""What a function that runs in the worker process is given to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Context:
    """A call's surroundings.

    progress  report (fraction done 0 to 1, what is being done now) to the caller
    folder    for temporary files; whoever started the worker deletes it, even after a crash
    log_path  the file that receives everything written to the process's standard output and error, natively too
    """

    progress: Callable[[float, str], None]
    folder: Path
    log_path: Path

    def log_mark(self) -> int:
        """A position, in bytes, from which `log_since` can read."""
        return self.log_path.stat().st_size

    def log_since(self, mark: int) -> str:
        """Everything logged since `log_mark` returned `mark`."""
        with self.log_path.open("rb") as log:
            log.seek(mark)
            return log.read().decode(errors="replace")
