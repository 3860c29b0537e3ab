"""What a mask does, found by trying it: its sub-graph is cut out and run at small sizes with the reference evaluator.

Exporters write masks in ways that no list of patterns follows (slice assignments by ScatterND, index arithmetic before
GatherND), yet all they depend on is sizes and a token mask. What is found here names the mask for people; what a target
may rely on is proved elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from explorer.attention.block import MaskTerm
from explorer.attention.mask_elements import is_computed
from explorer.model import Dim, Model, dims

VANISHING = -1e4
"""A logit at or below this leaves no probability in any float type (fp16 ends at −65504).

That is exact in fp32 as long as some kept logit of the row is greater by 104 or more, where exp gives 0.
"""

_MAX_ELEMENTS = 1 << 22
_BATCH, _LENGTH, _LONG = 3, 8, 20
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Nature:
    """What a mask does: hide the keys after the query's position, hide keys that an input marks, hide others, and add
    numbers that only shift the logits."""

    causal: bool = False
    padding: bool = False
    hides: bool = False
    bias: bool = False


_KNOWN: WeakKeyDictionary[Model, dict[MaskTerm, Nature]] = WeakKeyDictionary()


def nature(model: Model, term: MaskTerm) -> Nature:
    """The nature of a term; one that cannot be tried is taken for what it looks like. Layers share what is found."""
    known = _KNOWN.setdefault(model, {})
    if term not in known:
        known[term] = _tried(model, term) or Nature(hides=term.dtype == "bool", bias=term.dtype != "bool")
    return known[term]


def _tried(model: Model, term: MaskTerm) -> Nature | None:
    if term.kind == "causal":
        return Nature(causal=True)
    value = model.value(term.value)
    cut = None if is_computed(value) or not {"S", "T"} <= set(term.layout) else _cut(model, value)
    if cut is None:
        return None
    try:
        run = cut.evaluator(model)
        for sizes in _sizes(model, term):
            try:
                return _classified(model, term, cut, run, sizes)
            except _FAILURES:
                continue  # sizes that this graph does not allow together
    except _FAILURES:
        pass  # an operator that the reference evaluator does not know
    return None


@dataclass(slots=True)
class _Cut:
    """The nodes that compute a value, and what they start from."""

    output: str
    nodes: list[ir.Node] = field(default_factory=list)
    constants: Arrays = field(default_factory=dict)
    shapes: dict[str, np.ndarray] = field(default_factory=dict)
    """Small integer tensors made of sizes; elements may be symbols."""
    inputs: list[tuple[ir.Value, tuple[Dim, ...]]] = field(default_factory=list)

    def evaluator(self, model: Model) -> ReferenceEvaluator:
        """Runs the nodes when given all that they start from."""
        starts = [*self.constants, *self.shapes, *(value.name or "" for value, _ in self.inputs)]
        graph = onnx.helper.make_graph(
            [ir.serde.serialize_node(node) for node in self.nodes],
            "mask",
            [onnx.ValueInfoProto(name=name) for name in starts],
            [onnx.ValueInfoProto(name=self.output)],
        )
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.ir.opset_imports.items()]
        return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))


def _cut(model: Model, value: ir.Value) -> _Cut | None:
    """What computes `value`; None if that takes the body of a loop, or tensors that are large whatever the sizes."""
    cut = _Cut(value.name or "")
    symbols = {name for item in model.ir.graph.inputs for dim in model.shape(item) or () for name in dims.symbols(dim)}
    done: set[int] = set()
    pending = [(value, False)]
    while pending:
        item, ready = pending.pop()
        node = item.producer()
        if ready and node is not None:
            cut.nodes.append(node)
            continue
        if id(item if node is None else node) in done:
            continue
        if (array := model.constant(item, _MAX_ELEMENTS)) is not None:
            cut.constants[item.name or ""] = array
        elif (shape := _shape(model, item, symbols)) is not None:
            cut.shapes[item.name or ""] = shape
        elif node is None:
            dtype, dims_of_item = model.dtype(item), model.shape(item)
            if not item.is_graph_input() or dims_of_item is None or dtype is None or dtype == ir.DataType.STRING:
                return None
            done.add(id(item))
            cut.inputs.append((item, dims_of_item))
        elif _has_body(node) or _fixed_elements(model, item) > _MAX_ELEMENTS:
            return None
        else:
            done.add(id(node))
            pending.append((item, True))
            pending.extend((source, False) for source in node.inputs if source is not None)
    return cut


def _shape(model: Model, value: ir.Value, symbols: set[str]) -> np.ndarray | None:
    """The small tensor of sizes that `value` is, if the sizes of the graph's inputs give all of them."""
    array = model.partial(value)
    known = array is not None and all(dims.symbols(item) <= symbols for item in array.flat if isinstance(item, str))
    return array if known else None


