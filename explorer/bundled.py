"""Where the sample models and notebooks lie: inside the installed package, or at the top of a checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from explorer.errors import ExportError

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder "sample_models" or "notebooks" that came with this installation."""
    installed = _PACKAGE / "bundled" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def copy(name: str, suffix: str, destination: Path) -> tuple[Path, ...]:
    """Copy the bundled files with this suffix into `destination` and return them; files already there are kept."""
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder(name).glob(f"*{suffix}")):
            if not (destination / file.name).exists():
                shutil.copyfile(file, destination / file.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"expected a folder that can be written at {destination}, found: {reason}") from None
    return tuple(sorted(destination.glob(f"*{suffix}")))
