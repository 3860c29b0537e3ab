"""What recognition returns: `Block` and the values it is made of. Plain frozen data; names refer to the scanned model.

Axes are written with one letter each: B batch, N heads, S query positions, T key positions, H head size of query and
key, V head size of value and output. Where exporters split one of these, it takes several letters: batch "BW" (windows
folded into the batch), heads "GR" (G key heads, each read by R query heads). A `Layout` is a tuple with one string per
tensor axis, naming what is merged on that axis, outermost first: ("B", "N", "S", "H") is BNSH, ("B", "S", "NH") is BSD;
"" is an axis of size 1 on which nothing lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from explorer.model import Dim
from explorer.model.dims import multiply

Layout = tuple[str, ...]

Status = Literal["fusable", "blocked", "fused"]
MaskKind = Literal["none", "additive", "boolean", "causal", "padding", "causal+padding"]
Role = Literal[
    "qk", "cast", "scale", "mask", "softcap", "softmax", "guard", "pv", "layout", "merge", "repeat", "shape", "fused"
]


def layout_name(layout: Layout) -> str:
    """The field's name of a layout: `("B","S","NH")` → "BSD", `("BN","T","H")` → "(BN)SH"."""
    return "".join(_axis_name(axis) for axis in layout)


def _axis_name(axis: str) -> str:
    common = axis.replace("T", "S").replace("V", "H")
    if common == "NH":
        return "D"
    return common if len(common) == 1 else f"({common or '1'})"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why something is not matched, or matched but not fusable.

    `code` is stable and meant for programs; `at` names the node or value; `expected`, `found` and `hint` are words.
    """

    code: str
    at: str
    expected: str
    found: str
    hint: str = ""

    def __str__(self) -> str:
        sentence = f"expected {self.expected}, found {self.found}"
        return f"{sentence}; {self.hint}" if self.hint else sentence


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the evidence: a sentence a person can check by hand, and the nodes it speaks of."""

    text: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """One value that holds an operand: operand = scale · value, its axes as `layout` says.

    A layout without some letters of the block is repeated along them: a key without R serves R query heads each.
    """

    value: str
    layout: Layout
    scale: float = 1.0
    dtype: str = ""

    @property
    def letters(self) -> str:
        """All letters of the layout, outermost first."""
        return "".join(self.layout)


@dataclass(frozen=True, slots=True)
class Operand:
    """Query, key or value of a block, as seen at each step upstream of the product.

    `views[0]` is the one nearest to the product in the block's element type, `views[-1]` the value furthest upstream
    from which only scalar factors, Casts, repeats, Transposes and Reshapes lead to it. `traits` names what was done to
    it before (rope, norm).
    """

    views: tuple[View, ...]
    traits: tuple[str, ...] = ()

    @property
    def source(self) -> View:
        """The view furthest upstream."""
        return self.views[-1]

    def whole(self, letters: Iterable[str]) -> tuple[View, ...]:
        """The views that have exactly these letters, in whatever order."""
        wanted = sorted(letters)
        return tuple(view for view in self.views if sorted(view.letters) == wanted)


@dataclass(frozen=True, slots=True)
class MaskTerm:
    """One contribution to the mask.

    additive: logits + coefficient·value. boolean: logits where `value` equals `keep_when`, `fill` elsewhere.
    causal: keeps a key at or before the query's position, with provably as many keys as queries, and fills the rest
    with `fill`; whether `value` is boolean (then `keep_when` holds) or numbers to add says its `dtype`.
    `shape` is that of the value, aligned to the right of the logits' axes, which `layout` names.
    """

    kind: Literal["additive", "boolean", "causal"]
    value: str
    shape: tuple[Dim, ...]
    layout: Layout
    dtype: str
    coefficient: float = 1.0
    fill: float = 0.0
    keep_when: bool = True


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor on the logits that is the same for all keys (one per head, say), so that it may as well act on Q.

    `shape` is that of the value, aligned to the right of the logits' axes, which `layout` names.
    """

    value: str
    shape: tuple[Dim, ...]
    layout: Layout
    dtype: str


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of a block: a one-word kind for people, and its terms for targets."""

    kind: MaskKind = "none"
    terms: tuple[MaskTerm, ...] = ()