def _has_body(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _fixed_elements(model: Model, value: ir.Value) -> int:
    """How many elements `value` has at least, whatever sizes are chosen: a graph may ask for any amount of memory."""
    return math.prod(dim for dim in model.shape(value) or () if isinstance(dim, int))


def _sizes(model: Model, term: MaskTerm) -> Iterator[dict[str, int]]:
    """Small sizes of the symbols of the graph's inputs: all lengths alike; token masks longer than all; all apart; as
    many as there are keys, where an exporter fixed that."""
    batches: dict[str, int] = {}
    lengths: dict[str, int] = {}
    longest: dict[str, int] = {}
    for value in model.ir.graph.inputs:
        shape, dtype = model.shape(value) or (), model.dtype(value)
        for axis, dim in enumerate(shape):
            whole = dtype is not None and not dtype.is_floating_point() and axis == len(shape) - 1
            for name in dims.symbols(dim):
                (batches if axis == 0 and len(shape) > 1 else lengths)[name] = 0
                if whole:
                    longest[name] = _LONG
    yield dict.fromkeys(lengths, _LENGTH) | dict.fromkeys(batches, _BATCH)
    yield dict.fromkeys(lengths, _LENGTH) | longest | dict.fromkeys(batches, _BATCH)
    yield {name: _LENGTH + 2 * at for at, name in enumerate(lengths)} | dict.fromkeys(batches, _BATCH)
    if term.shape and isinstance(term.shape[-1], int):
        yield dict.fromkeys(lengths, term.shape[-1]) | dict.fromkeys(batches, _BATCH)


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a mask does to the logits of layout […, S, T]: what it hides, and whether it shifts what it does not."""

    hidden: np.ndarray
    shifts: bool


def _classified(model: Model, term: MaskTerm, cut: _Cut, run: ReferenceEvaluator, sizes: Mapping[str, int]) -> Nature:
    """The nature of a mask from what it hides for tokens that are all alike, and for some that differ."""
    given = cut.constants | {name: _evaluated(shape, sizes) for name, shape in cut.shapes.items()}
    shapes = {item: tuple(dims.evaluate(dim, sizes) for dim in item_dims) for item, item_dims in cut.inputs}

    def effect(token: float, marks: tuple[float, slice] | None = None) -> _Effect:
        tokens = {value.name or "": _tokens(model, value, shape, token, marks) for value, shape in shapes.items()}
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            (array,) = run.run(None, given | tokens)
        return _effect(term, np.asarray(array))

    # Whether 1 or 0 marks a token to be seen is for the mask to say; token numbers may pad with another one
    tried = {token: effect(token) for token in ((1.0, 0.0) if shapes else (1.0,))}
    if shapes and np.array_equal(tried[0.0].hidden, tried[1.0].hidden):
        tried[2.0] = effect(2.0)
    plain = min(tried, key=lambda token: tried[token].hidden.sum())
    always = tried[plain].hidden
    causal, exactly = _hides_later(always)
    padding = other = False
    if shapes:
        marked = max((token for token in tried if token != plain), key=lambda token: tried[token].hidden.sum())
        # Two tokens, or, should the mask look at several at once, the second half; never the first token, since a query
        # that sees no key at all is often let off
        some = [effect(plain, (marked, where)).hidden for where in (slice(1, None, 5), slice(_LENGTH // 2, None))]
        more = next((hidden for hidden in some if not np.array_equal(hidden, always)), None)
        padding = more is not None and _hides_columns(more, always)
        # marks on an axis of one entry show nothing, so the whole of another token must do
        differs = any(not np.array_equal(found.hidden, always) for found in tried.values())
        other = not padding and (more is not None or differs)
    # Between 0 and 1 a float input shows whether it is a token mask or numbers to add
    floats = any(dtype is not None and dtype.is_floating_point() for dtype in map(model.dtype, shapes))
    shifts = any(found.shifts for found in (*tried.values(), *([effect(0.5)] if floats else ())))
    return Nature(causal, padding, other or not exactly, shifts)


def _evaluated(shape: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    numbers = [dims.evaluate(item if isinstance(item, str) else int(item), sizes) for item in shape.flat]
    return np.array(numbers, np.int64).reshape(shape.shape)


def _tokens(
    model: Model, value: ir.Value, shape: tuple[int, ...], token: float, marks: tuple[float, slice] | None
) -> np.ndarray:
    """An input of the graph that holds `token`, and another one at some places of the first row; or positions."""
    dtype = (model.dtype(value) or ir.DataType.INT64).numpy()
    if len(shape) == 1 or "position" in (value.name or ""):
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    tokens = np.full(shape, token)
    if marks is not None and shape:
        marked, where = marks
        tokens.reshape(-1, shape[-1])[0, where] = marked
    return tokens.astype(dtype)


def _effect(term: MaskTerm, array: np.ndarray) -> _Effect:
    if array.dtype == bool:
        hidden, shifts = array != term.keep_when, False
    else:
        added = array.astype(np.float64) * term.coefficient
        if np.isnan(added).any():
            raise ValueError("NaN")
        hidden = added <= VANISHING
        shifts = bool((added[~hidden] != 0).any())
    hidden = hidden.reshape((1,) * (len(term.layout) - hidden.ndim) + hidden.shape)
    return _Effect(np.moveaxis(hidden, (term.layout.index("S"), term.layout.index("T")), (-2, -1)), shifts)


def _hides_later(hidden: np.ndarray) -> tuple[bool, bool]:
    """Whether all keys behind the query's position are hidden, and whether such a rule (or none) is all there is."""
    queries, keys = hidden.shape[-2:]
    if not hidden.any() or queries == 1:
        return False, not hidden.any()
    # The last query is at the last key (what came before is cached), or the first one is at the first
    triangles = [~np.tri(queries, keys, past, dtype=bool) for past in {keys - queries, 0}]
    exactly = any(bool((hidden == later).all()) for later in triangles)
    return exactly or any(bool(later.any() and (hidden | ~later).all()) for later in triangles), exactly


def _hides_columns(hidden: np.ndarray, always: np.ndarray) -> bool:
    """True if what is hidden beyond `always` is whole columns, of which only rows that see nothing may differ."""
    blind = hidden.all(axis=-1, keepdims=True)
    columns = (hidden & ~always & ~blind).any(axis=-2, keepdims=True)
    return bool(columns.any() and (blind | (hidden == (always | columns))).all())
