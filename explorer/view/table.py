"""The table of attention blocks: a small anywidget whose `selected` follows the view and leads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from explorer.attention.block import Block
from explorer.view import theme
from explorer.view.text import printable
from explorer.view.words import number

_STATIC = Path(__file__).parent / "static"

COLUMNS = ("Block", "Status", "Heads", "Head size", "Scale", "Mask", "Casts")


class BlockTable(anywidget.AnyWidget):
    """One row a block. `selected` is the id of the selected block, "" for none."""

    _esm = _STATIC / "table.js"
    _css = _STATIC / "explorer.css"
    columns = traitlets.List(traitlets.Unicode(), default_value=list(COLUMNS)).tag(sync=True)
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)


def table_rows(blocks: Sequence[tuple[Block, str, int]]) -> list[dict[str, Any]]:
    """Rows of (block, its status now, Casts left in it) as the table's script reads them: plain text, nothing else."""
    return [
        {
            "id": block.id,
            "status": status,
            "cells": [
                printable(text)
                for text in (
                    block.label,
                    f"{theme.STATUSES[status].symbol} {status}",
                    _heads(block),
                    number(block.head_size),
                    number(block.scale),
                    block.mask.kind,
                    str(casts),
                )
            ],
        }
        for block, status, casts in blocks
    ]


def _heads(block: Block) -> str:
    grouped = block.kv_num_heads not in (None, block.num_heads)
    return f"{number(block.num_heads)} / {number(block.kv_num_heads)}" if grouped else number(block.num_heads)
