"""A boolean mask is called causal only if it provably is: the lower triangle of a square."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from explorer.attention.mask import is_causal
from explorer.model import load


def condition(triangle: np.ndarray, cuts: tuple[tuple[int, int, str], ...]) -> bytes:
    """A mask cut out of `triangle` by Slices (axis, start, end); "a" and "b" are lengths that the model is given."""
    constants = {"triangle": triangle}
    nodes, value = [], "triangle"
    for at, (axis, start, end) in enumerate(cuts):
        constants |= {f"start{at}": np.array([start]), f"axis{at}": np.array([axis])}
        nodes.append(helper.make_node("Slice", [value, f"start{at}", end, f"axis{at}"], [f"cut{at}"], name=f"s{at}"))
        value = f"cut{at}"
    nodes.append(helper.make_node("Cast", [value], ["mask"], name="cast", to=TensorProto.BOOL))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("a", "b")],
        [helper.make_tensor_value_info("mask", TensorProto.BOOL, [None] * triangle.ndim)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


LOWER = np.tri(6, dtype=np.int64).reshape(1, 1, 6, 6)


@pytest.mark.parametrize(
    ("triangle", "cuts", "causal"),
    [
        (LOWER, (), True),
        (LOWER[0, 0], (), True),
        (LOWER, ((2, 0, "a"), (3, 0, "a")), True),
        (LOWER, ((-2, 0, "a"), (-1, 0, "a")), True),
        (LOWER, ((2, 0, "a"), (3, 0, "b")), False),  # two lengths that need not be equal
        (LOWER, ((3, 0, "a"),), False),  # all rows, some columns
        (LOWER, ((2, 1, "a"), (3, 1, "a")), False),  # not the upper left corner
        (LOWER, ((1, 0, "a"), (3, 0, "a")), False),  # another axis
        (LOWER.swapaxes(2, 3), (), False),  # the upper triangle
        (LOWER[:, :, :4], (), False),  # more columns than rows
        (LOWER[:, :, :1, :1], (), False),  # one entry, which would be broadcast
        (np.repeat(LOWER, 2, axis=1), (), False),  # one triangle a head
        (np.tri(6, k=1, dtype=np.int64), (), False),  # sees one key ahead
    ],
)
def test_only_the_triangle_of_a_square_is_causal(tmp_path, triangle, cuts, causal) -> None:
    path = tmp_path / "mask.onnx"
    path.write_bytes(condition(triangle, cuts))
    model = load(path)
    assert is_causal(model, model.value("mask")) is causal
