"""What a rendered attention graph means (`Meaning`) and how it is written down (`Spelling`).

Axes are letters: b batch, w windows within a batch entry, g key heads, r query heads for each of them, s queries,
t keys, p keys from a cache, u keys beside those, h head size, v head size of V. A layout names the letters on each axis
of a tensor, "b.s.gr.h", outermost first; "" is an axis of size 1. Spellings write n for all heads of a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import groupby

import numpy as np

Layout = tuple[str, ...]

LETTERS = "bwgrsputhv"

# What a mask is made of, and the word for all of it
MASKS = {
    "none": ((), "none"),
    "additive2": (("input",), "additive"),  # a float input of rank 2, 3 or 4
    "additive3": (("input",), "additive"),
    "additive4": (("input",), "additive"),
    "padding": (("input",), "additive"),  # a float input, too: nothing says that it hides padding
    "boolean2": (("boolean",), "boolean"),
    "boolean4": (("boolean",), "boolean"),
    "tokens": (("tokens",), "padding"),
    "causal": (("causal",), "causal"),
    "causal+tokens": (("causal", "tokens"), "causal+padding"),
    "bias+tokens": (("bias", "tokens"), "additive"),
    "alibi": (("alibi",), "additive"),
    "windows": (("windows",), "additive"),
    "zero": (("zero",), "none"),
}
# The axes along which the parts of a mask vary
VARIES = {
    "additive2": "st", "additive3": "grst", "additive4": "bwgrst", "padding": "bwt", "boolean2": "st",
    "boolean4": "bwst", "tokens": "bwt", "causal": "st", "bias": "grst", "alibi": "grt", "windows": "wst", "zero": "",
}  # fmt: skip


# Those that can hide all keys of a query
BLINDING = ("padding", "boolean2", "boolean4", "tokens", "causal+tokens")


class _Brief:
    """Shown by what differs from the default, so that a failing example can be read."""

    def __repr__(self) -> str:
        shown = [(x.name, getattr(self, x.name)) for x in fields(self) if getattr(self, x.name) != x.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"


@dataclass(frozen=True, repr=False)
class Meaning(_Brief):
    """softmax(scale·QKᵀ + mask)·V over `batch` × `heads` × `rows` queries and `keys` keys of size `head_size`."""

    batch: int = 2
    heads: int = 2
    kv_heads: int | None = None  # as many as heads
    rows: int = 5
    keys: int = 5
    past: int = 0  # how many of the keys come from a cache; then the queries are the last of the positions
    head_size: int = 8
    v_head_size: int | None = None  # as head_size
    scale: float = 0.25
    mask: str = "none"  # see MASKS
    mask_scaled: bool = False  # scale·(QKᵀ + mask)
    blind: bool = False  # some queries see no key at all; the mask must be one of BLINDING
    softcap: float | None = None
    half: bool = False
    seed: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each letter."""
        groups = self.kv_heads or self.heads
        return {
            "b": self.batch,
            "w": 3 if self.mask == "windows" else 1,
            "g": groups,
            "r": self.heads // groups,
            "s": self.rows,
            "t": self.keys,
            "p": self.past,
            "u": self.keys - self.past,
            "h": self.head_size,
            "v": self.v_head_size or self.head_size,
        }

    @property
    def mask_kind(self) -> str:
        """The word for the mask."""
        return MASKS[self.mask][1]

    @property
    def varies(self) -> dict[str, str]:
        """The parts of the mask, and for each the letters of the axes along which it varies."""
        return {part: VARIES[self.mask if part in ("input", "boolean") else part] for part in MASKS[self.mask][0]}


