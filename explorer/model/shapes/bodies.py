"""If, Loop and Scan: their bodies are inferred, too, and what comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from explorer.model.dims import Dim, is_known
from explorer.model.shapes.call import RULE_ERRORS, Shape
from explorer.model.shapes.merge import agree
from explorer.model.types import TensorType, unknown

if TYPE_CHECKING:
    from explorer.model.shapes.infer import Pass

_SCALAR: Shape = ()
# A body is seen as often as the types of what it carries along change; bodies in bodies multiply that.
_ROUNDS = 3
_MAX_DEPTH = 3


def _enter(run: Pass, body: ir.Graph, name: str) -> None:
    """Infer a body whose inputs are known."""
    outer = run.scope
    run.scope = f"{outer}{name}/"
    try:
        run.graph(body)
    finally:
        run.scope = outer


def _if(run: Pass, node: ir.Node) -> None:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch, name in zip(branches, ("then", "else"), strict=True):
        _enter(run, branch, f"{node.outputs[0].name}/{name}")
    condition = None if node.inputs[0] is None else run.folder.array(node.inputs[0], 1)
    taken = branches if condition is None else [branches[0] if condition.all() else branches[1]]
    for position, output in enumerate(node.outputs):
        types = [_type(run, branch.outputs[position]) for branch in taken]
        found = types[0] if len(types) == 1 else agree(types[0], types[1], f"{run.scope}{output.name}")
        run.keep(output, found.dtype, found.shape)


def _loop(run: Pass, node: ir.Node) -> None:
    body = node.attributes["body"].as_graph()
    count = len(node.inputs) - 2
    _set(run, body.inputs[0], TensorType(ir.DataType.INT64, _SCALAR))
    _set(run, body.inputs[1], TensorType(ir.DataType.BOOL, _SCALAR))
    carried = _carry(run, node, body, body.inputs[2:], node.inputs[2:], body.outputs[1 : 1 + count])
    _give_carried(run, node, carried, node.inputs[2:])
    for output, inner in zip(node.outputs[count:], body.outputs[1 + count :], strict=True):
        _give_stacked(run, output, inner, 0, None)


def _scan(run: Pass, node: ir.Node) -> None:
    body = node.attributes["body"].as_graph()
    scanned = node.attributes["num_scan_inputs"].as_int()
    count = len(node.inputs) - scanned
    axes = _axes(node, "scan_input_axes", scanned)
    length: Dim | None = None
    for outer, inner, axis in zip(node.inputs[count:], body.inputs[count:], axes, strict=True):
        found = _type(run, outer)
        shape = found.shape
        if shape is not None:
            length = shape[axis]
            axis %= len(shape)
            shape = shape[:axis] + shape[axis + 1 :]
        _set(run, inner, TensorType(found.dtype, shape))
    carried = _carry(run, node, body, body.inputs[:count], node.inputs[:count], body.outputs[:count])
    _give_carried(run, node, carried, node.inputs[:count])
    stacked = node.outputs[count:]
    for output, inner, axis in zip(
        stacked, body.outputs[count:], _axes(node, "scan_output_axes", len(stacked)), strict=True
    ):
        _give_stacked(run, output, inner, axis, length)


def _axes(node: ir.Node, name: str, count: int) -> Sequence[int]:
    found = node.attributes.get(name)
    return [0] * count if found is None else found.as_ints()


def _carry(
    run: Pass,
    node: ir.Node,
    body: ir.Graph,
    inside: Sequence[ir.Value],
    initial: Sequence[ir.Value | None],
    results: Sequence[ir.Value],
) -> list[TensorType]:
    """Infer a body that is repeated; types that what it carries along has before and after every repetition.

    They are what it begins with, if the body keeps that; what the body changes is left open until it keeps what is
    left.
    """
    types = [_type(run, value) for value in initial]
    nested = run.scope.count("/body/")
    folder = run.folder
    for round_ in range(_ROUNDS + 1):
        if round_ == _ROUNDS or nested >= _MAX_DEPTH:
            types = [TensorType(known.dtype, None) for known in types]
        for value, known in zip(inside, types, strict=True):
            _set(run, value, known)
        run.forget()
        _enter(run, body, f"{node.outputs[0].name}/body")
        after = [
            agree(known, _type(run, value), f"{run.scope}{inner.name}")
            for known, value, inner in zip(types, results, inside, strict=True)
        ]
        if after == types:
            break
        types = after
    run.folder = folder
    return types


def _give_carried(run: Pass, node: ir.Node, types: Sequence[TensorType], initial: Sequence[ir.Value | None]) -> None:
    for output, known, value in zip(node.outputs, types, initial, strict=False):
        before, shape = _type(run, value).shape, known.shape
        if shape is not None and before is not None:
            shape = tuple(
                dim if dim == was else _open(run, output, axis)
                for axis, (dim, was) in enumerate(zip(shape, before, strict=True))
            )
        run.keep(output, known.dtype, shape)


def _give_stacked(run: Pass, output: ir.Value, inner: ir.Value, axis: int, length: Dim | None) -> None:
    """What a body gives each time, stacked along a new axis. What is unknown inside is another unknown outside."""
    found = _type(run, inner)
    if found.shape is None:
        run.keep(output, found.dtype, None)
        return
    axis %= len(found.shape) + 1
    dims: list[Dim | None] = [dim if is_known(dim) else None for dim in found.shape]
    dims.insert(axis, length)
    run.keep(output, found.dtype, tuple(_open(run, output, at) if dim is None else dim for at, dim in enumerate(dims)))


def _open(run: Pass, value: ir.Value, axis: int) -> Dim:
    return unknown(f"{run.scope}{value.name}.{axis}")


def _type(run: Pass, value: ir.Value | None) -> TensorType:
    found = None if value is None else run.types.get(id(value))
    return TensorType(None, None) if found is None else found


def _set(run: Pass, value: ir.Value, known: TensorType) -> None:
    """Note the type of a body's input, completed by what the body declares."""
    run.types.pop(id(value), None)
    run.keep(value, known.dtype, known.shape)


def _safely(rule: Callable[[Pass, ir.Node], None]) -> Callable[[Pass, ir.Node], None]:
    """On an ill-formed node, what was known of its outputs."""

    def apply(run: Pass, node: ir.Node) -> None:
        folder = run.folder
        try:
            rule(run, node)
        except RULE_ERRORS:
            run.folder = folder
            for output in node.outputs:
                run.keep(output, None, None)

    return apply


BODIES: Mapping[str, Callable[[Pass, ir.Node], None]] = {
    "If": _safely(_if),
    "Loop": _safely(_loop),
    "Scan": _safely(_scan),
}
