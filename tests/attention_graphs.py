"""Attention graphs in many spellings, and what they mean computed independently in float64.

`Meaning` says what a graph computes, `Spelling` how it is written down. `render` writes the graph, `oracle` computes
the meaning with numpy alone: it shares no code with the explorer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from attention_masks import Masks
from attention_operands import Operands, Slots
from attention_spelling import LETTERS, RESULTS, Layout, Meaning, Spelling, pack, unpack
from attention_writer import FLOAT, HALF, Tensor, Writer
from onnx import helper

__all__ = ["PLAIN", "Meaning", "Spelling", "Written", "feeds_for", "oracle", "render", "run_on_cpu", "write"]

PLAIN = Spelling()
BLIND = -5e3
"""Where no logit is greater, a query sees no key: what comes out of it is nobody's concern."""


@dataclass(frozen=True)
class Written:
    """A rendered graph, what its inputs hold, in which layout its result is, and how many Casts the data passes."""

    proto: onnx.ModelProto
    slots: Slots
    output: Layout
    casts: int


def render(meaning: Meaning, spelling: Spelling = PLAIN) -> onnx.ModelProto:
    """The graph of `meaning` in `spelling`: inputs q, k, v (and mask), output y."""
    return write(meaning, spelling).proto


def write(meaning: Meaning, spelling: Spelling) -> Written:
    """The graph of `meaning` in `spelling`, and what is known about it."""
    m, s, slots = meaning, spelling, Slots()
    w = Writer(m.sizes, _symbols(m, s), s.opset, s.reshape, squeeze=s.squeeze, coarse=s.coarse)
    graph = _Graph(w, m, s, slots)
    y = w.on(graph.whole(), "Identity")
    w.output("y", y.layout, graph.element)
    w.outputs.insert(0, w.outputs.pop())
    opsets = [helper.make_opsetid("", s.opset)]
    if "FusedMatMul" in (s.qk, s.pv):
        opsets.append(helper.make_opsetid("com.microsoft", 1))
    proto = helper.make_model(
        helper.make_graph(w.nodes, "attention", w.inputs, w.outputs, w.initializers),
        opset_imports=opsets,
        ir_version=8 if s.opset <= 18 else 10,
    )
    return Written(proto, slots, y.layout, w.casts)


def _symbols(m: Meaning, s: Spelling) -> dict[str, int | str]:
    """The declared size of each letter: a number, or a name for what may change."""
    keys = "past + rows" if m.past else "rows" if m.rows == m.keys else "keys"
    names = {"b": "batch", "s": "rows", "t": keys, "u": "rows" if m.past else keys, "p": "past"}
    if not s.dynamic:
        return dict(m.sizes)
    fixed = s.fixed + ("tup" if "s" in s.fixed else "")
    return {letter: names[letter] if letter in names and letter not in fixed else n for letter, n in m.sizes.items()}


