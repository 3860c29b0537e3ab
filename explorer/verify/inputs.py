"""Inputs to run a model on: seeded ones that respect its types, dimensions, token ids and masks, or the user's."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import psutil

from explorer.errors import InputError
from explorer.model import Dim, Model
from explorer.model.dims import evaluate, root, substitute, subtract, symbols

DEFAULT_BATCH = 2
DEFAULT_LENGTH = 32

# Added to a logit it hides a key, in float16, too.
HIDDEN = -1e4

Feeds = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

_LAYOUT = ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Transpose")


def input_shapes(
    model: Model, shapes: Shapes | None = None, length: int = DEFAULT_LENGTH, batch: int = DEFAULT_BATCH
) -> dict[str, tuple[int, ...]]:
    """A concrete shape for every graph input.

    `shapes` fixes some inputs; a symbol has one size everywhere. What stays open is `batch` on the first axis, `length`
    elsewhere. InputError if a given shape does not fit the model, or these sizes leave an input without elements.
    """
    shapes = dict(shapes or {})
    declared = {value.name or "": model.shape(value) for value in fed(model)}
    for name in shapes:
        if name not in declared:
            raise InputError(f"expected a shape for one of the inputs {', '.join(declared)}, found one for {name!r}")
    sizes: dict[str, int] = {}
    given = {name: _pairs(name, declared[name], shape) for name, shape in shapes.items()}
    # plain symbols first: they may be what is missing in an expression
    for plain in (True, False):
        for name, pairs in given.items():
            for dim, size in pairs:
                if (symbols(dim) == {dim}) == plain:
                    _bind(name, dim, size, sizes)
    open_dims = [
        (dim, axis) for name, dims in declared.items() if name not in shapes for axis, dim in enumerate(dims or ())
    ]
    for dim, axis in open_dims:
        if isinstance(dim, str) and symbols(dim) == {dim}:
            sizes.setdefault(dim, batch if axis == 0 else length)
    for dim, _ in open_dims:
        for symbol in symbols(dim):
            sizes.setdefault(symbol, length)  # it occurs in expressions alone
    concrete = {
        name: tuple(shapes[name]) if name in shapes else tuple(evaluate(dim, sizes) for dim in dims or ())
        for name, dims in declared.items()
    }
    for name, shape in concrete.items():
        if any(size < 1 and isinstance(dim, str) for dim, size in zip(declared[name] or (), shape, strict=False)):
            chosen = ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
            raise InputError(
                f"expected sizes that fit input {name!r} of {_times(declared[name] or ())}, found {_times(shape)} with "
                f"{chosen}: give shapes"
            )
    return concrete


def symbol_sizes(model: Model, feeds: Feeds) -> dict[str, int]:
    """The sizes that the symbols of `model` have with these inputs, as far as single dimensions tell."""
    sizes: dict[str, int] = {}
    named = [(value.name or "", model.shape(value) or ()) for value in fed(model)]
    pairs = [(name, dim, size) for name, dims in named for dim, size in zip(dims, feeds[name].shape, strict=False)]
    for name, dim, size in sorted(pairs, key=lambda pair: symbols(pair[1]) != {pair[1]}):
        _bind(name, dim, size, sizes)
    return sizes


def _times(shape: Iterable[Dim]) -> str:
    return "×".join(map(str, shape))


def _pairs(name: str, dims: tuple[Dim, ...] | None, shape: tuple[int, ...]) -> list[tuple[Dim, int]]:
    """Each dimension with its given size; InputError if they do not fit. Any shape fits an input of unknown rank."""
    if dims is None:
        return []
    fits = len(dims) == len(shape) and all(size > 0 for size in shape)
    for dim, size in zip(dims, shape, strict=False):
        fits &= size == dim if isinstance(dim, int) else True
    if not fits:
        raise InputError(f"expected a shape like {_times(dims)} for input {name!r}, found {_times(shape)}")
    return list(zip(dims, shape, strict=True))


def _bind(name: str, dim: Dim, size: int, sizes: dict[str, int]) -> None:
    """Note what the size of one dimension says about the symbols in it."""
    left = substitute(dim, sizes)
    unknown = sorted(symbols(left))
    if len(unknown) == 1 and isinstance(found := root(subtract(left, size), unknown[0]), int):
        sizes[unknown[0]] = found
    elif not unknown and left != size:
        raise InputError(
            f"expected one size for the dimension {dim!r} of the inputs, found {left} and {size} "
            f"(in {name!r}): give shapes that agree"
        )


def seeded_inputs(
    model: Model,
    shapes: Shapes | None = None,
    seed: int = 0,
    length: int = DEFAULT_LENGTH,
    batch: int = DEFAULT_BATCH,
    padded_row: bool = False,
) -> Feeds:
    """Random arrays for every graph input, the same for the same seed.

    Floats are standard normal; integers that index a table (token ids, positions) stay inside it; masks hide the last
    quarter of every batch row but the first, and with `padded_row` all of the last row. A mask keeps with 1 and hides
    with 0, but floats that the model adds to logits are 0 and −10,000. InputError if the shapes do not fit the model,
    or the memory.
    """
    if seed < 0:
        raise InputError(f"expected a seed from 0, found {seed}: give another")
    concrete = input_shapes(model, shapes, length, batch)
    size_bytes = 8 * sum(map(math.prod, concrete.values()))  # they are drawn in 64 bits
    if size_bytes > psutil.virtual_memory().total:
        sizes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in concrete.items())
        raise InputError(f"expected inputs that fit in memory, found {sizes}: give smaller shapes")
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in fed(model):
        name = value.name or ""
        dtype, shape = model.dtype(value), concrete[name]
        if dtype is None or dtype.is_string():
            raise InputError(
                f"expected a numeric type for input {name!r}, found {dtype or 'none'}: give the inputs in a file"
            )
        if is_mask(value):
            visible = kept(shape, padded_row)
            added = dtype.is_floating_point() and _is_added(value)
            array = np.where(visible, 0, HIDDEN) if added else visible
        elif dtype == ir.DataType.BOOL:
            array = rng.integers(0, 2, shape)
        elif dtype.is_integer():
            array = rng.integers(0, _table_rows(model, value), shape)
        else:
            array = rng.standard_normal(shape)
        # numpy has no bfloat16; a session takes float32 for it
        feeds[name] = array.astype(np.float32 if dtype == ir.DataType.BFLOAT16 else dtype.numpy())
    return feeds


def load_inputs(model: Model, path: str | Path) -> Feeds:
    """The user's own inputs from an .npz with one array for each graph input; InputError if they do not fit."""
    arrays = _read_npz(Path(path))
    feeds: Feeds = {}
    sizes: dict[str, int] = {}
    for value in fed(model):
        name = value.name or ""
        if name not in arrays:
            raise InputError(
                f"expected an array for input {name!r} in {path}, found only {', '.join(arrays) or 'none'}"
            )
        dtype = model.dtype(value)
        array = arrays[name]
        if dtype is not None and dtype != ir.DataType.BFLOAT16 and array.dtype != dtype.numpy():
            raise InputError(f"expected {dtype.numpy()} for input {name!r} in {path}, found {array.dtype}: convert it")
        for dim, size in _pairs(name, model.shape(value), array.shape):
            _bind(name, dim, size, sizes)
        feeds[name] = array
    return feeds


