"""Files that a workspace writes: in one step, never over an existing file unless asked, never over the source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from explorer.attention import Block
from explorer.errors import BlockError, ExportError
from explorer.model import Model, write_atomically
from explorer.model.save import external_files, same_file
from explorer.verify import Verdict


def spare(model: Model, path: str | Path) -> None:
    """ExportError if `path` is the opened `model` or one of the files that hold its weights."""
    for own in (model.path, *external_files(model.ir)):
        if same_file(Path(path), own):
            raise ExportError(f"expected another file than {own}, which the opened model consists of: it is kept")


def write_json(document: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a JSON document and return its path; ExportError if it exists (unless `overwrite`) or cannot be."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    return write_atomically(text.encode(), path, overwrite=overwrite)


def verdict_document(verdict: Verdict, block: Block | None) -> dict[str, Any]:
    """The whole verdict, or all that it says of one block; BlockError if it is not about that one."""
    if block is None:
        return verdict.to_json()
    if all(item.block != block.id for item in verdict.blocks):
        raise BlockError(f"expected a block that was compared, found {block.label}: fuse it and verify again")
    return verdict.block_report(block.id)
