"""A mask is called causal exactly if it provably keeps a key at or before the query, in a square."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_graphs import BOOL, FLOAT, INT64, LONGEST, MaskGraph, Masks, Shape, run, written
from onnx import helper

from explorer.attention.block import MaskTerm
from explorer.attention.mask import additive_term, is_causal
from explorer.model import Model, load

LAYOUT = ("S", "T")


def loaded(graph: MaskGraph, output: str, path: Path) -> Model:
    return load(written(graph.model(output), path / "mask.onnx"))


def says(graph: MaskGraph, output: str, path: Path, keep_when: bool = True) -> bool:
    """Whether the condition `output` is called causal; the logits are the graph's input."""
    model = loaded(graph, output, path)
    return is_causal(model, model.value(output), model.value("x"), LAYOUT, keep_when)


def term(graph: MaskGraph, output: str, path: Path, coefficient: float = 1.0) -> MaskTerm:
    model = loaded(graph, output, path)
    found = additive_term(model, model.value(output), coefficient, LAYOUT, model.value("x"))
    assert found is not None
    return found


def triangle(hidden: np.ndarray, fill: float) -> bool:
    return np.array_equal(hidden, np.where(np.tri(*hidden.shape, dtype=bool), 0, np.float32(fill)))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_condition_on_row_minus_column_is_causal_exactly_if_it_is_the_triangle(tmp_path, data) -> None:
    graph = MaskGraph("seq", "seq")
    output = Masks(data.draw, graph).band(2)
    keep_when = data.draw(st.booleans())
    kept = run(graph.model(output), LONGEST, LONGEST) == keep_when
    assert says(graph, output, tmp_path, keep_when) is bool(np.array_equal(kept, np.tri(LONGEST, dtype=bool)))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_to_add_are_causal_exactly_if_they_are_the_triangle_and_vanish(tmp_path, data) -> None:
    graph = MaskGraph("seq", "seq")
    masks = Masks(data.draw, graph)
    output, fill = masks.added(masks.band(1))
    coefficient = data.draw(st.sampled_from([1.0, 2.0, -1.0]))
    found = term(graph, output, tmp_path, coefficient)
    causal = triangle(run(graph.model(output), LONGEST, LONGEST), fill) and fill * coefficient <= -1e4
    assert found.kind == ("causal" if causal else "additive")
    if causal:
        assert (found.fill, found.coefficient, found.dtype) == (
            float(np.float32(fill)) * coefficient,
            coefficient,
            "float32",
        )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_other_condition_is_called_causal(tmp_path, data) -> None:
    graph = MaskGraph("seq", "seq")
    output = Masks(data.draw, graph).condition(3)
    if not graph.nodes or not says(graph, output, tmp_path):
        return
    for length in range(1, LONGEST + 1):
        kept = np.broadcast_to(run(graph.model(output), length, length), (length, length))
        assert np.array_equal(kept, np.tri(length, dtype=bool))


def buffer(graph: MaskGraph, array: np.ndarray, lengths: str | None = None) -> str:
    """`array` cut to the lengths of the logits."""
    cut, axes = graph.lengths() if lengths is None else lengths, graph.constant([0, 1])
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    shape: Shape = (graph.rows, graph.cols)
    return graph.node("Slice", [graph.constant(array), graph.constant([0, 0]), cut, axes], dtype, shape)


TRIANGLE = np.tri(LONGEST, dtype=bool)
FLIPPED = TRIANGLE.copy()
FLIPPED[5, 2] = False


@pytest.mark.parametrize(
    ("array", "causal"),
    [
        (TRIANGLE, True),
        (FLIPPED, False),
        (TRIANGLE.T.copy(), False),
        (np.tri(LONGEST, k=1, dtype=bool), False),
        (np.tri(LONGEST, k=-1, dtype=bool), False),
        (np.tri(LONGEST, dtype=bool) & ~np.tri(LONGEST, k=-3, dtype=bool), False),  # a window
        (np.ones((LONGEST, LONGEST), bool), False),
    ],
)
def test_a_buffer_is_compared_as_a_whole(tmp_path, array, causal) -> None:
    graph = MaskGraph("seq", "seq")
    assert says(graph, buffer(graph, array), tmp_path) is causal


