"""What each operator that already is attention says of itself: one small reader for each, by its schema.

Schemas: `onnx.defs` for ai.onnx.Attention (23 to 25), ONNX Runtime's contrib operators for com.microsoft.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import onnx_ir as ir

from explorer.attention.block import Layout
from explorer.attention.walk import name_of
from explorer.model import Dim, Model, dtype_name
from explorer.model.constants import attribute
from explorer.model.dims import divide

# Letters as in `block`, and: G heads of key and value, L new keys, P keys of the past. "" is an axis that tells no
# size: the input of a projection, or what is packed side by side.
_QUERY: dict[int, Layout] = {2: ("S", "NH"), 3: ("B", "S", "NH"), 4: ("B", "N", "S", "H")}
_KEY: dict[int, Layout] = {2: ("L", "GH"), 3: ("B", "L", "GH"), 4: ("B", "G", "L", "H")}
_VALUE: dict[int, Layout] = {2: ("L", "GV"), 3: ("B", "L", "GV"), 4: ("B", "G", "L", "V")}
_OUTPUT: dict[int, Layout] = {2: ("S", "NV"), 3: ("B", "S", "NV"), 4: ("B", "N", "S", "V")}
_WHOLE: dict[int, Layout] = {2: ("S", ""), 3: ("B", "S", "")}
_PACKED_QKV: dict[int, Layout] = {4: ("S", "N", "", "H"), 5: ("B", "S", "N", "", "H")}
_PACKED_KV: dict[int, Layout] = {5: ("B", "L", "N", "", "H")}
_CACHE: dict[int, Layout] = {4: ("B", "G", "P", "H"), 5: ("", "B", "N", "P", "H")}
_LOGITS: Layout = ("B", "N", "S", "T")
_FILTERED = -1e4  # what com.microsoft adds to hidden logits unless it is told another number


@dataclass(frozen=True, slots=True)
class MaskInput:
    """A mask that the operator is given: numbers to add to the logits, or (boolean) 1 for the keys to keep."""

    value: ir.Value
    kind: Literal["additive", "boolean"]
    layout: Layout
    fill: float = 0.0


@dataclass(slots=True)
class Facts:
    """What one operator says. Letters are those of `block`, and G, L, P as above."""

    num_heads: int | None
    kv_num_heads: int | None
    """None: as many as the query has, or what a shape says."""
    query: ir.Value | None = None
    key: ir.Value | None = None
    value: ir.Value | None = None
    """Values that hold Q, K and V as the products read them; None where the operator changes or joins them first."""
    layouts: list[tuple[ir.Value, Layout]] = field(default_factory=list)
    """Values whose shapes tell sizes, with what lies on their axes."""
    sizes: dict[str, Dim] = field(default_factory=dict)
    """Sizes of letters that no layout tells."""
    packed: bool = False
    """Q, K and V come from one value: there are as many new keys as queries."""
    past: bool = False
    """Keys and values of a cache are put before the new ones."""
    dtype: str = ""
    softmax_dtype: str = ""
    scale: float | None = None
    """None: 1/√H."""
    softcap: float | None = None
    masks: list[MaskInput] = field(default_factory=list)
    causal: bool = False
    padding: bool = False
    """Keys at the ends of sequences are hidden, as an input says."""
    hides: bool = False
    """Other keys are hidden."""
    nan_guard: bool = False
    inside: list[str] = field(default_factory=list)
    """Sentences on what the operator does beside attention."""


@dataclass(frozen=True, slots=True)
class Call:
    """A node of one of these operators: its inputs by position, its attributes by name."""

    model: Model
    node: ir.Node

    def input(self, at: int) -> ir.Value | None:
        """None if it is left out."""
        return self.node.inputs[at] if at < len(self.node.inputs) else None

    def shape(self, at: int) -> tuple[Dim, ...]:
        """() where the input is left out or nothing is known of its shape."""
        value = self.input(at)
        return (None if value is None else self.model.shape(value)) or ()

    def name(self, at: int) -> str:
        """The name of an input, in quotes."""
        value = self.input(at)
        return repr("" if value is None else name_of(value))

    def get(self, attribute_name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return attribute(self.node, attribute_name, default)

    def see(self, facts: Facts, value: ir.Value | None, layouts: dict[int, Layout]) -> None:
        """Note what lies on the axes of `value`, by its rank."""
        shape = None if value is None else self.model.shape(value)
        if value is not None and shape is not None and len(shape) in layouts:
            facts.layouts.append((value, layouts[len(shape)]))


def read(model: Model, node: ir.Node) -> Facts:
    """What `node` says of the attention that it computes; KeyError if it is none of these operators."""
    call = Call(model, node)
    return _READERS[_operator(node)](call, _common(call))


def is_fused(node: ir.Node) -> bool:
    """True if `node` is an operator that computes a whole attention block."""
    return _operator(node) in _READERS


def _operator(node: ir.Node) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _common(call: Call) -> Facts:
    """What nearly all have; 0 as scale or softcap is how com.microsoft says that there is none."""
    output, first = call.node.outputs[0], call.input(0)
    dtype = call.model.dtype(output) or (None if first is None else call.model.dtype(first))
    facts = Facts(
        num_heads=call.get("num_heads"),
        kv_num_heads=call.get("kv_num_heads"),
        scale=call.get("scale") or None,
        softcap=call.get("softcap") or None,
        dtype=dtype_name(dtype),
        causal=bool(call.get("unidirectional", 0)),
    )
    call.see(facts, output, _OUTPUT)
    return facts


def _standard(call: Call, facts: Facts) -> Facts:
    """ai.onnx.Attention: Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen."""
    facts.num_heads, facts.scale = call.get("q_num_heads"), call.get("scale")
    _operands(call, facts, past=4)
    precision = call.get("softmax_precision")
    facts.softmax_dtype = facts.dtype if precision is None else dtype_name(ir.DataType(precision))
    facts.nan_guard = True
    facts.causal = bool(call.get("is_causal", 0))
    if (mask := call.input(3)) is not None:
        keeps = call.model.dtype(mask) == ir.DataType.BOOL
        facts.masks.append(
            MaskInput(mask, "boolean", _LOGITS, -math.inf) if keeps else MaskInput(mask, "additive", _LOGITS)
        )
    _lengths(call, facts, 6)
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    if left >= 0 or right >= 0:
        facts.hides = True
        before, after = ("all" if count < 0 else str(count) for count in (left, right))
        facts.inside.append(f"A query sees the key at its position, {before} before that and {after} after it.")
    return facts


def _multi_head(call: Call, facts: Facts, *, bias: int, padding: int | None, addend: int, past: int | None) -> Facts:
    """com.microsoft.MultiHeadAttention and its kin: Q, K and V, whole or packed, and where the other inputs are."""
    whole = past is None or call.input(past + 2) is None  # the length of the past, which is less than its buffer's
    if call.input(1) is None:
        _pack(call, facts, "Q, K and V", 0)
        call.see(facts, call.input(0), _PACKED_QKV | _WHOLE)
        width, out = (call.shape(0) or ("",))[-1], (call.model.shape(call.node.outputs[0]) or ("",))[-1]
        if len(call.shape(0)) == 3 and isinstance(width, int) and isinstance(out, int) and facts.num_heads:
            facts.sizes["H"] = (width - out) // (2 * facts.num_heads)  # 2·D and the values' own
        _cache(call, facts, past, whole=whole)
    elif call.input(2) is None:
        _pack(call, facts, "K and V", 1)
        call.see(facts, call.input(0), _QUERY)
        call.see(facts, call.input(1), _PACKED_KV)
        facts.query = call.input(0)
        _cache(call, facts, past, whole=whole)
    else:
        _operands(call, facts, past=past, whole=whole)
    if call.input(bias) is not None:
        facts.query = facts.key = facts.value = None
        facts.inside.append(f"The bias {call.name(bias)} is added to Q, K and V first.")
    if padding is not None:
        _padding_mask(call, facts, padding)
    _addend(call, facts, addend)
    return facts


def _packed_multi_head(call: Call, facts: Facts) -> Facts:
    facts = _multi_head(call, facts, bias=3, padding=None, addend=6, past=None)
    return _ragged(call, facts, 5)


def _projecting(call: Call, facts: Facts, *, mask: int | None, past: int | None, addend: int | None) -> Facts:
    """com.microsoft.Attention and its kin: Q, K and V are projections of one input, made inside."""
    facts.packed = True
    facts.inside.append(f"Q, K and V are projections of {call.name(0)} by {call.name(1)}, made inside.")
    call.see(facts, call.input(0), _WHOLE)
    hidden = call.get("qkv_hidden_sizes")
    width = (call.shape(1) or call.shape(2) or ("",))[-1]
    if not hidden and isinstance(width, int):
        hidden = (width // 3,) * 3
    if hidden and facts.num_heads:
        facts.sizes |= {"H": hidden[0] // facts.num_heads, "V": hidden[2] // facts.num_heads}
    if call.get("do_rotary", 0):
        facts.inside.append("Q and K get a rotary embedding inside.")
    _cache(call, facts, past)
    if mask is not None:
        _padding_mask(call, facts, mask)
    if addend is not None:
        _addend(call, facts, addend)
    return facts


def _packed_attention(call: Call, facts: Facts) -> Facts:
    facts = _projecting(call, facts, mask=None, past=None, addend=5)
    return _ragged(call, facts, 4)


def _grouped(call: Call, facts: Facts) -> Facts:
    """com.microsoft.GroupQueryAttention."""
    facts.causal = bool(call.get("causal", 1))
    _with_groups(call, facts, total=6, norms=14)
    _lengths(call, facts, 5)
    _addend(call, facts, 10)
    return facts


def _sparse(call: Call, facts: Facts) -> Facts:
    """com.microsoft.SparseAttention: causal, and blocks of keys are left out."""
    facts.causal = facts.hides = True
    _with_groups(call, facts, total=7, norms=None)
    facts.inside.append(f"Of the keys only the blocks that {call.name(5)} and {call.name(6)} name are read.")
    return facts


def _paged(call: Call, facts: Facts) -> Facts:
    """com.microsoft.PagedAttention: keys and values lie in blocks of a cache."""
    facts.causal = bool(call.get("is_causal", 1))
    if (narrow := call.get("v_head_size")) is not None:
        facts.sizes["V"] = narrow
    _with_groups(call, facts, total=None, norms=12)
    return _ragged(call, facts, 5)


def _with_groups(call: Call, facts: Facts, *, total: int | None, norms: int | None) -> None:
    """Operators with fewer heads for key and value: Q, K, V (or all of them packed in Q), and a cache.

    `total` is the input that holds the number of all keys, since the cache may be longer than what is in it.
    """
    changes = []
    if call.get("do_rotary", 0):
        changes.append("a rotary embedding")
    if norms is not None and call.input(norms) is not None:
        changes.append("a normalisation")
    if changes:
        facts.inside.append(f"Q and K get {' and '.join(changes)} inside.")
    if call.input(1) is None:
        _pack(call, facts, "Q, K and V", 0)
        call.see(facts, call.input(0), _WHOLE)
        heads = (facts.num_heads or 0) + 2 * (facts.kv_num_heads or 0)
        size = divide(call.shape(0)[-1], heads) if call.shape(0) and heads else None
        facts.sizes |= {"H": size, "V": size} if size is not None else {}
        _cache(call, facts, 3, whole=False)
    else:
        _operands(call, facts, past=3, whole=False)
    if changes:
        facts.query = facts.key = None
    count = None if total is None else call.model.partial(call.input(total))
    if count is not None and count.size == 1:
        (facts.sizes["T"],) = (item if isinstance(item, str) else int(item) for item in count.flat)
    if (window := call.get("local_window_size", -1)) >= 0:
        facts.hides = True
        facts.inside.append(f"A query sees a window of {window} keys only.")


def _operands(call: Call, facts: Facts, *, past: int | None, whole: bool = True) -> None:
    """Q, K and V as the first three inputs, and the keys and values of the past before K and V."""
    for at, layouts in enumerate((_QUERY, _KEY, _VALUE)):
        call.see(facts, call.input(at), layouts)
    facts.query, facts.key, facts.value = (call.input(at) for at in range(3))
    _cache(call, facts, past, whole=whole)


def _pack(call: Call, facts: Facts, what: str, at: int) -> None:
    facts.packed = at == 0
    facts.inside.append(f"{what} are packed in {call.name(at)}.")


def _cache(call: Call, facts: Facts, past: int | None, *, whole: bool = True) -> None:
    """Keys and values of the past; the `whole` of that input is read unless it is a buffer with room for more."""
    if past is None or (state := call.input(past)) is None:
        return
    facts.past, facts.key, facts.value = True, None, None
    facts.inside.append(f"Keys and values of the past ({call.name(past)}) are put before the new ones.")
    if whole and not call.get("past_present_share_buffer", 0):
        call.see(facts, state, _CACHE)


def _padding_mask(call: Call, facts: Facts, at: int) -> None:
    """mask_index and key_padding_mask: lengths, or 1 for each key to keep; [B, 1] is how "none" is said."""
    mask, rank = call.input(at), len(call.shape(at))
    fill = call.get("mask_filter_value", _FILTERED)
    if mask is None:
        return
    if rank < 2:
        _lengths(call, facts, at)
    elif rank == 2 and call.shape(at)[1] != 1:
        facts.padding = True
        facts.masks.append(MaskInput(mask, "boolean", ("B", "T"), fill))
    elif rank == 3:
        facts.hides = True
        facts.masks.append(MaskInput(mask, "boolean", ("B", "S", "T"), fill))
    elif rank == 4:
        facts.hides = True
        facts.inside.append(f"Of the mask {call.name(at)} as many rows and columns are read as are needed.")


def _lengths(call: Call, facts: Facts, at: int) -> None:
    """Sequences of different lengths, as an input says; those that come from shapes alone are all alike."""
    lengths = call.input(at)
    repeated = None if lengths is None else lengths.producer()
    if repeated is not None and repeated.op_type == "Expand":
        lengths = repeated.inputs[0]
    if lengths is not None and call.model.partial(lengths) is None:
        facts.padding = True
        facts.inside.append(f"Of each sequence only as many keys are read as {call.name(at)} says.")


def _ragged(call: Call, facts: Facts, at: int) -> Facts:
    """Sequences of different lengths behind each other, with no padding between them."""
    facts.padding = True
    facts.inside.append(f"The tokens of all sequences lie behind each other; {call.name(at)} says where each ends.")
    return facts


def _addend(call: Call, facts: Facts, at: int) -> None:
    if (bias := call.input(at)) is not None:
        facts.masks.append(MaskInput(bias, "additive", _LOGITS))


_READERS: dict[tuple[str, str], Callable[[Call, Facts], Facts]] = {
    ("", "Attention"): _standard,
    ("com.microsoft", "Attention"): partial(_projecting, mask=3, past=4, addend=5),
    ("com.microsoft", "DecoderMaskedSelfAttention"): partial(_projecting, mask=3, past=4, addend=5),
    ("com.microsoft", "QAttention"): partial(_projecting, mask=5, past=8, addend=None),
    ("com.microsoft", "PackedAttention"): _packed_attention,
    ("com.microsoft", "MultiHeadAttention"): partial(_multi_head, bias=3, padding=4, addend=5, past=6),
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): partial(_multi_head, bias=10, padding=3, addend=4, past=5),
    ("com.microsoft", "PackedMultiHeadAttention"): _packed_multi_head,
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "SparseAttention"): _sparse,
    ("com.microsoft", "PagedAttention"): _paged,
}