@dataclass(frozen=True, slots=True)
class RegionNode:
    """A node that belongs to the block, and the part it plays in it."""

    name: str
    op_type: str
    role: Role


@dataclass(frozen=True, slots=True)
class Block:
    """One instance of softmax(scale·QKᵀ + mask)·V in a graph."""

    label: str
    """Short name by position in the graph, "attn0", "attn1", …: for people. `id` is the one to store."""
    anchor: str
    """Key of the Softmax node, or of the fused operator."""
    anchor_output: str
    """Name of the anchor's output value: what `id` is made of."""
    region: tuple[RegionNode, ...]
    query: Operand | None = None
    key: Operand | None = None
    value: Operand | None = None
    output: View | None = None
    batch: str = "B"
    """Letters of the batch, outermost first."""
    heads: str = "N"
    """Letters of the query's heads."""
    kv_heads: str = "N"
    """Those of `heads` that key and value have, too; along the others they are repeated."""
    rows: str = "S"
    """Letters of the query's positions."""
    keys: str = "T"
    """Letters of the key's positions."""
    sizes: tuple[tuple[str, Dim], ...] = ()
    """Size of each letter."""
    taken_for: tuple[tuple[str, Dim], ...] = ()
    """Dimensions that a mask might enlarge, and the sizes of the logits that they are taken for."""
    num_heads: int | None = None
    kv_num_heads: int | None = None
    head_size: int | None = None
    v_head_size: int | None = None
    scale: float | None = None
    factor: Factor | None = None
    """What the logits are multiplied by beside `scale`, if that is no constant number."""
    mask: Mask = field(default_factory=Mask)
    softcap: float | None = None
    nan_guard: bool = False
    """True if a query that may see no key gets zeros (a guard behind the softmax) and not NaN."""
    dtype: str = ""
    """Element type of Q, K and V."""
    softmax_dtype: str = ""
    """Element type in which the softmax runs."""
    evidence: tuple[Step, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    ort_reason: str = ""
    fused_as: str = ""
    """Operator that already computes the whole block ("com.microsoft.MultiHeadAttention"), or ""."""

    @property
    def id(self) -> str:
        """Stable across loads and edits elsewhere: it depends on nothing but the name of the anchor's output."""
        return f"attn-{hashlib.sha256(self.anchor_output.encode()).hexdigest()[:8]}"

    @property
    def casts(self) -> tuple[str, ...]:
        """The Cast nodes of the region."""
        return tuple(node.name for node in self.region if node.op_type == "Cast")

    @property
    def nodes(self) -> tuple[str, ...]:
        """Keys of all nodes of the region."""
        return tuple(node.name for node in self.region)

    def role(self, name: str) -> Role | None:
        """The part that node `name` plays in this block, or None if it is not in its region."""
        return next((node.role for node in self.region if node.name == name), None)

    def size(self, letters: str) -> Dim:
        """Size of an axis on which these letters are merged."""
        return merged_size(letters, dict(self.sizes))

    def term_layout(self, term: MaskTerm | Factor) -> Layout:
        """The axes of the value of a mask or factor: a group of letters for each, "" where it has one entry for all."""
        groups = term.layout[len(term.layout) - len(term.shape) :]
        pairs = zip(groups, term.shape, strict=True)
        return tuple("" if dim == 1 and self.size(group) != 1 else group for group, dim in pairs)


def merged_size(letters: str, sizes: Mapping[str, Dim]) -> Dim:
    """Size of an axis on which several letters are merged."""
    return multiply(*(sizes[letter] for letter in letters))
