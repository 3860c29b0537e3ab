"""What the algebra says of a mask's elements is what the reference evaluator computes, at all positions and lengths."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_graphs import MaskGraph, Masks, run, written

from explorer.attention.mask_cases import Element, Leaf
from explorer.attention.mask_elements import Elements
from explorer.attention.mask_predicates import Affine, AtLeastZero, Condition, Unknown
from explorer.model import dims, load

LENGTHS = ((1, 1), (1, 4), (2, 2), (3, 3), (4, 2), (5, 6))
Sizes = dict[str, int]


def amount(form: Affine, sizes: Sizes, at: Sizes) -> int:
    return dims.evaluate(form.offset, sizes) + sum(
        dims.evaluate(factor, sizes) * at[name] for name, factor in form.terms
    )


def holds(condition: Condition, sizes: Sizes, at: Sizes) -> bool:
    row = 0
    for place, atom in enumerate(condition.atoms):
        assert isinstance(atom, AtLeastZero)
        row |= (amount(atom.form, sizes, at) >= 0) << place
    return bool(condition.rows >> row & 1)


def evaluated(element: Element, sizes: Sizes, at: Sizes) -> float:
    if isinstance(element, Condition):
        return float(holds(element, sizes, at))
    (leaf,) = [leaf for leaf, condition in element.parts if holds(condition, sizes, at)]
    return leaf if isinstance(leaf, float) else float(amount(leaf, sizes, at))  # type: ignore[arg-type]


def unknown(element: Element) -> bool:
    """Whether it depends on elements or positions that stand for what is not known."""
    parts = [(Affine(), element)] if isinstance(element, Condition) else element.parts
    forms: list[Leaf] = [leaf for leaf, _ in parts]
    for _, condition in parts:
        forms += [atom if isinstance(atom, Unknown) else atom.form for atom in condition.atoms]
    return any(
        isinstance(form, Unknown) or (isinstance(form, Affine) and not {name for name, _ in form.terms} <= {"i", "j"})
        for form in forms
    )


def element_of(model: onnx.ModelProto, path: Path) -> Element:
    loaded = load(written(model, path))
    value = loaded.ir.graph.outputs[0]
    shape = loaded.shape(value)
    assert shape is not None
    index = tuple(Affine() if dim == 1 else Affine.variable(name) for name, dim in zip("ij", shape, strict=True))
    return Elements(loaded, dict(zip("ij", shape, strict=True))).at(value, index)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_element_is_what_the_graph_computes(tmp_path: Path, data: st.DataObject) -> None:
    square = data.draw(st.booleans())
    graph = MaskGraph("seq", "seq") if square else MaskGraph("rows", "cols")
    masks = Masks(data.draw, graph)
    output = masks.number(2) if data.draw(st.booleans()) else masks.condition(3)
    if not graph.nodes:
        return
    model = graph.model(output)
    element = element_of(model, tmp_path / "mask.onnx")
    if unknown(element):
        return
    for rows, cols in LENGTHS:
        if square and rows != cols:
            continue
        array = run(model, rows, cols)
        sizes = {graph.rows: rows, graph.cols: cols}
        for (i, j), computed in np.ndenumerate(array):
            said = evaluated(element, sizes, {"i": i, "j": j})
            assert said == computed or (math.isnan(said) and math.isnan(computed)), (i, j, element)