@dataclass(frozen=True, repr=False)
class Spelling(_Brief):
    """How the graph is written."""

    opset: int = 17
    dynamic: bool = True
    fixed: str = ""  # letters of b, s, t whose sizes are numbers all the same
    reshape: str = "zeros"  # targets: zeros [0,0,2,8], minus [0,-1,2,8], numbers [2,5,2,8], or computed by chains
    # Shape → Gather → Concat: chain (from the first tensors that have the sizes), local (from what is reshaped)
    squeeze: bool = False  # Squeeze and Unsqueeze where a Reshape would do
    coarse: bool = False  # Transposes of as few axes as possible

    query: str = "bsd"  # see SOURCES
    key: str = "bsd"
    value: str = "bsd"
    packed: str = ""  # one input for all three: split, slice, gather, unbind, interleaved
    key_stop: bool = True  # K is BNSH on its way to the product
    repeat: str = "none"  # GQA: expand, tile, concat, gather; broadcast (an axis of size 1), absent (no axis)
    repeat_at: str = "b.g.t.h"  # layout in which K and V are repeated

    logits: str = "b.n.s.t"  # layout of QKᵀ
    qk: str = "MatMul"  # FusedMatMul, Gemm, Einsum
    pv: str = "MatMul"
    value_first: bool = False  # Vᵀ·Pᵀ
    alphabet: str = "bnsthvgrxyz"  # letters of Einsum's equations
    merge: str = "reshape"  # see RESULTS

    scale_at: str = "logits"  # logits, q, k, both, alpha, none (only where scale is 1)
    scale_op: str = "Mul"  # Mul, Div
    scale_source: str = "initializer"  # initializer, constant, sqrt, runtime (only where scale is 1/√head_size)
    scale_first: bool = False  # Mul(c, x) rather than Mul(x, c)
    operand_at: str = "heads"  # where a factor or Cast of an operand is: source, heads, product
    casts: str = "none"  # before (QKᵀ, Cast, scale), after (scale, Cast), masked (mask, Cast), operands, all
    two_casts: bool = False  # Softmax → Cast fp32 → Cast fp16
    late_cast: bool = False  # the last Cast of casts="all" is behind the merge of the heads
    logits_guards: tuple[str, ...] = ()  # identity, dropout, dropout3, cast, rowmax, clip
    guards: tuple[str, ...] = ()  # of the probabilities: identity, dropout, dropout3, cast, nan
    early_guards: bool = False  # before the Cast of the probabilities
    softmax: str = "operator"  # parts (Exp, ReduceSum, Div, behind the subtracted maximum), log (LogSoftmax, Exp)
    softmax_axis: str = "negative"  # positive, default

    mask_first: bool = False  # Add(mask, x) rather than Add(x, mask)
    mask_trim: bool = False  # a mask without leading axes of size 1
    mask_by: str = "where"  # a boolean mask becomes: where (on the logits), add (0 or fill), product ((1-m)·fill)
    mask_keep: bool = True  # true is what is kept
    mask_joined: bool = False  # And of two masks, rather than one after the other
    causal: str = "slice"  # range, tril, trilu, constant
    fill: str = "min"  # inf, 1e9, 1e4


# Layouts in which operands come; n is all heads that the tensor has, s its positions
SOURCES = {"bsd": "b.s.nh", "bnsh": "b.n.s.h", "bsnh": "b.s.n.h", "sbd": "s.b.nh", "native": "b.n.h.s"}
# Layouts in which the result goes
RESULTS = {
    "reshape": "b.s.nv", "transpose": "b.s.n.v", "none": "", "sequence": "s.b.nv", "flat": "bs.nv",
    "channels": "b.nv.s",
}  # fmt: skip


def parse(template: str, letters: dict[str, str]) -> Layout:
    """The layout that a template is once each letter is what `letters` says; an axis left without any goes."""
    found = []
    for group in template.split("."):
        whole = "".join(letters.get(letter, letter) for letter in group)
        if whole or not group:
            found.append(whole)
    return tuple(found)


def opened(layout: Layout, letters: str) -> Layout:
    """`layout` with each axis that lies in `letters` only in part split."""
    return tuple(
        "".join(part)
        for group in layout
        for part in ([tuple(p) for _, p in groupby(group, letters.__contains__)] if group else [()])
    )


def along(layout: Layout, letters: str) -> Layout:
    """`layout` with one entry on each axis that lies in none of `letters`."""
    return tuple(group if set(group) & set(letters) else "" for group in layout)


def pack(array: np.ndarray, layout: Layout) -> np.ndarray:
    """An array with one axis for each of LETTERS (of size 1 where it does not vary), as `layout` has it."""
    letters = "".join(layout)
    others = tuple(axis for axis, letter in enumerate(LETTERS) if letter not in letters)
    kept = [letter for letter in LETTERS if letter in letters]
    array = array.squeeze(others).transpose([kept.index(letter) for letter in letters])
    sizes = dict(zip(letters, array.shape, strict=True))
    return array.reshape([math.prod(sizes[letter] for letter in group) for group in layout])


def unpack(array: np.ndarray, layout: Layout, sizes: dict[str, int]) -> np.ndarray:
    """The inverse of `pack`."""
    letters = "".join(layout)
    array = array.reshape([sizes[letter] for letter in letters])
    kept = [letter for letter in LETTERS if letter in letters]
    array = array.transpose([letters.index(letter) for letter in kept])
    return array.reshape([sizes[letter] if letter in letters else 1 for letter in LETTERS])
