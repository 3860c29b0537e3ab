"""One meaning in any spelling gives one block that says that meaning, and its fusion computes it."""

from __future__ import annotations

from dataclasses import fields

import pytest
from attention_cases import cases
from attention_graphs import PLAIN, Meaning, Spelling, write
from attention_reading import assert_computes, assert_fuses, assert_reads, loaded, only_block
from attention_spelling import MASKS, RESULTS, SOURCES
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import sampled_from

from explorer.fusion import OPERATORS

# Random, yet the same at each run: what a run finds, every run finds
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

HALF = {"half": True}
GQA = {"heads": 6, "kv_heads": 2}
MQA = {"heads": 3, "kv_heads": 1}
BATCH_OF_ONE = {"batch": 1}
ONE_HEAD = {"heads": 1}
SEQUENCE_FIRST = {"query": "sbd", "key": "sbd", "value": "sbd", "merge": "sequence"}

# Each spelling alone: what it takes to mean, how it is written
ALONE: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {}),
    *(({"mask": "tokens"}, {"opset": opset, "packed": "split", "squeeze": True}) for opset in (11, 12, 13, 18, 20, 23)),
    *(({"keys": 7}, {"dynamic": False, "reshape": how}) for how in ("zeros", "minus", "numbers", "chain", "local")),
    *(({"keys": 7}, {"reshape": how}) for how in ("minus", "numbers", "chain", "local")),
    *(({}, {"fixed": letter}) for letter in "bs"),
    *(({}, {"query": source}) for source in ("bnsh", "bsnh", "sbd")),
    *(({}, {"key": source, "value": source}) for source in ("bnsh", "bsnh", "sbd", "native")),
    *(({}, {"packed": how}) for how in ("split", "slice", "gather", "unbind", "interleaved")),
    ({}, {"key_stop": False}),
    ({}, {"key_stop": False, "coarse": True}),
    ({}, {"coarse": True}),
    ({"past": 3, "rows": 2}, {}),
    ({"past": 4, "rows": 1, "mask": "tokens"}, {"key": "bnsh", "value": "bnsh"}),
    ({"past": 3, "rows": 2, "mask": "causal"}, {"causal": "slice"}),
    ({"past": 3, "rows": 2, "mask": "causal"}, {"causal": "range"}),
    *((GQA, {"repeat": how}) for how in ("expand", "tile", "concat", "gather")),
    *((GQA, {"repeat": how, "repeat_at": "b.t.g.h"}) for how in ("expand", "tile", "concat", "gather")),
    (GQA, {"repeat": "expand", "reshape": "chain"}),
    (GQA, {"repeat": "broadcast", "logits": "b.g.r.s.t"}),
    (GQA, {"repeat": "absent", "logits": "b.g.r.s.t", "qk": "Einsum", "pv": "Einsum"}),
    *((MQA, {"repeat": how}) for how in ("expand", "tile", "concat", "gather", "broadcast")),
    (MQA, {"repeat": "absent", "qk": "Einsum", "pv": "Einsum"}),
    *(({"keys": 7}, {"logits": axes, "qk": "Einsum", "pv": "Einsum"}) for axes in ("b.n.s.t", "s.t.b.n", "n.b.t.s")),
    ({"keys": 7}, {"logits": "bn.s.t"}),
    ({"keys": 7}, {"logits": "bn.s.t", **SEQUENCE_FIRST, "coarse": True}),
    ({"keys": 7, "mask": "tokens"}, {"logits": "bn.s.t"}),
    (BATCH_OF_ONE, {"logits": "n.s.t"}),
    ({**BATCH_OF_ONE, "mask": "additive3"}, {"logits": "n.s.t", "query": "bsnh"}),
    (ONE_HEAD, {"logits": "b.s.t"}),
    *(({**BATCH_OF_ONE, **ONE_HEAD}, {"logits": "s.t", "qk": op, "pv": op}) for op in ("MatMul", "Gemm", "Einsum")),
    *(({"keys": 7}, {"logits": "b.n.t.s", "softmax_axis": axis}) for axis in ("negative", "positive")),
    ({"keys": 7}, {"logits": "b.n.t.s", "value_first": True, "merge": "channels"}),
    ({}, {"softmax_axis": "default"}),
    *(({"mask": "causal"}, {"softmax": how, "opset": opset}) for how in ("parts", "log") for opset in (12, 17)),
    *(({}, {"pv": op, "value_first": first}) for op in ("MatMul", "FusedMatMul") for first in (False, True)),
    ({}, {"qk": "FusedMatMul"}),
    ({}, {"qk": "FusedMatMul", "scale_at": "alpha"}),
    *(({}, {"merge": merge}) for merge in ("transpose", "none", "sequence", "flat", "channels")),
    ({"scale": 1.0}, {"scale_at": "none"}),
    *(({}, {"scale_at": at, "operand_at": where})
      for at in ("q", "k", "both") for where in ("source", "heads", "product")),
    *(({}, {"scale_op": op, "scale_source": source}) for op in ("Mul", "Div") for source in ("constant", "sqrt")),
    *(({"scale": 8**-0.5}, {"scale_source": "runtime", "scale_at": at, "scale_op": op})
      for at in ("logits", "q", "k", "both") for op in ("Mul", "Div")),
    ({}, {"scale_first": True}),
    ({"mask": "additive2", "mask_scaled": True}, {}),
    ({"mask": "boolean2", "mask_scaled": True}, {"fill": "inf"}),
    *((HALF, {"casts": casts}) for casts in ("none", "before", "after", "masked", "all")),
    *((HALF, {"casts": "operands", "operand_at": where}) for where in ("source", "heads", "product")),
    ({**HALF, "mask": "causal"}, {"casts": "all", "late_cast": True}),
    (HALF, {"casts": "after", "two_casts": True}),
    *(({"mask": "causal"}, {"logits_guards": (guard,)})
      for guard in ("identity", "dropout", "dropout3", "cast", "rowmax", "clip")),
    *(({**HALF, "mask": "causal"}, {"guards": (guard,), "casts": "after", "early_guards": early})
      for guard in ("identity", "dropout", "dropout3", "cast", "nan") for early in (False, True)),
    ({"softcap": 30.0}, {}),
    ({"softcap": 5.0, "mask": "causal", **HALF}, {"casts": "after"}),
    *(({"mask": mask}, {"mask_first": first}) for mask in ("additive2", "additive3", "additive4", "padding")
      for first in (False, True)),
    ({"mask": "padding"}, {"mask_trim": True, "logits": "bn.s.t"}),
    *(({"mask": mask}, {"mask_keep": keep, "mask_by": by}) for mask in ("boolean2", "boolean4", "tokens", "causal")
      for keep in (True, False) for by in ("where", "add", "product")),
    *(({"mask": "causal"}, {"causal": how, "mask_by": by}) for how in ("range", "tril") for by in ("where", "add")),
    ({"mask": "causal"}, {"causal": "trilu", "fill": "inf"}),
    *(({"mask": "causal"}, {"causal": "constant", "fixed": "s", "mask_by": by}) for by in ("where", "add")),
    *(({"mask": "causal"}, {"fill": fill}) for fill in ("inf", "1e9", "1e4")),
    *(({"mask": "causal+tokens"}, {"mask_joined": joined, "causal": how})
      for joined in (False, True) for how in ("slice", "range", "tril")),
    ({"mask": "causal+tokens"}, {"causal": "trilu", "mask_by": "product"}),
    ({"mask": "bias+tokens"}, {"fixed": "s", "mask_by": "product"}),
    ({"mask": "alibi"}, {}),
    ({"mask": "windows"}, {"fixed": "s"}),
    *(({"mask": "zero"}, {"mask_by": by}) for by in ("where", "add", "product")),
]  # fmt: skip


