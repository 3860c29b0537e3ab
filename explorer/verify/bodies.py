"""Made-up Q, K, V, masks and sizes for a block in the body of an If, Loop or Scan, where nothing can be captured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from explorer.attention import Block, MaskTerm
from explorer.attention.block import Layout
from explorer.errors import ModelError
from explorer.model import Model
from explorer.model.cut import Part, surroundings
from explorer.model.dims import evaluate, symbols
from explorer.verify.cases import Case
from explorer.verify.inputs import HIDDEN, Feeds, kept, symbol_sizes
from explorer.verify.meaning import causal_mask, operands

# Sizes that nothing says: of a batch, of positions, of heads and the like.
_BATCH, _LENGTH, _OTHER = 2, 8, 4
_MAX_CONSTANT = 1 << 26


def made_values(model: Model, block: Block, names: Iterable[str], case: Case) -> Feeds:
    """A value for each of `names`, which the block or the nodes around it read, of sizes that fit those of the case.

    What is constant is what it is; operands are standard normal; masks hide the last quarter of the keys from all rows
    but the first. ModelError if one of them is neither of these nor a size.
    """
    rng = np.random.default_rng(case.seed)
    symbol = symbol_sizes(model, case.feeds)
    sizes = _letters(block, symbol)
    sources = {operand.source.value: operand.source.layout for _, operand, _ in operands(block)}
    terms = {term.value: term for term in block.mask.terms}
    feeds: Feeds = {}
    for name in names:
        value = model.value(name)
        if not surroundings(model, [Part((), name)])[0]:
            array = model.constant(value, _MAX_CONSTANT)
        elif name in sources:
            array = rng.standard_normal(_shape(sources[name], sizes))
        elif name in terms:
            array = _mask(block, terms[name], sizes, rng)
        elif block.factor is not None and name == block.factor.value:
            array = rng.uniform(0.5, 1.5, _shape(block.term_layout(block.factor), sizes))
        elif name in case.feeds:
            array = case.feeds[name]
        else:
            array = _size(model, value, symbol)
        dtype = model.dtype(value)
        if array is None or dtype is None:
            raise ModelError(f"expected {name!r} to follow from the sizes of the inputs, found that it does not")
        feeds[name] = array.astype(np.float32 if dtype == ir.DataType.BFLOAT16 else dtype.numpy())
    return feeds


def is_size(model: Model, name: str) -> bool:
    """True if a value consists of sizes, known as expressions over symbols."""
    return model.partial(model.value(name)) is not None


def _letters(block: Block, symbol: dict[str, int]) -> dict[str, int]:
    """A size for each letter; `symbol` gets one for each symbol in those."""
    for letter, dim in block.sizes:
        for unknown in sorted(symbols(dim) - symbol.keys()):
            symbol[unknown] = (
                _BATCH if letter in block.batch else _LENGTH if letter in block.rows + block.keys else _OTHER
            )
    sizes = {letter: evaluate(dim, symbol) for letter, dim in block.sizes}
    if min(sizes.values()) < 1:
        raise ModelError(f"expected sizes above 0 for the axes of {block.label}, found {sizes}")
    return sizes


def _shape(layout: Layout, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in group) for group in layout)


def _mask(block: Block, term: MaskTerm, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    layout = block.term_layout(term)
    visible = causal_mask(block, sizes, layout) if term.kind == "causal" else kept(_shape(layout, sizes)).astype(bool)
    if term.dtype == "bool":
        return np.asarray(visible == term.keep_when)
    if term.kind == "causal":
        return np.where(visible, 0, term.fill / term.coefficient)
    return np.where(visible, rng.standard_normal(visible.shape), HIDDEN / term.coefficient)


def _size(model: Model, value: ir.Value, symbol: Mapping[str, int]) -> np.ndarray | None:
    """A vector of sizes, for these sizes of the symbols."""
    elements = model.partial(value)
    if elements is None or not all(symbols(dim) <= symbol.keys() for dim in elements.ravel().tolist()):
        return None
    numbers = [evaluate(dim, symbol) for dim in elements.ravel().tolist()]
    return np.array(numbers).reshape(elements.shape)
