"""Open JupyterLab on the explorer: copy the notebooks and samples to a folder of the user's and start it there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from explorer import bundled
from explorer.model import load, write_atomically

QUICKSTART = "01_quickstart.ipynb"


def prepare(folder: Path, model: Path | None) -> Path:
    """Put notebooks and samples into `folder` (what is there already is kept) and return the notebook to open.

    With a `model` of the user's, that is a notebook which opens it; ModelError if it cannot be opened.
    """
    bundled.copy("sample_models", ".onnx", folder / "sample_models")
    notebooks = folder / "notebooks"
    bundled.copy("notebooks", ".ipynb", notebooks)
    if model is None:
        return notebooks / QUICKSTART
    path = load(model).path
    # Two models of one name are two notebooks
    which = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    notebook = notebooks / f"explore_{path.stem[:60]}_{which}.ipynb"
    if not notebook.exists():
        write_atomically(json.dumps(_notebook(path), indent=1).encode(), notebook)
    return notebook


def start(folder: Path, model: Path | None) -> int:
    """Run JupyterLab on that notebook until it ends; returns its exit status."""
    folder = folder.resolve()
    notebook = prepare(folder, model)
    command = [sys.executable, "-m", "jupyterlab", str(notebook.relative_to(folder)), f"--ServerApp.root_dir={folder}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container's only user; Jupyter refuses it unless told
    return subprocess.run(command, check=False, cwd=folder).returncode


def _notebook(path: Path) -> dict[str, object]:
    """A notebook of one cell that opens the model at `path`."""
    source = f"import explorer as ex\n\napp = ex.Explorer({str(path)!r})\napp"
    cell: dict[str, object] = {
        "cell_type": "code",
        "execution_count": None,
        "id": "open",
        "metadata": {},
        "outputs": [],
        "source": source,
    }
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