# Attention as well-known models are exported
EXPORTED = {
    "BERT by TorchScript": (
        Meaning(mask="tokens"),
        Spelling(opset=12, reshape="local", scale_op="Div", mask_by="product", guards=("dropout",)),
    ),
    "GPT-2": (
        Meaning(past=2, rows=3, keys=5, mask="causal+tokens", scale=8**-0.5),
        Spelling(packed="split", scale_op="Div", scale_source="runtime", scale_at="logits", key_stop=False),
    ),
    "T5": (
        Meaning(scale=1.0, mask="bias+tokens", heads=4),
        Spelling(scale_at="none", fixed="s", mask_by="product", reshape="chain", opset=11),
    ),
    "XLNet": (
        Meaning(mask="additive4", keys=7),
        Spelling(query="sbd", key="sbd", value="sbd", logits="s.t.b.n", qk="Einsum", pv="Einsum", merge="sequence"),
    ),
    "nn.MultiheadAttention": (
        Meaning(mask="additive2", keys=7),
        Spelling(**SEQUENCE_FIRST, logits="bn.s.t", coarse=True, scale_at="q", operand_at="source"),
    ),
    "scaled_dot_product_attention by TorchScript": (
        Meaning(mask="causal", scale=8**-0.5),
        Spelling(scale_at="both", scale_source="runtime", causal="tril", mask_by="add", fill="inf", opset=14),
    ),
    "ViT": (Meaning(), Spelling(packed="unbind", reshape="chain", guards=("identity", "dropout"))),
    "Swin": (Meaning(heads=3, mask="windows"), Spelling(packed="gather", fixed="s", scale_at="q", reshape="chain")),
    "diffusers' baddbmm": (
        Meaning(mask="zero", keys=7),
        Spelling(logits="bn.s.t", mask_by="product", mask_first=True, reshape="chain"),
    ),
    "F5-TTS in fp16": (
        Meaning(half=True, scale=100.0),
        Spelling(casts="after", two_casts=True, scale_first=True, fixed="b"),
    ),
    "Llama": (
        Meaning(heads=6, kv_heads=2, past=2, rows=3, keys=5, mask="causal+tokens", half=True),
        Spelling(repeat="expand", casts="masked", causal="range", mask_by="add", reshape="chain", opset=18),
    ),
    "Falcon": (Meaning(heads=4, kv_heads=1, mask="alibi"), Spelling(packed="split", repeat="broadcast")),
    "Gemma 2": (
        Meaning(heads=4, kv_heads=2, softcap=30.0, mask="causal", v_head_size=6),
        Spelling(repeat="expand", causal="trilu", fill="min", opset=20),
    ),
    "BLOOM": (
        Meaning(mask="alibi"),
        Spelling(packed="interleaved", logits="bn.s.t", qk="FusedMatMul", scale_at="alpha"),
    ),
    "a VAE's single head": (
        Meaning(heads=1),
        Spelling(logits="b.s.t", key="native", value="native", value_first=True, merge="channels"),
    ),
    "grouped heads in Flax": (
        Meaning(heads=4, kv_heads=2, mask="boolean4"),
        Spelling(repeat="absent", logits="b.g.r.s.t", qk="Einsum", pv="Einsum", query="bsnh", key="bsnh", value="bsnh"),
    ),
}