class _Graph:
    """Writes one graph, from the operands to the result."""

    def __init__(self, w: Writer, m: Meaning, s: Spelling, slots: Slots) -> None:
        self.w, self.m, self.s = w, m, s
        self.operands = Operands(w, m, s, slots)
        self.element = HALF if m.half else FLOAT
        # the type in which the operands are multiplied, that of the logits when they leave the product, and of the mask
        self.product = FLOAT if s.casts in ("operands", "all") else self.element
        self.logits = FLOAT if s.casts == "before" else self.product
        masked_in = FLOAT if s.casts == "after" and not m.mask_scaled else self.logits
        self.masks = Masks(w, m, s, slots, tensors(m), masked_in == FLOAT)

    def whole(self) -> Tensor:
        w, m, s = self.w, self.m, self.s
        change = self._changed
        x = self.operands.sources()
        for where in ("source", "heads", "product"):
            x["q"] = change("q", x["q"], where)
        for name in ("k", "v"):
            x[name] = change(name, self.operands.key_or_value(name, x[name], change), "product")
        w.remember, layout = False, self.operands.layout(s.logits)
        order = ("k", "q") if layout[-2:] == ("t", "s") and s.qk != "Einsum" else ("q", "k")
        alpha = m.scale if s.scale_at == "alpha" else 1.0
        logits = self.operands.product(s.qk, *(x[name] for name in order), layout, "h", alpha)
        logits = self._logits(logits)
        logits = self._softmax(logits)
        return self._result(self._probabilities(logits), x["v"])

    def _changed(self, name: str, x: Tensor, where: str) -> Tensor:
        """`x` with the factor and the Cast that the spelling puts there."""
        if where != self.s.operand_at:
            return x
        if self.s.casts == "all" or (self.s.casts == "operands" and name != "v"):
            x = self.w.cast(x, FLOAT)
        return self._scaled(x, self.product) if self.s.scale_at == name or self._split(name) else x

    def _split(self, name: str) -> bool:
        return self.s.scale_at == "both" and name != "v"

    def _scaled(self, x: Tensor, element: int) -> Tensor:
        """`x` multiplied by the scale, or by its root if that is split between two."""
        w, m, s = self.w, self.m, self.s
        number = math.sqrt(m.scale) if s.scale_at == "both" else m.scale
        dtype = np.dtype(np.float32 if element == FLOAT else np.float16)
        number = 1 / number if s.scale_op == "Div" else number
        if s.scale_source == "runtime":
            constant = w.add("Sqrt", w.add("Cast", w.length("h"), to=element))
            constant = w.add("Sqrt", constant) if s.scale_at == "both" else constant
            if s.scale_op == "Mul":
                constant = w.add("Div", w.const(np.ones((), dtype)), constant)
        elif s.scale_source == "sqrt":
            constant = w.add("Sqrt", w.const(np.array(number**2, dtype), as_node=True))
        else:
            constant = w.const(np.array(number, dtype), as_node=s.scale_source == "constant")
        return w.on(x, s.scale_op, constant, first=s.scale_first and s.scale_op == "Mul")

    def _logits(self, x: Tensor) -> Tensor:
        """From the product to the softmax."""
        w, m, s = self.w, self.m, self.s
        if s.casts == "before":
            x = w.cast(x, FLOAT)
        if m.mask_scaled:
            x = self.masks.put(x)
        if s.scale_at == "logits":
            x = self._scaled(x, self.logits)
        if m.softcap is not None:
            cap = w.const(np.array(m.softcap, np.float32 if self.logits == FLOAT else np.float16))
            x = w.on(w.on(w.on(x, "Div", cap), "Tanh"), "Mul", cap)
        if s.casts == "after":
            x = w.cast(x, FLOAT)
        if not m.mask_scaled:
            x = self.masks.put(x)
        if s.casts == "masked":
            x = w.cast(x, FLOAT)
        element = self.element if s.casts == "none" else FLOAT
        for guard in s.logits_guards:
            x = self._guarded(x, guard, element)
        return x

    def _softmax(self, x: Tensor) -> Tensor:
        w, s = self.w, self.s
        axis = x.layout.index("t") - (0 if s.softmax_axis == "positive" else len(x.layout))
        given = {} if s.softmax_axis == "default" else {"axis": axis}
        if s.softmax == "operator":
            return w.on(x, "Softmax", **given)
        if s.softmax == "log":
            return w.on(w.on(x, "LogSoftmax", **given), "Exp")
        x = w.on(self._guarded(x, "rowmax", 0), "Exp")
        return w.on(x, "Div", self._reduced(x, "ReduceSum", axis, 13))

    def _reduced(self, x: Tensor, op: str, axis: int, since: int) -> str:
        """A reduction that takes its axes as an input since opset `since`."""
        w = self.w
        if w.opset >= since:
            return w.add(op, x.name, w.numbers(axis), keepdims=1)
        return w.add(op, x.name, axes=[axis], keepdims=1)

    def _probabilities(self, x: Tensor) -> Tensor:
        """From the softmax to the product with V."""
        w, s = self.w, self.s
        if s.two_casts:
            x = w.cast(x, FLOAT)
        back = s.casts not in ("none", "all")
        early = s.early_guards or not back
        if back and not early:
            x = w.cast(x, self.element)
        for guard in s.guards:
            x = self._guarded(x, guard, FLOAT if s.casts != "none" and (early or not back) else self.element)
        return w.cast(x, self.element) if back and early else x

    def _guarded(self, x: Tensor, guard: str, element: int) -> Tensor:
        """`x` behind a node that changes nothing."""
        w = self.w
        dtype = np.dtype(np.float32 if element == FLOAT else np.float16)
        if guard == "cast":
            return w.cast(x, element)
        if guard == "identity":
            return w.on(x, "Identity")
        if guard in ("dropout", "dropout3"):
            off = [w.const(np.array(0.1, np.float32)), w.const(np.array(False))] if guard == "dropout3" else []
            return w.on(x, "Dropout", *off)
        if guard == "nan":
            zero = w.const(np.zeros((), dtype))
            return w.tensor(w.add("Where", w.add("IsNaN", x.name), zero, x.name), x.layout)
        if guard == "clip":
            bounds = np.finfo(dtype)
            return w.on(x, "Clip", w.const(np.array(bounds.min, dtype)), w.const(np.array(bounds.max, dtype)))
        return w.on(x, "Sub", self._reduced(x, "ReduceMax", -1, 18))

    def _result(self, p: Tensor, v: Tensor) -> Tensor:
        """P·V, and its heads side by side as the spelling wants them."""
        w, s = self.w, self.s
        wanted = self.operands.layout(RESULTS[s.merge]) if RESULTS[s.merge] else None
        batch = tuple(group for group in p.layout if group not in ("s", "t"))
        if s.pv == "Einsum":
            letters = "".join(wanted or ())
            have = (*batch, "s", "v")
            layout = tuple(sorted(have, key=letters.index)) if wanted and all(g in letters for g in have) else have
            x = self.operands.product("Einsum", p, v, layout, "t")
        elif s.value_first:
            x = self.operands.product(s.pv, v, p, (*batch, "v", "s"), "t")
        else:
            x = self.operands.product(s.pv, p, v, (*batch, "s", "v"), "t")
        if s.casts == "all" and not s.late_cast:
            x = w.cast(x, self.element)
        if wanted is not None:
            x = w.go(x, wanted)
        return w.cast(x, self.element) if s.casts == "all" and s.late_cast else x


