"""Hypothesis draws a `Meaning` and a `Spelling` that can express it."""

from __future__ import annotations

from typing import Any

from attention_spelling import BLINDING, MASKS, RESULTS, SOURCES, Meaning, Spelling
from hypothesis import strategies as st

Draw = Any
_OPSETS = (17, 11, 12, 13, 18, 20, 23)


@st.composite
def cases(draw: Draw) -> tuple[Meaning, Spelling]:
    """A meaning and a spelling of it."""

    def pick(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    opset = pick(*_OPSETS)
    form = pick("4d", "4d", "3d", "grouped", "unbatched", "single", "plain", *["einsum"] * 2 * (opset >= 12))
    meaning, spelling = _sizes(pick, form), {"opset": opset}
    spelling |= _products(pick, draw, form, meaning, opset)
    spelling |= _operands(pick, form, meaning, spelling)
    spelling["coarse"], spelling["squeeze"], spelling["key_stop"] = (pick(False, True) for _ in range(3))
    if 1 in (meaning["heads"], meaning["rows"]):
        spelling["coarse"] = False  # an axis of one entry that is merged and split again may come out anywhere
    spelling["reshape"] = pick("zeros", "minus", "numbers", "chain", "local")
    spelling["dynamic"] = pick(True, True, False)
    meaning["half"] = pick(False, True)
    meaning["seed"] = pick(*range(8))
    spelling |= _mask(pick, meaning, spelling)
    if form == "single" and spelling["packed"] == "unbind" and (not spelling["dynamic"] or "b" in spelling["fixed"]):
        spelling["packed"] = "gather"  # [1, 2, s, h] could as well be two heads
    spelling |= _scale(pick, meaning, spelling)
    spelling |= _casts_and_guards(pick, draw, meaning, spelling)
    return Meaning(**meaning), Spelling(**spelling)


def _sizes(pick: Draw, form: str) -> dict[str, Any]:
    groups, repeats = pick(1, 2, 3), pick(1, 1, 2, 3)
    square = pick(False, False, True)  # as many keys as queries, one head size, as some operators want it
    if form == "grouped":
        repeats = pick(2, 3)
    if form in ("single", "plain"):
        groups = repeats = 1
    rows, past = pick(3, 1, 2, 5), 0 if square else pick(0, 0, 0, 2)
    head_size = pick(8, 16) if square else pick(4, 8)
    return {
        "batch": 1 if form in ("unbatched", "plain") else pick(1, 2, 3),
        "heads": groups * repeats,
        "kv_heads": groups,
        "rows": rows,
        "keys": rows + past if past or square else pick(rows, rows, 4, 7),
        "past": past,
        "head_size": head_size,
        "v_head_size": head_size if square else pick(head_size, head_size, 6),
    }


def _products(pick: Draw, draw: Draw, form: str, m: dict[str, Any], opset: int) -> dict[str, Any]:
    """How the two products are written, on which axes, and how K and V are repeated for them."""
    repeated, groups = m["heads"] > m["kv_heads"], m["kv_heads"]
    repeat = pick("expand", "tile", "concat", "gather") if repeated else "none"
    logits = {"4d": "b.n.s.t", "3d": "bn.s.t", "unbatched": "n.s.t", "single": "b.s.t", "plain": "s.t"}.get(form, "")
    kernels = ["MatMul", "MatMul", "FusedMatMul"] + ["Gemm"] * (form == "plain")
    qk, pv = pick(*kernels), pick(*kernels, *["Einsum"] * (opset >= 12))
    if form == "grouped":
        logits, repeat = "b.g.r.s.t", "broadcast"
    elif form in ("4d", "unbatched") and repeated and groups == 1 and pick(False, True):
        repeat = "broadcast"
        pv = "MatMul" if pv == "Einsum" else pv
    if form == "einsum":
        qk = "Einsum"
        repeat = pick(repeat, "absent") if repeated else "none"
        letters = list("bgrst" if repeat == "absent" and groups > 1 else "bnst")
        # until opset 12 a softmax over another axis than the last one runs over all axes from there on
        free = letters if opset >= 13 else letters[:-1]
        logits = ".".join([*draw(st.permutations(free)), *letters[len(free) :]])
    elif opset >= 13 and pick(False, False, True):
        logits = f"{logits[:-3]}t.s"
    last = logits.endswith("t")
    by_default = last and (opset >= 13 or logits == "s.t")
    return {
        "qk": qk,
        "pv": pv,
        "logits": logits,
        "repeat": repeat,
        "repeat_at": pick("b.g.t.h", "b.t.g.h"),
        "value_first": pick(False, False, True),
        "alphabet": pick("bnsthvgrxyz", "ijklmnopqrs", "BNSTHVGRxyz"),
        "softmax": pick("operator", "operator", "operator", "log", *["parts"] * last),
        "softmax_axis": pick("negative", "positive", *["default"] * by_default),
    }


def _operands(pick: Draw, form: str, m: dict[str, Any], s: dict[str, Any]) -> dict[str, Any]:
    """Where operands come from and where the result goes."""
    found: dict[str, Any] = {
        "query": pick("bsd", "bnsh", "bsnh", "sbd"),
        "key": pick(*SOURCES),
        "value": pick(*SOURCES),
        "merge": pick(*RESULTS),
        "packed": "",
    }
    if m["rows"] == m["keys"] - m["past"]:
        alike = m["heads"] == m["kv_heads"] and m["head_size"] == m["v_head_size"]
        found["packed"] = pick("", "", "split", "slice", *["gather", "unbind", "interleaved"] * alike)
    lacks = s["repeat"] == "absent" and m["kv_heads"] == 1
    one = form == "unbatched" or (form == "3d" and m["batch"] == 1)
    if (lacks or one) and "nv" not in RESULTS[found["merge"]]:
        found["merge"] = "reshape"  # nothing else would tell the heads from the rows, or from a batch
    return found


def _mask(pick: Draw, m: dict[str, Any], s: dict[str, Any]) -> dict[str, Any]:
    fixed = pick("", "", "b", "s")
    constant = not s["dynamic"] or "s" in fixed
    m["mask"] = mask = pick(*_masks(m, "b" in s["logits"], constant))
    m["mask_scaled"] = mask != "none" and pick(False, False, False, True)
    some_see = m["batch"] > 1 if mask in ("padding", "tokens", "causal+tokens") else m["rows"] > 1
    m["blind"] = mask in BLINDING and some_see and pick(False, True)
    triangles = ["slice", "range", *["constant"] * constant, *["tril", "trilu"] * (s["opset"] >= 14 and not m["past"])]
    by = pick("where", "add", *["product"] * (not m["mask_scaled"]))
    causal = pick(*triangles)
    return {
        "fixed": fixed,
        "mask_by": by,
        "mask_keep": pick(True, False),
        "mask_first": pick(True, False),
        "mask_trim": pick(True, False),
        "mask_joined": causal != "trilu" and pick(True, False),
        "causal": causal,
        "fill": pick("inf", "1e9") if m["mask_scaled"] else pick("min", "1e4", *["inf", "1e9"] * (by != "product")),
    }


def _masks(m: dict[str, Any], batched: bool, constant: bool) -> list[str]:
    """Masks that can be what they are called: a fixed single row, say, has no triangle."""
    if constant and m["rows"] == 1:
        return ["none", "zero"]
    without = set() if m["rows"] == m["keys"] - m["past"] else {"causal", "causal+tokens"}
    without |= set() if batched else {"tokens", "causal+tokens", "bias+tokens"}
    without |= set() if constant else {"bias+tokens", "windows"}
    without |= set() if batched and m["heads"] > 1 else {"windows"}  # windows of a single head could as well be heads
    return [name for name in MASKS if name not in without]


def _scale(pick: Draw, m: dict[str, Any], s: dict[str, Any]) -> dict[str, Any]:
    places = ["logits", "logits", "q", "k", "both", *["alpha"] * 3 * (s["qk"] in ("FusedMatMul", "Gemm"))]
    at = "logits" if m["mask_scaled"] else pick("none", *places)
    root = m["head_size"] ** -0.5
    m["scale"] = 1.0 if at == "none" else pick(root, root, 0.125, *[100.0] * (not m["mask_scaled"]))
    m["softcap"] = None if m["mask_scaled"] else pick(None, None, None, 5.0, 30.0)
    source = pick("initializer", "constant", "sqrt", *["runtime"] * (m["scale"] == root))
    if at not in ("none", "both") and source in ("initializer", "constant") and not m["mask_scaled"]:
        m["scale"] *= pick(1, 1, 1, -1)
    return {
        "scale_at": at,
        "scale_op": pick("Mul", "Div"),
        "scale_source": source,
        "scale_first": pick(True, False),
        "operand_at": pick("source", "heads", "product"),
    }


def _casts_and_guards(pick: Draw, draw: Draw, m: dict[str, Any], s: dict[str, Any]) -> dict[str, Any]:
    casts = pick("none", "before", "after", "masked", "operands", "all") if m["half"] else "none"
    dropouts = ["dropout", *["dropout3"] * (s["opset"] >= 12)]
    last = s["logits"].endswith("t")
    before = ["identity", "cast", "clip", *dropouts, *["rowmax"] * last]
    return {
        "casts": casts,
        "two_casts": casts not in ("none", "all") and pick(False, False, True),
        "late_cast": pick(False, True),
        "early_guards": pick(False, True),
        "logits_guards": tuple(draw(st.lists(st.sampled_from(before), max_size=2))) if pick(False, True) else (),
        "guards": tuple(draw(st.lists(st.sampled_from(["identity", "cast", "nan", *dropouts]), max_size=2))),
    }
