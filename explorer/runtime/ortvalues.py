"""numpy arrays as ONNX Runtime's values and back, bfloat16 as float32 (`explorer.runtime.arrays`)."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from explorer.runtime.arrays import Array


def to_ort(array: Array, input_type: str) -> Any:
    """The array as an OrtValue on the CPU for an input of the type ("tensor(float)") that ONNX Runtime says it has."""
    array = np.asarray(array, order="C")
    if input_type == "tensor(bfloat16)" and array.dtype == np.float32:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_bfloat16_bits(array), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def to_numpy(value: Any) -> Array:
    """The OrtValue as an array."""
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    memory = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    bits = np.frombuffer(memory, np.uint16).reshape(shape)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _bfloat16_bits(array: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even, as the upper half of its bits. NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)
