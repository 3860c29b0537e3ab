"""Operators that already are attention: what they are given, what they change inside, and what nobody can know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fused_graphs import GQA, GROUPED, KEEP, MHA, ORT, PADDING, B, Fused, H, N, S, T, bnsh, bsd, rand
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from explorer.attention import recognise
from explorer.model import load

X, W = rand(B, S, 16), rand(16, 3 * N * H)
PACKED = {"x": X, "w": W, "bias": rand(3 * N * H)}
TOKENS = {"offset": np.zeros((B, S), np.int32), "ends": np.array([0, 4, 9], np.int32)}
PAST = rand(B, N, 3, H)
ABSENT: dict[str, np.ndarray | None] = dict.fromkeys("abcdefgh")


def after(count: int) -> dict[str, np.ndarray | None]:
    """So many inputs left out."""
    return dict(list(ABSENT.items())[:count])


@pytest.mark.parametrize(
    ("case", "kind", "said"),
    [
        (Fused("Attention", ORT, PACKED, {"num_heads": N}), "none", "projections of 'x' by 'w'"),
        (Fused("Attention", ORT, PACKED, {"num_heads": N, "unidirectional": 1}), "causal", "projections"),
        (Fused("Attention", ORT, {**PACKED, "n": TOKENS["ends"][:2]}, {"num_heads": N}), "padding", "as 'n' says"),
        (Fused("Attention", ORT, {**PACKED, "m": PADDING[:, :S]}, {"num_heads": N}), "padding", "projections"),
        (Fused("Attention", ORT, {**PACKED, "m": PADDING[:, :1]}, {"num_heads": N}), "none", "projections"),
        (Fused("Attention", ORT, {**PACKED, "m": np.ones((B, S, S), np.int32)}, {"num_heads": N}), "boolean", "proj"),
        (Fused("Attention", ORT, {**PACKED, "m": np.ones((B, 1, 9, 9), np.int32)}, {"num_heads": N}), "boolean", "'m'"),
        (Fused("Attention", ORT, {**PACKED, **after(2), "bias2": rand(1, N, S, S)}, {"num_heads": N}), "additive", ""),
        (Fused("Attention", ORT, PACKED, {"num_heads": N, "do_rotary": 1}), "none", "rotary embedding inside"),
        (Fused("QAttention", ORT,
               {"x": np.zeros((B, S, 16), np.uint8), "w": np.zeros((16, 96), np.int8), "bias": rand(96),
                "s": rand(), "t": rand()}, {"num_heads": N}), "none", "projections of 'x' by 'w'"),
        (Fused("PackedAttention", ORT, {"x": X[0], "w": W, "bias": rand(96), **TOKENS}, {"num_heads": N}),
         "padding", "'ends' says where each ends"),
        (Fused("DecoderMaskedSelfAttention", ORT,
               {**PACKED, "x": X[:, :1], "m": PADDING[:, :4], "past": rand(2, B, N, 3, H)}, {"num_heads": N}),
         "padding", "the past ('past')"),
    ],
)  # fmt: skip
def test_projections_inside(case: Fused, kind: str, said: str, tmp_path: Path) -> None:
    block = case.block(tmp_path)
    assert (block.num_heads, block.kv_num_heads, block.head_size, block.v_head_size) == (N, N, H, H)
    assert block.scale == pytest.approx(H**-0.5)
    assert block.mask.kind == kind
    assert (block.query, block.key, block.value) == (None, None, None), "no value of the graph holds them"
    assert any(said in step.text for step in block.evidence)
    assert block.dtype == "float32"
    assert all(step.nodes == ("fused",) for step in block.evidence)


def test_projections_of_several_widths(tmp_path: Path) -> None:
    attributes = {"num_heads": 2, "qkv_hidden_sizes": [16, 16, 24]}
    block = Fused("Attention", ORT, {"x": X, "w": rand(16, 56), "bias": rand(56)}, attributes).block(tmp_path)
    assert (block.head_size, block.v_head_size) == (8, 12)
    assert block.output is not None
    assert block.output.layout == ("B", "S", "NV")


@pytest.mark.parametrize(
    ("case", "present"),
    [
        (Fused(MHA, ORT, {"qkv": rand(B, S, N, 3, H)}, {"num_heads": N}), ""),
        (Fused(MHA, ORT, {"q": rand(B, S, N * H), "kv": rand(B, T, N, 2, H)}, {"num_heads": N}), "Q"),
        (Fused(MHA, ORT, bsd(bias=rand(96)), {"num_heads": N}), ""),
        (Fused(MHA, ORT, bsd(**after(3), pk=PAST, pv=PAST), {"num_heads": N}), "Q"),
        (Fused("PackedMultiHeadAttention", ORT,
               {"q": rand(9, 32), "k": rand(9, 32), "v": rand(9, 32), "b": None, **TOKENS}, {"num_heads": N}), "QKV"),
        (Fused("PackedMultiHeadAttention", ORT,
               {"q": rand(9, N, 3, H), "k": None, "v": None, "b": None, **TOKENS}, {"num_heads": N}), ""),
        (Fused("DecoderMaskedMultiHeadAttention", ORT,
               {"q": rand(B, 1, 32), "k": rand(B, N, T, H), "v": rand(B, N, T, H), "m": PADDING}, {"num_heads": N}),
         "QKV"),
        (Fused("DecoderMaskedMultiHeadAttention", ORT,
               {"q": rand(B, 1, 32), "k": rand(B, 1, 32), "v": rand(B, 1, 32), "m": None, "a": None, "pk": PAST,
                "pv": PAST}, {"num_heads": N}), "Q"),
        (Fused("Attention", "", bnsh(m=None, pk=PAST, pv=PAST), outputs=3), "Q"),
        (Fused(GQA, ORT, {**GROUPED, "q": rand(B, S, 64), "k": None, "v": None},
               {"num_heads": N, "kv_num_heads": 2}, outputs=3), ""),
        (Fused(GQA, ORT, {**GROUPED, "cos": rand(9, 4), "sin": rand(9, 4)},
               {"num_heads": N, "kv_num_heads": 2, "do_rotary": 1}, outputs=3), "V"),
        (Fused("SparseAttention", ORT,
               {**GROUPED, "past_k": rand(B, 2, 16, H), "past_v": rand(B, 2, 16, H),
                "seqlens_k": np.zeros((1, 2), np.int32), "total": np.zeros((1, 1), np.int32),
                "t": np.array(S, np.int32), "l": np.full(B, S, np.int32)},
               {"num_heads": N, "kv_num_heads": 2, "sparse_block_size": 16}, outputs=3), "Q"),
        (Fused("PagedAttention", ORT,
               {"q": rand(9, 32), "k": rand(9, 16), "v": rand(9, 16), "kc": rand(3, 16, 2, H), "vc": rand(3, 16, 2, H),
                "ends": TOKENS["ends"], "lengths": np.zeros(B, np.int32), "table": np.zeros((B, 2), np.int32)},
               {"num_heads": N, "kv_num_heads": 2}, outputs=3), "Q"),
    ],
    ids=lambda item: item.op if isinstance(item, Fused) else item,
)  # fmt: skip
def test_operands_are_values_only_where_nothing_changes_them_inside(case: Fused, present: str, tmp_path: Path) -> None:
    block = case.block(tmp_path)
    held = zip("QKV", (block.query, block.key, block.value), strict=True)
    assert "".join(letter for letter, operand in held if operand is not None) == present
    assert (block.num_heads, block.head_size, block.v_head_size) == (N, H, H)
    assert block.kv_num_heads == (2 if "kv_num_heads" in case.attributes else N)
    assert block.scale == pytest.approx(H**-0.5)
    assert len(block.evidence) > (present != "QKV")


def test_keys_of_the_past_count(tmp_path: Path) -> None:
    block = Fused("Attention", "", bnsh(m=None, pk=PAST, pv=PAST), outputs=3).block(tmp_path)
    assert dict(block.sizes)["T"] == T + 3
    block = Fused(GQA, ORT, {**GROUPED, "past_k": rand(B, 2, 9, H), "past_v": rand(B, 2, 9, H)},
                  {"num_heads": N, "kv_num_heads": 2}, outputs=3).block(tmp_path)  # fmt: skip
    assert str(dict(block.sizes)["T"]).startswith("?"), "a cache may be longer than what is in it"


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"causal": 0}, "padding"),
        ({"causal": 1}, "causal+padding"),
        ({"local_window_size": 3}, "boolean"),
        ({"local_window_size": -1}, "causal+padding"),
    ],
)
def test_grouped_query_attention_is_causal_unless_it_says_otherwise(
    attributes: dict[str, int], kind: str, tmp_path: Path
) -> None:
    attributes = {"num_heads": N, "kv_num_heads": 2, **attributes}
    assert Fused(GQA, ORT, GROUPED, attributes, outputs=3).block(tmp_path).mask.kind == kind


def test_lengths_that_follow_from_shapes_are_no_padding(tmp_path: Path) -> None:
    case = Fused(GQA, ORT, {**GROUPED, "seqlens_k": None}, {"num_heads": N, "kv_num_heads": 2}, outputs=3)
    case.before = [helper.make_node("Constant", [], ["lengths"], value=helper.make_tensor("t", 6, [B], [S - 1] * B))]
    case.names = ("q", "k", "v", "", "", "lengths", "total")
    assert case.block(tmp_path).mask.kind == "causal"


@pytest.mark.parametrize(
    ("attributes", "runs_in"),
    [({}, "float32"), ({"softmax_precision": 10}, "float16"), ({"softmax_precision": 1}, "float32")],
)
def test_the_type_of_the_softmax(attributes: dict[str, int], runs_in: str, tmp_path: Path) -> None:
    block = Fused("Attention", "", bnsh(), attributes).block(tmp_path)
    assert (block.dtype, block.softmax_dtype) == ("float32", runs_in)


def test_a_query_that_sees_no_key(tmp_path: Path) -> None:
    assert Fused("Attention", "", bnsh(mask=KEEP)).block(tmp_path).nan_guard, "zeros, as the schema says"
    assert not Fused(MHA, ORT, bsd(), {"num_heads": N}).block(tmp_path).nan_guard


@pytest.mark.parametrize(
    "case",
    [
        Fused(MHA, ORT, bsd(), {"num_heads": N}),
        Fused(MHA, ORT, bsd(b=None, p=PADDING), {"num_heads": N}),
        Fused(GQA, ORT, GROUPED, {"num_heads": N, "kv_num_heads": 2}, outputs=3),
        Fused("Attention", "", bnsh()),
    ],
)
def test_unknown_shapes_leave_fields_open(case: Fused, tmp_path: Path) -> None:
    proto = case.proto()
    for info in proto.graph.input:
        info.type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "m.onnx")
    (block,) = recognise(load(tmp_path / "m.onnx"))
    assert block.num_heads == case.attributes.get("num_heads")
    assert block.head_size is None
    assert block.query is None


def test_heads_of_keys_of_unknown_shape(tmp_path: Path) -> None:
    proto = Fused("Attention", "", bnsh()).proto()
    for info in proto.graph.input[1:]:
        info.type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "m.onnx")
    (block,) = recognise(load(tmp_path / "m.onnx"))
    assert (block.num_heads, block.head_size, block.kv_num_heads) == (N, H, None)


def test_what_comes_before_the_operator_is_read_as_in_other_blocks(tmp_path: Path) -> None:
    case = Fused("Attention", "", bnsh(), {"scale": 1.0}, names=("scaled", "k", "v"))
    case.before = [
        helper.make_node("Constant", [], ["factor"], value_float=0.25),
        helper.make_node("Mul", ["q", "factor"], ["scaled"], name="Scale"),
    ]
    block = case.block(tmp_path)
    assert block.scale == 0.25
    assert block.query is not None
    assert block.query.source.value == "q"
    assert any(step.nodes == ("Scale",) for step in block.evidence)
    assert block.nodes == ("fused",), "the region is the operator alone"


SCHEMAS = {(schema.domain, schema.name): schema for schema in get_all_operator_schema()}


@pytest.mark.parametrize(
    ("op", "positions"),
    [
        ("Attention", {"mask_index": 3, "past": 4, "attention_bias": 5}),
        ("DecoderMaskedSelfAttention", {"mask_index": 3, "past": 4, "attention_bias": 5}),
        ("QAttention", {"mask_index": 5, "past": 8}),
        ("PackedAttention", {"cumulative_sequence_length": 4, "attention_bias": 5}),
        (MHA, {"bias": 3, "key_padding_mask": 4, "attention_bias": 5, "past_key": 6}),
        ("DecoderMaskedMultiHeadAttention", {"mask_index": 3, "attention_bias": 4, "past_key": 5, "bias": 10}),
        ("PackedMultiHeadAttention", {"bias": 3, "cumulative_sequence_length": 5, "attention_bias": 6}),
        (GQA, {"past_key": 3, "seqlens_k": 5, "total_sequence_length": 6, "attention_bias": 10}),
        ("SparseAttention", {"past_key": 3, "block_row_indices": 5, "total_sequence_length": 7}),
    ],
)
def test_positions_of_inputs_are_those_of_the_schemas(op: str, positions: dict[str, int]) -> None:
    names = [item.name for item in SCHEMAS[ORT, op].inputs]
    assert {name: names.index(name) for name in positions} == positions