def test_a_triangle_of_other_lengths_than_the_logits_is_not_causal(tmp_path) -> None:
    graph = MaskGraph("rows", "cols")
    assert not says(graph, buffer(graph, TRIANGLE), tmp_path)


def test_a_triangle_that_may_be_broadcast_is_not_causal(tmp_path) -> None:
    graph = MaskGraph("seq", "seq")
    output = buffer(graph, TRIANGLE)
    proto = graph.model(output)
    # logits of lengths that need not be those of the mask
    proto.graph.input.append(helper.make_tensor_value_info("y", FLOAT, ("one", "one")))
    model = load(written(proto, tmp_path / "mask.onnx"))
    assert is_causal(model, model.value(output), model.value("x"), LAYOUT)
    assert not is_causal(model, model.value(output), model.value("y"), LAYOUT)
    single = MaskGraph(1, 1)  # type: ignore[arg-type]
    assert not says(single, single.node("Identity", [single.constant(TRIANGLE[:1, :1])], BOOL, (1, 1)), tmp_path)


def test_a_cached_past_is_not_causal(tmp_path) -> None:
    graph = MaskGraph("seq", "total")
    zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
    past = graph.node("Sub", [graph.length(1), graph.length(0)], INT64, ())
    rows = graph.node("Range", [past, graph.length(1), one], INT64, ("seq",))
    cols = graph.node("Range", [zero, graph.length(1), one], INT64, ("total",))
    rows = graph.node("Unsqueeze", [rows, graph.constant([1])], INT64, ("seq", 1))
    output = graph.node("LessOrEqual", [cols, rows], BOOL, ("seq", "total"))
    assert not says(graph, output, tmp_path)


def padded(graph: MaskGraph) -> str:
    """The triangle, and some columns of it hidden by something that is not known."""
    seen = graph.node("ReduceMax", ["x"], FLOAT, (1, graph.cols), axes=[0])
    seen = graph.node("Cast", [seen], BOOL, (1, graph.cols), to=BOOL)
    return graph.node("And", [buffer(graph, TRIANGLE), seen], BOOL, (graph.rows, graph.cols))


def static(graph: MaskGraph) -> str:
    return graph.node("Identity", [graph.constant(np.tri(5, dtype=bool))], BOOL, (5, 5))


def axes_of_length_one(graph: MaskGraph) -> str:
    shape: Shape = (1, 1, graph.rows, graph.cols)
    whole = graph.node("Unsqueeze", [buffer(graph, TRIANGLE), graph.constant([0, 1])], BOOL, shape)
    return graph.node("Squeeze", [whole, graph.constant([0, 1])], BOOL, shape[2:])


def repeated_heads(graph: MaskGraph) -> str:
    """[1, 1, S, S] → [2, 3, S, S] → [6, S, S], of which one."""
    shape: Shape = (graph.rows, graph.cols)
    whole = graph.node("Unsqueeze", [buffer(graph, TRIANGLE), graph.constant([0, 1])], BOOL, (1, 1, *shape))
    lengths = graph.node("Concat", [graph.constant([2, 3]), graph.lengths()], INT64, (4,), axis=0)
    heads = graph.node("Expand", [whole, lengths], BOOL, (2, 3, *shape))
    merged = graph.node("Concat", [graph.constant([6]), graph.lengths()], INT64, (3,), axis=0)
    folded = graph.node("Reshape", [heads, merged], BOOL, (6, *shape))
    return graph.node("Gather", [folded, graph.constant(np.int64(4))], BOOL, shape, axis=0)


@pytest.mark.parametrize(
    ("lengths", "write", "causal"),
    [
        (("seq", "seq"), padded, False),
        ((5, 5), static, True),
        (("seq", "seq"), axes_of_length_one, True),
        (("seq", "seq"), repeated_heads, True),
    ],
)
def test_more_spellings(tmp_path, lengths, write: Callable[[MaskGraph], str], causal) -> None:
    graph = MaskGraph(*lengths)
    assert says(graph, write(graph), tmp_path) is causal