def _read_npz(path: Path) -> Feeds:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if isinstance(archive, np.lib.npyio.NpzFile):
                arrays = {name: archive[name] for name in archive.files}
                if all(isinstance(array, np.ndarray) for array in arrays.values()):
                    return arrays
            reason = "something else"
    except OSError as error:
        reason = error.strerror or "a damaged file"
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError):
        reason = "another format, or a damaged file"
    raise InputError(
        f"expected an .npz file of plain named arrays at {path}, found {reason}: write it with numpy.savez"
    )


def fed(model: Model) -> list[ir.Value]:
    """Graph inputs that must be fed: an initializer of the same name is a default."""
    initializers = model.ir.graph.initializers
    return [value for value in model.ir.graph.inputs if value.name not in initializers]


def masks(model: Model) -> tuple[ir.Value, ...]:
    """The inputs that say which tokens count, with a row for each batch entry or query, if anything reads them."""
    return tuple(value for value in fed(model) if is_mask(value) and value.uses() and len(model.shape(value) or ()) > 1)


def is_mask(value: ir.Value) -> bool:
    """True if an input is a mask by its name."""
    return "mask" in (value.name or "").lower()


def kept(shape: tuple[int, ...], padded_row: bool = False) -> np.ndarray:
    """1 where a token counts, 0 for the padding at the end of every row but the first.

    With a `padded_row` that is all of the last row, and the first has padding, too.
    """
    mask = np.ones(shape, np.int64)
    if len(shape) >= 2 and shape[-1] >= 4:
        mask[0 if padded_row else 1 :, ..., -(shape[-1] // 4) :] = 0
    if len(shape) >= 2 and padded_row:
        mask[-1] = 0
    return mask


def _is_added(mask: ir.Value) -> bool:
    """True if the mask is a summand of the logits: some Add or attention operator reads it as it is."""
    return any(
        node.op_type == "Add" or (node.op_type in ("Attention", "MultiHeadAttention") and place in (3, 5))
        for node, place in _readers(mask)
    )


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Nodes that read `value`, and at which input, as it is or in another layout or type."""
    pending, seen = [value], {id(value)}
    while pending:
        for use in pending.pop().uses():
            yield use.node, use.idx
            if use.node.op_type in _LAYOUT and use.idx == 0:
                new = [output for output in use.node.outputs if id(output) not in seen]
                seen.update(map(id, new))
                pending += new


def _table_rows(model: Model, value: ir.Value) -> int:
    """How many rows the smallest table has that `value` indexes; 2 if it indexes none."""
    rows: list[int] = []
    for node, place in _readers(value):
        if node.op_type in ("Gather", "GatherElements") and place == 1 and node.inputs[0] is not None:
            dim = (model.shape(node.inputs[0]) or (None,))[0]
            rows += [dim] if isinstance(dim, int) else []
    return min(rows, default=2)
