"""How a sample is exported, checked against eager PyTorch and stripped of what is not the model."""

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

LIMIT = 150_000  # bytes a file
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}  # relative to the output's root mean square
VOCABULARY = 64
HIDDEN, HEADS, HEAD_SIZE = 32, 2, 16  # of every sample that says nothing else
QUERY_KEY_GAIN = 1.5  # logits of standard deviation about 2
QUERY_OR_KEY = re.compile(
    r"(^|[._])(q|k|query|key|qkv|q_proj|k_proj|to_q|to_k|add_[qk]_proj|c_attn|in_proj\w*)([._]|$)|query_key"
)

Inputs = dict[str, Tensor]
Axes = dict[str, dict[int, str]]  # input -> dimension -> name


@dataclass(frozen=True)
class Truth:
    """What is known from the configuration and the model's own code, whatever a recogniser finds.

    `fusable` counts the instances that an operator softmax(scale * Q Kᵀ + bias) V, its logits softly capped or not, can
    express exactly. A list has one entry per kind of attention in the model.
    """

    architecture: str
    expected_attention: int
    fusable: int
    num_heads: int | list[int] = HEADS
    kv_num_heads: int | list[int] = HEADS
    head_size: int | list[int] = HEAD_SIZE
    v_head_size: int | list[int] = HEAD_SIZE
    scale: str = "1/sqrt(head_size)"
    mask: str = "none"
    softcap: float | None = None
    notes: str = ""


@dataclass(frozen=True)
class Case:
    """A model, what to call it with, and the inputs to export it and to check it at another shape with."""

    model: nn.Module
    call: Callable[..., Any]  # call(model, *inputs) -> Tensor or a tuple of them
    inputs: Inputs
    others: Inputs
    axes: Axes = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    name: str
    exporter: str
    build: Callable[[], Case]
    truth: Truth
    half: bool = False


class Export(nn.Module):
    """The module that is exported: the model called with positional inputs, returning tensors."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = case.model
        self.call = case.call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.model, *inputs)


def randomize(model: nn.Module) -> nn.Module:
    """Weights that keep the variance and sharpen the logits: a default initialisation makes every softmax uniform."""
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim < 2:
                weight.add_(0.1 * noise)
            elif id(weight) in embeddings:
                weight.copy_(0.7 * noise)
            else:
                gain = QUERY_KEY_GAIN if QUERY_OR_KEY.search(name) else 1.0
                weight.copy_(noise * gain / math.sqrt(weight[0].numel()))
    return model.eval().requires_grad_(False)


# --- export ---------------------------------------------------------------------------------------------------------


def export(case: Case, exporter: str) -> onnx.ModelProto:
    method, opset, optimized = re.fullmatch(r"(ts|dyn)(\d+)(\+ort)?", exporter).groups()  # type: ignore[union-attr]
    names = list(case.inputs)
    options: dict[str, Any] = {"input_names": names, "opset_version": int(opset)}
    if method == "ts":
        options |= {"dynamo": False, "dynamic_axes": case.axes}
    else:
        shapes = tuple(case.axes.get(name) for name in names)
        options |= {"dynamo": True, "dynamic_shapes": (shapes,), "external_data": False, "verbose": False}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(Export(case).eval(), tuple(case.inputs.values()), str(path), **options)
        if optimized:
            path = optimize(path)
        return onnx.load(path)


def optimize(path: Path) -> Path:
    """The graph as ONNX Runtime saves it after the optimisations that do not depend on the machine's hardware."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Path(options.optimized_model_filepath)


def strip(model: onnx.ModelProto) -> None:
    """What is not the model: doc strings, stack traces, other metadata, and the shapes of inner values."""
    model.graph.ClearField("value_info")
    for message in (model, *every_part(model.graph)):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")


def every_part(graph: onnx.GraphProto) -> Iterator[Any]:
    yield graph
    yield from (*graph.input, *graph.output, *graph.initializer)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                yield from every_part(attribute.g)


# --- checks ---------------------------------------------------------------------------------------------------------


def attention_nodes(model: onnx.ModelProto) -> int:
    return sum(node.op_type in ("Softmax", "Attention") for node in model.graph.node)


def flat(outputs: Tensor | Iterable[Any]) -> list[np.ndarray]:
    if isinstance(outputs, Tensor):
        return [outputs.numpy()]
    return [array for output in outputs for array in flat(output)]


def check(sample: Sample, case: Case, model: onnx.ModelProto, data: bytes) -> None:
    """ONNX Runtime agrees with eager PyTorch, and the graph has as many softmaxes as the truth says."""
    found, expected = attention_nodes(model), sample.truth.expected_attention
    if found != expected:
        raise AssertionError(f"{sample.name}: {found} Softmax and Attention nodes, {expected} expected")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    tolerance = TOLERANCE[torch.float16 if sample.half else torch.float32]
    for inputs in (case.inputs, case.others):
        wanted = flat(case.call(case.model, *inputs.values()))
        got = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for ours, theirs in zip(got, wanted, strict=True):
            scale = float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))
            error = float(np.abs(ours.astype(np.float64) - theirs).max()) / scale
            if not error < tolerance:
                raise AssertionError(f"{sample.name}: off by {error:.1e} of the output's size")


def half(case: Case) -> Case:
    def convert(inputs: Inputs) -> Inputs:
        return {name: value.half() if value.is_floating_point() else value for name, value in inputs.items()}

    return Case(case.model.half(), case.call, convert(case.inputs), convert(case.others), case.axes)


def make(sample: Sample) -> tuple[bytes, dict[str, Any]]:
    """The file and its entry of the manifest."""
    torch.manual_seed(0)
    case = sample.build()
    randomize(case.model)
    if sample.half:
        case = half(case)
    with torch.no_grad():
        model = export(case, sample.exporter)
        strip(model)
        data = model.SerializeToString(deterministic=True)
        check(sample, case, model, data)
    if len(data) >= LIMIT:
        raise AssertionError(f"{sample.name}: {len(data):,} bytes")
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    dtype = "float16" if sample.half else "float32"
    head = {"name": sample.name, "exporter": sample.exporter, "opset": opset, "dtype": dtype}
    tail = {"inputs": {name: list(value.shape) for name, value in case.inputs.items()}, "dynamic": case.axes}
    return data, head | asdict(sample.truth) | tail
