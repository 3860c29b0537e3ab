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
        files = [(file, destination / file.name) for file in sorted(folder(name).glob(f"*{suffix}"))]
        for file, target in files:
            if not target.exists():
                part = target.with_name(f".{target.name}.part")
                try:
                    shutil.copyfile(file, part)
                    part.replace(target)
                finally:
                    part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"expected a folder that can be written at {destination}, found: {reason}") from None
    return tuple(target for _, target in files)
