"""Models for the tests of the workspace, and how they expect refusals."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from onnx import TensorProto, helper

from explorer.errors import (
    ExplorerError,
)

SHAPES = {"q": (2, 8, 16)}


def chain(blocks: int = 3) -> onnx.ModelProto:
    """`blocks` attention blocks, one after the other: twice the result of each is the query of the next."""
    whole = onnx.compose.add_prefix(render(Meaning(), Spelling(dynamic=False)), "b0_")
    for at in range(1, blocks):
        last = f"b{at - 1}_"
        whole.graph.node.append(helper.make_node("Add", [f"{last}y", f"{last}y"], [f"{last}sum"], name=f"{last}Sum"))
        whole.graph.output[0].name = f"{last}sum"
        whole = linked(whole, "q", at)
    return whole


def linked(first: onnx.ModelProto, link: str, at: int = 1, spelling: Spelling = Spelling()) -> onnx.ModelProto:  # noqa: B008
    """`first` and another block whose input `link` is the output of `first`."""
    second = onnx.compose.add_prefix(render(Meaning(), replace(spelling, dynamic=False)), f"b{at}_")
    return onnx.compose.merge_models(first, second, io_map=[(first.graph.output[0].name, f"b{at}_{link}")])


def blocked() -> onnx.ModelProto:
    """Attention whose probabilities are a graph output too."""
    proto = render(Meaning(), Spelling())
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    proto.graph.output.append(onnx.ValueInfoProto(name=softmax.output[0]))
    return proto


def refusal(kind: type[ExplorerError], call, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def blocked_static() -> onnx.ModelProto:
    proto = render(Meaning(), Spelling(dynamic=False))
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    proto.graph.output.append(helper.make_tensor_value_info(softmax.output[0], TensorProto.FLOAT, [2, 2, 5, 5]))
    return proto