def _words(case: tuple[dict[str, object], dict[str, object]]) -> str:
    return " ".join(f"{name}={value}" for part in case for name, value in part.items()) or "plain"


@pytest.mark.parametrize("case", ALONE, ids=_words)
def test_each_spelling_alone(case: tuple[dict[str, object], dict[str, object]]) -> None:
    _check(Meaning(**case[0]), Spelling(**case[1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXPORTED)
def test_what_exporters_write(name: str) -> None:
    _check(*EXPORTED[name])


def _check(meaning: Meaning, spelling: Spelling) -> None:
    written = write(meaning, spelling)
    assert_computes(written.proto.SerializeToString(), meaning, spelling, {})
    model = loaded(written.proto)
    block = only_block(model)
    assert_reads(block, meaning, spelling, written)
    assert_fuses(model, block, meaning, spelling, {})


@settings(SETTINGS, max_examples=500)
@given(case=cases(), wish=sampled_from(("auto", *OPERATORS)))
def test_any_spelling_is_read_and_fused_rightly(case: tuple[Meaning, Spelling], wish: str) -> None:
    meaning, spelling = case
    written = write(meaning, spelling)
    model = loaded(written.proto)
    block = only_block(model)
    assert_reads(block, meaning, spelling, written)
    assert_fuses(model, block, meaning, spelling, {}, wish)


@settings(SETTINGS, max_examples=150)
@given(case=cases())
def test_what_is_rendered_computes_its_meaning(case: tuple[Meaning, Spelling]) -> None:
    """Otherwise the other tests would ask for the wrong thing."""
    meaning, spelling = case
    assert_computes(write(meaning, spelling).proto.SerializeToString(), meaning, spelling, {})


def test_every_value_that_a_spelling_can_have_is_tried_alone() -> None:
    """A new kind of spelling has to be listed above, or nobody would notice if the random ones left it out."""
    untried = {"alphabet", "mask_trim"}
    for field in fields(Spelling):
        tried = {spelling[field.name] for _, spelling in ALONE if field.name in spelling}
        assert tried - {field.default} or field.name in untried, field.name
    for name, every in (("key", SOURCES), ("merge", RESULTS)):
        assert {spelling[name] for _, spelling in ALONE if name in spelling} >= set(every) - {getattr(PLAIN, name)}
    assert {meaning.get("mask", "none") for meaning, _ in ALONE} == set(MASKS)
