"""The networks built, in torch, and exported to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmarks.networks.diffusion import F5, SD3
from benchmarks.networks.layers import Inputs
from benchmarks.networks.text import Bert, Decoder

OPSET = 17
DTYPES = {"float16": torch.float16, "float32": torch.float32}
NO_SEQUENCE = ("time", "prompt", "condition")
"""Inputs whose sizes are all constants."""

MODULES: Mapping[str, Callable[..., nn.Module]] = {"f5": F5, "sd3": SD3, "bert": Bert, "decoder": Decoder}


def build(kind: str, sizes: Mapping[str, Any], device: str, dtype: str = "float16") -> nn.Module:
    """A network of `MODULES` on `device`. Its weights are seeded: the same in float32, but for their rounding."""
    torch.manual_seed(0)
    with torch.device(device):
        return MODULES[kind](**sizes).to(DTYPES[dtype]).eval().requires_grad_(False)


def tensors(network: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs for `forward`, where the network is and, if they are floating-point, as it computes."""
    like = next(network.parameters())
    found = (torch.from_numpy(array).to(like.device) for array in inputs.values())
    return tuple(tensor.to(like.dtype) if tensor.is_floating_point() else tensor for tensor in found)


def computed(network: nn.Module, inputs: Inputs) -> np.ndarray:
    """What the network computes, eager."""
    return network(*tensors(network, inputs)).cpu().numpy()


def truth(network: nn.Module, inputs: Inputs) -> np.ndarray:
    """What the network computes in float64 with its own, rounded weights."""
    return computed(deepcopy(network).double(), inputs)


def export(network: nn.Module, inputs: Inputs, path: Path) -> None:
    """Write the network as torch's TorchScript exporter does, S dynamic, its weights in a file beside `path`."""
    axes = {name: {1: "seq"} for name in inputs if name not in NO_SEQUENCE}
    raw = path.with_name(f"raw_{path.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporter is deprecated, and what most published graphs come from
        torch.onnx.export(
            network,
            tensors(network, inputs),
            str(raw),
            input_names=list(inputs),
            output_names=["out"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # onnx would write behind what is there
    onnx.save(onnx.load(raw), path, save_as_external_data=True, location=weights.name)
    raw.unlink()
