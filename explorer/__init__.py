"""See, fuse, verify and profile the attention of ONNX models.

    import explorer as ex
    ws = ex.open("model.onnx")       # headless: a Workspace
    ex.Explorer("model.onnx")        # in a notebook: the interactive view

Everything is loaded on first use: scripts need neither plotly nor widgets, and the worker process starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from explorer.version import __version__

if TYPE_CHECKING:
    from explorer.errors import ExplorerError
    from explorer.view import Explorer
    from explorer.workspace import Workspace
    from explorer.workspace import open_workspace as open

__all__ = ["Explorer", "ExplorerError", "Workspace", "__version__", "open"]

_HOME = {
    "Explorer": ("explorer.view", "Explorer"),
    "ExplorerError": ("explorer.errors", "ExplorerError"),
    "Workspace": ("explorer.workspace", "Workspace"),
    "open": ("explorer.workspace", "open_workspace"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)