def tensors(meaning: Meaning) -> dict[str, np.ndarray]:
    """Random quantities of a meaning, with an axis for each letter: logits large enough that a wrong scale shows."""
    m, sizes, rng = meaning, meaning.sizes, np.random.default_rng(meaning.seed)
    gain = 1.5 / math.sqrt(abs(m.scale) * math.sqrt(m.head_size))

    def shape(letters: str) -> list[int]:
        return [sizes[letter] if letter in letters else 1 for letter in LETTERS]

    new = "u" if m.past else "t"
    found = {
        "q": rng.standard_normal(shape("bwgrsh")) * gain,
        "k": rng.standard_normal(shape(f"bwgh{new}")) * gain,
        "v": rng.standard_normal(shape(f"bwgv{new}")),
        "past_k": rng.standard_normal(shape("bwgph")) * gain,
        "past_v": rng.standard_normal(shape("bwgpv")),
    }
    varies = next(iter(m.varies.values()), "")
    keys = np.arange(m.keys).reshape(shape("t"))
    tokens = np.broadcast_to(keys < max(m.keys - 2, 1), shape("bwt"))
    visible = (rng.random(shape(varies)) < 0.6) | (keys == 0)
    if m.blind:
        tokens = tokens & (np.arange(m.batch).reshape(shape("b")) > 0)
        visible = visible & (np.arange(m.rows).reshape(shape("s")) > 0)
    bias = rng.standard_normal(shape(varies)) * 2
    bias = {"padding": np.where(tokens, 0.0, -3e38), "windows": np.where(bias > 0, 0.0, -100.0)}.get(m.mask, bias)
    slopes = 2.0 ** -np.arange(1, m.heads + 1).reshape(shape("gr"))
    return found | {"tokens": tokens, "visible": visible, "hidden": ~visible, "bias": bias, "slopes": slopes}


