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

COLUMNS = ("Block", "Status", "Heads", "Scale", "Mask", "Casts", "Type")


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
                    " × ".join(
                        (_beside(block.num_heads, block.kv_num_heads), _beside(block.head_size, block.v_head_size))
                    ),
                    _scale(block),
                    block.mask.kind,
                    str(casts),
                    _types(block),
                )
            ],
        }
        for block, status, casts in blocks
    ]


def _beside(query: int | None, value: int | None) -> str:
    """The number for the query, and that for keys and values where it differs."""
    return number(query) if value in (None, query) else f"{number(query)}/{number(value)}"


def _types(block: Block) -> str:
    """The element type of the data, and that of the softmax where it is another: the column is narrow."""
    kinds = dict.fromkeys(name for name in (block.dtype, block.softmax_dtype) if name)
    return " → ".join(name.replace("bfloat", "bf").replace("float", "fp") for name in kinds) or "?"


def _scale(block: Block) -> str:
    return number(block.scale) + ("" if block.softcap is None else f", cap {number(block.softcap)}")
