"""Of the targets that can express a block, auto takes the fastest, and says why."""

from __future__ import annotations

import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from attention_reading import loaded, only_block
from attention_scopes import in_bfloat16
from target_graphs import CAUSAL, codes, fused, grouped, packed, read, unpacked

from explorer.attention import Block
from explorer.errors import BlockError
from explorer.fusion import OPERATORS, TARGETS, choose
from explorer.fusion.choose import choices
from explorer.fusion.plan import Settings
from explorer.model import Model
from explorer.model.save import serialize

CPU = Settings("cpu")
CAP = "c = Constant<value_float = 5.0>() d = Div(x, c) h = Tanh(d) m = Mul(h, c) p = Softmax(m)"


def block_of(meaning: dict[str, object], spelling: dict[str, object]) -> tuple[Model, Block]:
    """A rendered graph and its block."""
    model = loaded(render(Meaning(**meaning), Spelling(**spelling)))  # type: ignore[arg-type]
    return model, only_block(model)


HALF = {"half": True}
GQA = {"heads": 4, "kv_heads": 2}
NEW, REPEAT = {"opset": 23}, {"opset": 23, "repeat": "expand"}


@pytest.mark.parametrize(
    ("meaning", "spelling", "cuda", "cpu"),
    [
        (HALF, {}, "mha", "mha"),  # cuDNN
        (HALF, NEW, "mha", "mha"),  # cuDNN, not Flash 2; on the CPU float32, not float16
        (HALF | {"mask": "additive2"}, NEW, "mha", "mha"),  # cuDNN, not the memory-efficient kernel
        (HALF | {"softcap": 5.0}, NEW, "attention", "attention"),  # nobody else has a soft cap
        (HALF | GQA, REPEAT, "gqa", "gqa"),  # cuDNN for both: no repetition
        (HALF | GQA | {"mask": "additive2"}, REPEAT, "mha", "gqa"),  # gqa with a bias is MATH on CUDA
        (HALF | GQA | {"keys": 7}, REPEAT, "mha", "mha"),  # gqa wants as many keys
        (HALF | GQA | {"softcap": 5.0}, REPEAT, "gqa", "gqa"),  # Flash 2 for both: mha has no cap
        (GQA, REPEAT, "mha", "gqa"),  # CUDA has no gqa in float32, and MATH alone for attention
        ({}, {**NEW, "query": "bnsh", "key": "bnsh", "value": "bnsh", "merge": "none"}, "attention", "attention"),
        ({}, {"query": "bnsh", "key": "bnsh", "value": "bnsh", "merge": "none"}, "mha", "mha"),  # opset 17 is kept
    ],
)
def test_the_fastest_is_chosen(meaning: dict[str, object], spelling: dict[str, object], cuda: str, cpu: str) -> None:
    model, block = block_of(meaning, spelling)
    assert (choose(model, block, "auto").target, choose(model, block, "auto", CPU).target) == (cuda, cpu)


def test_the_words_say_why_this_one_and_why_not_the_others() -> None:
    model, block = packed()
    assert choose(model, block, "auto").words == (
        "MultiHeadAttention, all in BSD, with 0 layout nodes; on CUDA (sm 90) the memory-efficient kernel computes it. "
        "Rather than gqa: expected fewer heads of keys and values than of queries, found 2 of each; "
        "attention: the model would have to be raised to opset 23"
    )
    model, block = grouped(opset=23)
    words = choose(model, block, "auto", CPU).words
    assert "GroupQueryAttention" in words
    assert "on the CPU" in words
    assert "attention: the CPU's kernel, 0 layout nodes" in words


def test_older_models_are_raised_where_nothing_else_helps() -> None:
    choice = choose(*packed(CAP), "auto")
    assert choice.target == "attention"
    assert "raised to opset 23" in choice.words
    assert "mha: expected no soft cap" in choice.words


def test_a_repetition_is_not_added_unasked() -> None:
    qkv = "float[b, 2, s, 8] q, float[b, 1, t, 8] k, float[b, 1, t, 8] v"
    model, block = unpacked(qkv=qkv)
    assert choose(model, block, "auto").target == "attention"
    (reason,) = TARGETS["mha"].obstacles(model, block)
    assert reason.code == "repeat"
    assert "by name" in reason.hint


def test_what_nobody_can_express_keeps_every_reason_once() -> None:
    logits = "c = Constant<value_float = 0.0>() m = Mul(x, c) p = Softmax(m)"
    model, block = packed(logits)
    choice = choose(model, block, "auto")
    assert choice.target == ""
    assert sorted(reason.code for reason in choice.obstacles) == ["heads", "lengths", "scale"]


def test_no_kernel_is_a_reason_for_auto_alone() -> None:
    """ONNX Runtime's CPU provider has no attention in bfloat16."""
    model = loaded(in_bfloat16(render(Meaning(half=True))))
    block = only_block(model)
    assert "kernel" in {reason.code for reason in choose(model, block, "auto", CPU).obstacles}
    by_name = choose(model, block, "mha", CPU)
    assert by_name.target == "mha"
    assert "no kernel at all" in by_name.words


def test_every_target_is_listed_with_its_cost_or_its_obstacles() -> None:
    model, block = packed(opset=23)
    found = dict(zip(OPERATORS, choices(model, block), strict=True))
    assert [name for name, choice in found.items() if choice.target == name] == ["mha", "attention"]
    assert [reason.code for reason in found["gqa"].obstacles] == ["heads", "lengths"]
    assert all((choice.cost is None) == bool(choice.obstacles) for choice in found.values())


def test_a_block_with_an_obstacle_of_its_own_is_asked_no_further() -> None:
    model, block = packed("m = Relu(x) p = Softmax(m)")
    assert block.obstacles
    assert choose(model, block, "auto").obstacles == block.obstacles


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_written_is_read_as_the_same_attention(target: str) -> None:
    model, block = grouped(f"{CAUSAL} p = Softmax(m)", opset=23)
    again = only_block(loaded(onnx.load_from_string(serialize(fused(model, block, target).ir))))
    assert again.fused_as == TARGETS[target].operator
    assert (again.num_heads, again.kv_num_heads, again.head_size, again.v_head_size) == (4, 2, 8, 8)
    assert (again.scale, again.softcap, again.mask.kind, again.dtype) == (1.0, None, "causal", "float32")


def test_an_operator_stays_one() -> None:
    model, block = read(
        "(float[b, s, 16] q) => (float[b, s, 16] y) { y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, q, q) }"
    )
    assert codes(model, block, "auto") == ["fused"]


def test_an_unknown_target_is_refused() -> None:
    known = "auto, mha, gqa, attention, mha/bsd, mha/bnsh, attention/bsd, attention/bnsh"
    with pytest.raises(BlockError, match=f"a target among {known}, found 'mha/sbd'"):
        choose(*packed(), "mha/sbd")
