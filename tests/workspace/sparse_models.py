"""Models of any size whose weights take no room: external data that is one hole."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import onnx
import pytest
import tape

_PAGE = 4096


def sparse_model(module: ModuleType, builder: Callable[..., onnx.ModelProto], folder: Path, **options: object) -> Path:
    """What the `builder` of a sample in `module` builds, with every weight as zeros in a file beside it."""
    end = 0

    class Declared(tape.Tape):
        """Writes down where a weight is instead of drawing it."""

        def weight(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> tape.Value:
            nonlocal end
            name = ".".join([*self._scopes, name])
            size = math.prod(shape) * self.dtype.itemsize
            tensor = self.graph.initializer.add(name=name, dims=shape, data_location=onnx.TensorProto.EXTERNAL)
            tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
            for key, value in (("location", "weights/all.bin"), ("offset", end), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            end += -(-size // _PAGE) * _PAGE
            return tape.Value(self, name, np.dtype(self.dtype), shape)

    with mock.patch.object(module, "Tape", Declared):
        proto = builder(**options)
    data = folder / "weights" / "all.bin"
    data.parent.mkdir(parents=True)
    data.touch()
    os.truncate(data, 1 << 24)
    if data.stat().st_blocks * 512 > 1 << 20:
        pytest.fail(f"the file system of {folder} has no sparse files, so this test would write {end / 1e9:.0f} GB")
    os.truncate(data, end)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path
