"""Tensors in files: how arrays pass between the explorer and its worker process.

An .npz whose members are `arr_0`, `arr_1`, … and whose `names` lists what each is called, because a tensor's name
("/layers.0/attn/Softmax:0") need not be a legal member of a zip file.

numpy has no bfloat16: a bfloat16 tensor is a float32 array here, which holds each of its values exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def save(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays to `path`, uncompressed."""
    names = np.array(list(arrays), dtype=np.str_)
    with Path(path).open("wb") as file:  # given a name instead of a file, numpy appends ".npz"
        np.savez(file, *arrays.values(), names=names)


def load(path: str | Path) -> dict[str, Array]:
    """The named arrays that `save` wrote to `path`, in their order."""
    with np.load(path) as file:
        return {str(name): file[f"arr_{index}"] for index, name in enumerate(file["names"])}
