"""Sizes at which a model runs are found where tables of positions and sizes written into a graph limit them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from explorer.errors import InputError, SessionError
from explorer.verify import fitting_inputs, seeded_inputs, verify
from explorer.verify.fit import outside_tables
from explorer.verify.runs import Runner

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
# Positions 0, 1, … of each token, in a table of 16 rows
POSITIONS = """g (int64[b, s] input_ids) => (float[b, s, 4] y) {
    size = Shape <start = 1, end = 2> (input_ids)
    scalar = Squeeze (size)
    zero = Constant <value = int64 {0}> () one = Constant <value = int64 {1}> ()
    positions = Range (zero, scalar, one)
    word = Gather (words, input_ids)
    place = Gather (table, positions)
    y = Add (word, place)
}"""
# The same with the table cut to length: no Gather, so that no index tells
CUT = """g (int64[b, s] input_ids) => (float[b, s, 4] y) {
    size = Shape <start = 1, end = 2> (input_ids)
    zero = Constant <value = int64[1] {0}> ()
    place = Slice (table, zero, size, zero)
    word = Gather (words, input_ids)
    y = Add (word, place)
}"""
# What a tracer writes where it took a size for a number
FIXED = """g (float[b, s, 4] x) => (float[m, 28] y) {
    shape = Constant <value = int64[2] {BATCH, 28}> ()
    y = Reshape (x, shape)
}"""


@pytest.fixture
def model(opened):
    def model(graph: str, rows: int = 16):
        proto = onnx.parser.parse_model(HEADER + graph)
        for name, length in (("words", 50), ("table", rows)):
            if name in graph:
                proto.graph.initializer.append(numpy_helper.from_array(np.ones((length, 4), np.float32), name))
        return opened(proto)

    return model


@pytest.fixture
def runner(worker, tmp_path):
    (tmp_path / "runs").mkdir()
    return Runner(worker, tmp_path / "runs", provider="cpu")


@pytest.mark.parametrize(("rows", "length"), [(16, 16), (11, 11), (32, 32), (100, 32)])
@pytest.mark.parametrize("graph", [POSITIONS, CUT], ids=["gathered", "cut"])
def test_the_largest_length_that_runs(worker, model, graph, rows, length):
    verdict = verify(worker, (one := model(graph, rows)), one, [], provider="cpu")
    assert verdict.passed
    assert dict(verdict.shapes) == {"input_ids": (2, length)}
    assert fitting_inputs(worker, one, provider="cpu")["input_ids"].shape == (2, length)


def test_long_lengths_are_halved_first(worker, model):
    one = model(POSITIONS, 100)
    assert fitting_inputs(worker, one, length=256, provider="cpu")["input_ids"].shape == (2, 64)
    two = model(POSITIONS, 300)
    assert fitting_inputs(worker, two, length=256, provider="cpu")["input_ids"].shape == (2, 256)


@pytest.mark.parametrize(("batch", "shape"), [("2", (2, 7, 4)), ("1", (1, 7, 4)), ("-1", (2, 28, 4)), ("7", (7, 7, 4))])
def test_sizes_that_were_written_into_the_graph(worker, model, batch, shape):
    assert fitting_inputs(worker, model(FIXED.replace("BATCH", batch)), provider="cpu")["x"].shape == shape


def test_given_shapes_are_kept_and_their_error_is_told(worker, model):
    one = model(POSITIONS)
    assert fitting_inputs(worker, one, {"input_ids": (3, 5)}, provider="cpu")["input_ids"].shape == (3, 5)
    with pytest.raises(InputError) as caught:
        fitting_inputs(worker, one, {"input_ids": (3, 17)}, provider="cpu")
    assert "expected indices below 16, the rows of the table 'table', found 16" in str(caught.value)
    assert "--shape" in str(caught.value)
    with pytest.raises(InputError, match="rows of the table"):
        verify(worker, one, one, [], shapes={"input_ids": (3, 17)}, provider="cpu")


def test_where_nothing_runs_the_first_try_is_told(worker, model):
    with pytest.raises(
        SessionError, match=r"cannot be reshaped .*; give shapes that the model is made for \(--shape\)"
    ):
        fitting_inputs(worker, model(FIXED.replace("BATCH", "31")), provider="cpu")


def test_awkward_lengths_stay_inside_the_tables(worker, model):
    verdict = verify(worker, (one := model(POSITIONS, 5)), one, [], provider="cpu")
    assert [dict(case.shapes)["input_ids"] for case in verdict.cases] == [(2, 5), (2, 5), (1, 5), (2, 1), (2, 3)]


class TestTables:
    """A GPU does not look at an index: it must be looked at before."""

    def feeds(self, one, length: int) -> dict[str, np.ndarray]:
        return seeded_inputs(one, {"input_ids": (1, length)})

    def test_indices_that_the_model_computes(self, runner, model):
        one = model(POSITIONS)
        found = outside_tables(runner, one, [self.feeds(one, length) for length in (1, 16, 17)])
        assert found[:2] == [None, None]
        assert "found 16" in str(found[2])
        assert runner.device == "", "a look at indices is no run"

    def test_indices_that_are_inputs(self, runner, model):
        one = model(POSITIONS)
        feeds = {"input_ids": np.array([[0, 49, -50]]), "beyond": np.array([[50]]), "before": np.array([[-51]])}
        found = outside_tables(runner, one, [{"input_ids": array} for array in feeds.values()])
        assert [error is None for error in found] == [True, False, False]
        assert "table 'words', found 50" in str(found[1])

    def test_indices_that_the_network_computes_are_its_own_matter(self, runner, model, monkeypatch):
        graph = """g (float[b, s, 4] x) => (float[b, s, 4] y) {
            scores = MatMul (x, table) best = ArgMax <axis = 2, keepdims = 0> (scores) y = Gather (words, best) }"""
        one = model(graph.replace("MatMul (x, table)", "Mul (x, table)"), 1)
        monkeypatch.setattr("explorer.verify.fit._MAX_CONSTANT", 3)
        monkeypatch.setattr(runner, "run", None)
        assert outside_tables(runner, one, [{"x": np.zeros((1, 2, 4), np.float32)}]) == [None]

    def test_what_cannot_be_computed_alone_is_left_to_the_run(self, runner, model):
        one = model(POSITIONS)
        assert outside_tables(runner, one, [{"input_ids": np.zeros(3, np.int64)}]) == [None]