def feeds_for(meaning: Meaning, spelling: Spelling = PLAIN) -> dict[str, np.ndarray]:
    """Random inputs for the rendered graph."""
    written, data, feeds = write(meaning, spelling), tensors(meaning), {}
    for given in written.proto.graph.input:
        parts = [pack(data[quantity], layout) for quantity, layout in written.slots.parts[given.name]]
        array = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        if (merged := written.slots.merged[given.name]) > 1:
            array = array.reshape(*array.shape[:-merged], -1)
        dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        lowest = np.finfo(dtype).min if np.issubdtype(dtype, np.floating) else None
        feeds[given.name] = (array if lowest is None else array.clip(lowest)).astype(dtype)
    return feeds


def oracle(meaning: Meaning, spelling: Spelling, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the rendered graph means, in float64; NaN for queries that see no key."""
    m, written, data = meaning, write(meaning, spelling), tensors(meaning)
    for name, array in feeds.items():
        parts = written.slots.parts[name]
        pieces = [array]
        if len(parts) > 1:
            whole = array.reshape(*array.shape[:-1], *[m.heads] * (written.slots.merged[name] - 1), -1)
            ends = np.cumsum([math.prod(m.sizes[letter] for letter in layout[-1]) for _, layout in parts])
            pieces = np.split(whole, ends[:-1], axis=-1)
        for (quantity, layout), piece in zip(parts, pieces, strict=True):
            data[quantity] = unpack(piece.astype(np.float64), layout, m.sizes)
            if quantity == "hidden":
                data["visible"] = 1 - data["hidden"]
    return pack(_attention(m, data), written.output)


def _attention(m: Meaning, data: dict[str, np.ndarray]) -> np.ndarray:
    """The result of a meaning, with an axis for each letter."""
    q, new = pack(data["q"], tuple("bwgrsh")), "u" if m.past else "t"
    k, v = (pack(data[name], tuple(f"bwg{new}{size}")) for name, size in (("k", "h"), ("v", "v")))
    if m.past:
        k = np.concatenate([pack(data["past_k"], tuple("bwgph")), k], axis=3)
        v = np.concatenate([pack(data["past_v"], tuple("bwgpv")), v], axis=3)
    tokens, visible, bias, slopes = (_as_logits(data[name]) for name in ("tokens", "visible", "bias", "slopes"))
    logits = m.scale * np.einsum("bwgrsh,bwgth->bwgrst", q, k)
    if m.softcap is not None:
        logits = m.softcap * np.tanh(logits / m.softcap)
    for part in m.varies:
        if part in ("input", "bias", "windows"):
            logits = logits + bias * (m.scale if m.mask_scaled else 1.0)
        elif part == "alibi":
            logits = logits + slopes * np.arange(m.keys) * (m.scale if m.mask_scaled else 1.0)
        else:
            kept = {
                "boolean": visible, "tokens": tokens, "zero": np.ones(()),
                "causal": np.tri(m.rows, m.keys, m.keys - m.rows),
            }  # fmt: skip
            logits = np.where(kept[part] != 0, logits, -np.inf)
    highest = logits.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.exp(logits - highest)
    weights /= np.where(highest > BLIND, weights.sum(-1, keepdims=True), np.nan)
    result = np.einsum("bwgrst,bwgtv->bwgrsv", weights, v)
    return unpack(result, tuple("bwgrsv"), m.sizes)


def _as_logits(array: np.ndarray) -> np.ndarray:
    """An array with an axis for each letter, with those of the logits alone."""
    return array.squeeze(tuple(LETTERS.index(letter) for letter in "puhv"))


def run_on_cpu(model: bytes | str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model in this process with ONNX Runtime alone, not through the explorer."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # threads take longer to start than these graphs to run
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # what is written is what runs
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
