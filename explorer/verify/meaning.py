"""What a block means: its output in float64, from what it received."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from explorer.attention import Block, MaskTerm, Operand
from explorer.attention.block import Factor, Layout
from explorer.errors import ModelError
from explorer.model.dims import evaluate, symbols
from explorer.verify.oracle import arrange, attention, masked_rows, measure


@dataclass(frozen=True, slots=True, eq=False)
class Meaning:
    """The output of a block in float64, in the layout of the model's, and which queries see no key."""

    block: Block
    sizes: Mapping[str, int]
    output: np.ndarray
    masked: np.ndarray
    """[B, N, S] of bool."""

    @property
    def masked_elements(self) -> np.ndarray:
        """The elements of the output that belong to queries without a key."""
        whole = np.broadcast_to(self.masked[..., None], (*self.masked.shape, self.sizes["V"]))
        assert self.block.output is not None
        return arrange(whole, _bnsv(self.block), self.block.output.layout, self.sizes).reshape(self.output.shape)

    def masked_nan(self, output: np.ndarray) -> int:
        """How many queries without a key have a NaN in this output of the block."""
        assert self.block.output is not None
        nan = arrange(np.isnan(output), self.block.output.layout, _bnsv(self.block), self.sizes)
        return int(np.count_nonzero(nan.any(axis=-1) & self.masked))


def operands(block: Block) -> tuple[tuple[str, Operand, Layout], ...]:
    """Role, operand and axes in the formula of query, key and value."""
    assert block.query is not None
    assert block.key is not None
    assert block.value is not None
    return (
        ("query", block.query, (block.batch, block.heads, block.rows, "H")),
        ("key", block.key, (block.batch, block.heads, block.keys, "H")),
        ("value", block.value, (block.batch, block.heads, block.keys, "V")),
    )


def reads(block: Block) -> dict[str, str]:
    """Name and role of each value that the meaning depends on; a causal mask is proved, so that it is made anew."""
    names = {operand.source.value: role for role, operand, _ in operands(block)}
    names |= {term.value: "mask" for term in block.mask.terms if term.kind != "causal"}
    if block.factor is not None:
        names[block.factor.value] = "factor"
    return names


def meaning(
    block: Block, values: Mapping[str, np.ndarray], shape: tuple[int, ...], symbol: Mapping[str, int]
) -> Meaning:
    """What `block` computes from `values`, in `shape` if it has as many elements: that which the model gives it.

    `symbol` has the sizes of symbols that are known, for what the values do not tell. ModelError if the values do not
    have the axes that the block was read with.
    """
    assert block.output is not None
    assert block.scale is not None
    sizes = _sizes(block, values, symbol)

    def as_logits(part: MaskTerm | Factor) -> np.ndarray:
        array = values[part.value]
        groups = part.layout[len(part.layout) - array.ndim :]
        layout = tuple("" if size == 1 else group for group, size in zip(groups, array.shape, strict=True))
        return _arranged(array, part.value, layout, mask, sizes)

    query, key, value = (
        _arranged(values[item.source.value], item.source.value, item.source.layout, wanted, sizes)
        for _, item, wanted in operands(block)
    )
    mask = (block.batch, block.heads, block.rows, block.keys)
    # A causal mask is proved, and the fused model may have no tensor of it
    terms = [
        (replace(term, dtype="bool", keep_when=True), causal_mask(block, sizes, mask))
        if term.kind == "causal"
        else (term, as_logits(term))
        for term in block.mask.terms
    ]
    factor = None if block.factor is None else as_logits(block.factor)
    result = attention(query, key, value, block.scale, terms, block.softcap, factor)
    if block.nan_guard:
        result = np.nan_to_num(result, nan=0.0)
    masked = masked_rows((*result.shape[:3], key.shape[2]), terms)
    result = arrange(result, _bnsv(block), block.output.layout, sizes)
    # A model whose block has another number of elements is compared as it is, and fails by its shape
    result = result.reshape(shape) if result.size == math.prod(shape) else result
    return Meaning(block, sizes, result, masked)


def causal_mask(block: Block, sizes: Mapping[str, int], wanted: Layout) -> np.ndarray:
    """True where a query may see a key that is not behind it, in a layout of the logits' letters."""
    rows, keys = (math.prod(sizes[letter] for letter in letters) for letters in (block.rows, block.keys))
    return np.broadcast_to(
        np.tri(rows, keys, dtype=bool), [math.prod(sizes[letter] for letter in group) for group in wanted]
    )


def _sizes(block: Block, values: Mapping[str, np.ndarray], symbol: Mapping[str, int]) -> dict[str, int]:
    """A size for each letter: as the operands say, and where they do not, as the symbols do."""
    given = [(item.source.layout, values[item.source.value].shape) for _, item, _ in operands(block)]
    sizes = measure({letter: dim for letter, dim in block.sizes if isinstance(dim, int)}, given)
    for letter, dim in block.sizes:
        if letter not in sizes and symbols(dim) <= symbol.keys():
            sizes[letter] = evaluate(dim, symbol)
    return measure(sizes, given)


def _arranged(array: np.ndarray, name: str, layout: Layout, wanted: Layout, sizes: Mapping[str, int]) -> np.ndarray:
    """`array` in another layout; ModelError if it does not have the axes of `layout`."""
    shape = [math.prod(sizes.get(letter, 0) for letter in group) for group in layout]
    if list(array.shape) != shape:
        raise ModelError(f"expected {name!r} of shape {shape} with the axes {layout}, found {list(array.shape)}")
    return arrange(array, layout, wanted, sizes)


def _bnsv(block: Block) -> Layout:
    return (block.batch, block.heads, block.rows, "V")
