"""Load and save ONNX models of any size, and answer read-only questions about their graphs."""

from explorer.model.describe import GraphInfo, NodeInfo, TensorInfo, describe
from explorer.model.load import load
from explorer.model.model import Dim, Model, TensorType
from explorer.model.publish import write_atomically
from explorer.model.save import ExternalData, save
from explorer.model.types import dtype_name

__all__ = [
    "Dim",
    "ExternalData",
    "GraphInfo",
    "Model",
    "NodeInfo",
    "TensorInfo",
    "TensorType",
    "describe",
    "dtype_name",
    "load",
    "save",
    "write_atomically",
]
