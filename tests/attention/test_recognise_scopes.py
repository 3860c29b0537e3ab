"""Attention is recognised wherever a model keeps it, and in whatever element type."""

from __future__ import annotations

import numpy as np
import pytest
from attention_graphs import Meaning, Spelling, write
from attention_reading import assert_computes, assert_fuses, assert_reads, loaded, only_block
from attention_scopes import in_bfloat16, in_branch, in_function, in_loop

SCOPES = {
    "branch": (in_branch, {"flag": np.array(True)}),
    "loop": (in_loop, {"turns": np.array(1)}),
    "function": (in_function, {}),
}
CASES = {
    "plain": (Meaning(), Spelling()),
    "causal": (Meaning(mask="causal"), Spelling(reshape="chain", causal="range")),
    "padding": (Meaning(mask="tokens", half=True), Spelling(casts="after", mask_by="product", key="bsnh")),
    "gqa": (Meaning(heads=4, kv_heads=2, keys=7), Spelling(repeat="expand", reshape="chain")),
    "einsum": (Meaning(mask="additive2"), Spelling(qk="Einsum", pv="Einsum", logits="s.t.b.n", query="sbd")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scope", SCOPES)
def test_attention_within_another_scope(scope: str, case: str) -> None:
    (meaning, spelling), (wrap, extra) = CASES[case], SCOPES[scope]
    written = write(meaning, spelling)
    proto = wrap(written.proto)
    assert_computes(proto.SerializeToString(), meaning, spelling, extra)
    model = loaded(proto)
    block = only_block(model)
    assert_reads(block, meaning, spelling, written)
    assert_fuses(model, block, meaning, spelling, extra)


@pytest.mark.parametrize("casts", ["none", "before", "after", "masked", "operands", "all"])
def test_bfloat16(casts: str) -> None:
    meaning, spelling = Meaning(half=True, mask="causal"), Spelling(casts=casts, scale_source="sqrt")
    written = write(meaning, spelling)
    block = only_block(loaded(in_bfloat16(written.proto)))
    assert block.obstacles == ()
    assert block.dtype == "bfloat16"
    assert block.softmax_dtype == ("bfloat16" if casts == "none" else "float32")
    assert (block.num_heads, block.scale, block.mask.kind) == (2, 0.25, "causal")
    assert len(block.casts) == written.casts
