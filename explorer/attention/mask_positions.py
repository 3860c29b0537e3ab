"""Where an element comes from: operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import onnx_ir as ir

from explorer.attention.mask_cases import Index
from explorer.attention.mask_predicates import Affine, Sizes
from explorer.model import Dim, Model, dims
from explorer.model.constants import attribute

Shape = tuple[Dim, ...]
_FAR = 1 << 40


def source_position(model: Model, node: ir.Node, index: Index, sizes: Sizes) -> Index | None:
    """The position in the first input of `node` at which its result's element `index` lies; None if unknown."""
    rule = _RULES.get(node.op_type)
    source = node.inputs[0] if node.inputs else None
    if rule is None or source is None:
        return None
    before, after = model.shape(source), model.shape(node.outputs[0])
    return None if before is None or after is None else rule(model, node, before, after, index, sizes)


def is_move(node: ir.Node) -> bool:
    """True if `source_position` knows this operator."""
    return node.op_type in _RULES


def broadcast(before: Shape, after: Shape, index: Index) -> Index | None:
    """The position in a tensor of shape `before` that is broadcast to `after`; None if it may be repeated or not."""
    skipped = len(after) - len(before)
    if skipped < 0 or len(index) != len(after):
        return None
    position: list[Affine] = []
    for dim, whole, at in zip(before, after[skipped:], index[skipped:], strict=True):
        if dim == 1:
            position.append(Affine())
        elif at.number == 0 or covers(dim, whole):
            position.append(at)
        else:
            return None
    return tuple(position)


def some_position(value: ir.Value, index: Index, axis: int = 0) -> Affine:
    """A variable for a position that is not known but depends on an element of `value` alone."""
    key = f"{value.name}[{index}]{axis}"
    return Affine.variable(f"?{blake2b(key.encode(), digest_size=12).hexdigest()}")


def covers(dim: Dim, whole: Dim) -> bool:
    """True if an axis of this length is not repeated to become `whole`: it is 1 only where that is 1, too.

    A buffer cut to min(1024, seq) covers seq positions, since only a length of 1 is ever repeated.
    """
    if dim == whole or dims.at_least(dims.subtract(dim, whole), 0):
        return True
    limit = dims.evaluate(dim, dict.fromkeys(dims.symbols(dim), _FAR))
    return limit > 1 and dim == dims.minimum(whole, limit)


def _expand(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    return broadcast(before, after, index)


def _reshape(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    """Axes of length 1 do not count, and axes that are equal at the front and at the back keep their positions.

    In between elements are counted row by row.
    """
    old = [axis for axis, dim in enumerate(before) if dim != 1]
    new = [axis for axis, dim in enumerate(after) if dim != 1]
    position = [Affine()] * len(before)
    while old and new and before[old[0]] == after[new[0]]:
        position[old.pop(0)] = index[new.pop(0)]
    while old and new and before[old[-1]] == after[new[-1]]:
        position[old.pop()] = index[new.pop()]
    flat = Affine()
    for axis in new:
        flat = flat.times(after[axis]) + index[axis]
    for place, axis in enumerate(old):
        parts = flat.split(dims.multiply(*(before[later] for later in old[place + 1 :])), sizes)
        if parts is None:
            for unknown in old:
                position[unknown] = some_position(node.outputs[0], tuple(index[axis] for axis in new), unknown)
            break
        position[axis], flat = parts
    return tuple(position)


def _resize(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    """Each element is some element of the source, as long as nothing is interpolated or made up."""
    made_up = attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if made_up or attribute(node, "mode", "nearest") != "nearest":
        return None
    return tuple(some_position(node.outputs[0], index, axis) for axis in range(len(before)))


def _transpose(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    perm = attribute(node, "perm", tuple(reversed(range(len(before)))))
    position = [Affine()] * len(before)
    for at, axis in zip(index, perm, strict=True):
        position[axis] = at
    return tuple(position)


def _tile(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    repeats = model.partial(node.inputs[1]) if len(node.inputs) > 1 else None
    if repeats is None or len(repeats) != len(before):
        return None
    if any(dim != 1 and times != 1 for dim, times in zip(before, repeats, strict=True)):
        return None
    return tuple(Affine() if dim == 1 else at for dim, at in zip(before, index, strict=True))


def _slice(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    if "starts" in node.attributes:  # opset 9 and before
        starts = np.array(attribute(node, "starts", ()))
        axes, steps = attribute(node, "axes", None), None
    else:
        inputs = [*node.inputs, None, None, None]
        partial, axes, steps = model.partial(inputs[1]), model.constant(inputs[3]), model.constant(inputs[4])
        missing = any(value is not None and array is None for value, array in ((inputs[3], axes), (inputs[4], steps)))
        if partial is None or missing:
            return None
        starts = partial
    position = list(index)
    for at, start in enumerate(starts):
        axis = at if axes is None else int(axes[at])
        step = 1 if steps is None else int(steps[at])
        first = _first(start if isinstance(start, str) else int(start), before[axis])
        if first is None or step < 1:
            return None
        position[axis] = index[axis].times(step) + Affine(offset=first)
    return tuple(position)


def _first(start: Dim, size: Dim) -> Dim | None:
    """The first position that a Slice keeps; a negative start counts from the end."""
    if isinstance(start, int) and start < 0:
        start = dims.add(size, start)
    return start if dims.at_least(start, 0) else None


def _same(model: Model, node: ir.Node, before: Shape, after: Shape, index: Index, sizes: Sizes) -> Index | None:
    return index


_RULES: dict[str, Callable[[Model, ir.Node, Shape, Shape, Index, Sizes], Index | None]] = {
    "Identity": _same,
    "Expand": _expand,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
