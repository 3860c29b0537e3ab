"""What recognition returns: `Block` and the values it is made of. Plain frozen data; names refer to the scanned model.

Axes are written with one letter each, as everywhere in the field: B batch, N heads, S sequence, H head size (for a
key or value, S is the length attended to). A `Layout` is a tuple with one string per tensor axis, each naming what is
merged on that axis, outermost first: ("B", "N", "S", "H") is BNSH, ("B", "S", "NH") is BSD.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

Layout = tuple[str, ...]

BNSH: Layout = ("B", "N", "S", "H")
BNHS: Layout = ("B", "N", "H", "S")
BSNH: Layout = ("B", "S", "N", "H")
BSD: Layout = ("B", "S", "NH")

Status = Literal["fusable", "blocked", "fused"]
MaskKind = Literal["none", "additive", "boolean", "causal", "padding", "causal+padding"]
Role = Literal["qk", "cast", "scale", "mask", "softcap", "softmax", "guard", "pv", "layout", "merge", "fused"]


def layout_name(layout: Layout) -> str:
    """`("B","S","NH")` → "BSD", `("BN","S","H")` → "(BN)SH"."""
    return "".join("D" if axis == "NH" else axis if len(axis) == 1 else f"({axis or '1'})" for axis in layout)


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
    """One value that holds an operand: operand = scale · value, its axes as `layout` says."""

    value: str
    layout: Layout
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Operand:
    """Query, key or value of a block, as seen at each step upstream of the product.

    `views[0]` is what the product itself reads, `views[-1]` the value furthest upstream from which only scalar factors,
    Transposes and Reshapes lead to it. `traits` names what was done to it before (rope, norm).
    """

    views: tuple[View, ...]
    traits: tuple[str, ...] = ()

    @property
    def source(self) -> View:
        """The view furthest upstream."""
        return self.views[-1]


@dataclass(frozen=True, slots=True)
class MaskTerm:
    """One contribution to the mask.

    additive: logits + coefficient·value. boolean: logits where `value` equals `keep_when`, `fill` elsewhere.
    causal: as boolean, and the kept part is provably the lower triangle (key position ≤ query position, equal lengths).
    `shape` is that of the value, aligned to the right of the logits' [B, N, S, T] (T: keys).
    """

    kind: Literal["additive", "boolean", "causal"]
    value: str
    shape: tuple[int | str | None, ...]
    dtype: str
    coefficient: float = 1.0
    fill: float = 0.0
    keep_when: bool = True


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
    num_heads: int | None = None
    kv_num_heads: int | None = None
    head_size: int | None = None
    v_head_size: int | None = None
    scale: float | None = None
    mask: Mask = field(default_factory=Mask)
    softcap: float | None = None
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
