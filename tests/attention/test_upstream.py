"""Rotary embeddings and normalisations upstream of an operand, in the ways exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from explorer.attention.upstream import traits
from explorer.model import Model, load

B, N, S, H = 2, 3, 5, 8


class Graph:
    """Writes nodes; `x` [B, N, S, H], and `cos` and `sin` [1, 1, S, H], are inputs."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"v{len(self.nodes)}", *(f"v{len(self.nodes)}_{at}" for at in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, **attributes))
        return names[0]

    def ints(self, *values: int) -> str:
        return self.op("Constant", value_ints=values)

    def part(self, x: str, start: int, end: int, step: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(3), self.ints(step))

    def model(self, result: str, folder: Path) -> Model:
        shapes = {"x": [B, N, S, H], "cos": [1, 1, S, H], "sin": [1, 1, S, H], "w": [H]}
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        graph = helper.make_graph([*self.nodes, helper.make_node("Identity", [result], ["y"])], "g", infos, [])
        graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
        imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), folder / "m.onnx")
        return load(folder / "m.onnx")

    def rope(self, x: str, rotated: str) -> str:
        return self.op("Add", self.op("Mul", x, "cos"), self.op("Mul", rotated, "sin"))

    def halves(self, x: str) -> str:
        rotated = self.op("Concat", self.op("Neg", self.part(x, H // 2, H)), self.part(x, 0, H // 2), axis=-1)
        return self.rope(x, rotated)

    def neighbours(self, x: str) -> str:
        pair = [self.op("Neg", self.part(x, 1, H, 2)), self.part(x, 0, H, 2)]
        stacked = self.op("Concat", *(self.op("Unsqueeze", item, self.ints(-1)) for item in pair), axis=-1)
        return self.rope(x, self.op("Reshape", stacked, self.ints(B, N, S, H)))

    def computed_slices(self, x: str) -> str:
        """As a raw dynamo export: where to cut is computed from shapes, long before what is cut."""
        half = self.op("Div", self.op("Shape", x, start=3), self.ints(2))
        for _ in range(30):
            half = self.op("Reshape", self.op("Squeeze", half), self.ints(-1))
        end, last = self.ints(H), self.ints(3)
        rotated = self.op("Concat", self.op("Neg", self.op("Slice", x, half, end, last)), self.part(x, 0, 4), axis=-1)
        return self.rope(x, rotated)

    def two_products(self, x: str) -> str:
        """(x₁·cos − x₂·sin, x₂·cos + x₁·sin)."""
        one, two, cos, sin = self.part(x, 0, 4), self.part(x, 4, 8), self.part("cos", 0, 4), self.part("sin", 0, 4)
        first = self.op("Sub", self.op("Mul", one, cos), self.op("Mul", two, sin))
        second = self.op("Add", self.op("Mul", two, cos), self.op("Mul", one, sin))
        return self.op("Concat", first, second, axis=-1)

    def in_part(self, x: str) -> str:
        """Only the last half of the channels is turned."""
        turned = self.op("Mul", self.part(x, 4, 8), self.part("cos", 0, 4))
        other = self.op("Concat", self.op("Neg", self.part(x, 6, 8)), self.part(x, 4, 6), axis=-1)
        rope = self.op("Add", turned, self.op("Mul", other, self.part("sin", 0, 4)))
        return self.op("Concat", self.part(x, 0, 4), rope, axis=-1)

    def operator(self, x: str) -> str:
        return self.op("RotaryEmbedding", x, self.part("cos", 0, 4), self.part("sin", 0, 4))

    def rms(self, x: str) -> str:
        mean = self.op("ReduceMean", self.op("Mul", x, x), self.ints(-1))
        root = self.op("Sqrt", self.op("Add", mean, self.op("Constant", value_float=1e-6)))
        return self.op("Mul", self.op("Div", x, root), "w")

    def rms_operator(self, x: str) -> str:
        return self.op("RMSNormalization", x, "w", axis=-1)

    def gated_sum(self, x: str) -> str:
        """Two products, and nothing turned."""
        return self.op("Add", self.op("Mul", x, "cos"), self.op("Mul", self.op("Sigmoid", x), "sin"))


ROPES = [Graph.halves, Graph.neighbours, Graph.computed_slices, Graph.two_products, Graph.in_part, Graph.operator]
NORMS = [Graph.rms, Graph.rms_operator]
Step = Callable[[Graph, str], str]


def traits_of(folder: Path, *steps: Step) -> tuple[str, ...]:
    graph, x = Graph(), "x"
    for step in steps:
        x = step(graph, x)
    model = graph.model(x, folder)
    return traits(model, model.value(x))


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_embeddings(rope: Step, tmp_path: Path) -> None:
    assert traits_of(tmp_path, rope) == ("rope",)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_normalisation_before_it(rope: Step, norm: Step, tmp_path: Path) -> None:
    assert traits_of(tmp_path, norm, rope) == ("rope", "norm")


@pytest.mark.parametrize("norm", NORMS)
def test_a_normalisation_alone(norm: Step, tmp_path: Path) -> None:
    assert traits_of(tmp_path, norm) == ("norm",)


def test_changes_of_layout_and_type_hide_nothing(tmp_path: Path) -> None:
    def laid_out(graph: Graph, x: str) -> str:
        return graph.op("Cast", graph.op("Transpose", x, perm=[0, 2, 1, 3]), to=TensorProto.FLOAT16)

    assert traits_of(tmp_path, Graph.halves, laid_out) == ("rope",)


@pytest.mark.parametrize("step", [Graph.gated_sum, lambda graph, x: graph.op("Relu", x)])
def test_neither(step: Step, tmp_path: Path) -> None:
    assert traits_of(tmp_path, step) == ()
