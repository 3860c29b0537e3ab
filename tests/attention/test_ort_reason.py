"""What `ort_reason` says against what the installed ONNX Runtime does."""

from pathlib import Path

import onnx
import pytest
from gpt import gpt
from ort_graphs import FUSED, bert_of_2020, offline, optimized, reasons, session, small_dit


@pytest.mark.parametrize(
    ("name", "model_type", "heads", "hidden", "fused"),
    [
        ("f5_dit_fp16", "mmdit", 2, 128, 2),
        ("f5_dit_fp16_two_casts", "mmdit", 2, 128, 0),
        ("bert_fp32", "bert", 2, 32, 2),
        ("gpt_fp32", "gpt2", 2, 32, 0),
    ],
)
def test_samples(
    name: str, model_type: str, heads: int, hidden: int, fused: int, samples: Path, tmp_path: Path
) -> None:
    model = onnx.load(samples / f"{name}.onnx")
    texts = reasons(model, tmp_path)
    assert len(texts) == 2
    assert offline(model, model_type, heads, hidden) == fused == sum("would fuse it" in text for text in texts)
    assert all(f"model_type {model_type} " in text or f"model_type {model_type!r}" in text for text in texts)


@pytest.mark.parametrize("name", ["f5_dit_fp16", "f5_dit_fp16_two_casts", "bert_fp32", "gpt_fp32"])
def test_a_session_fuses_no_sample(name: str, samples: Path, tmp_path: Path) -> None:
    model = onnx.load(samples / f"{name}.onnx")
    counts = session(model, tmp_path)
    assert counts["Softmax"] == 2
    assert not any(counts[op] for op in FUSED)
    assert all(text.startswith("A session (ORT_ENABLE_ALL) does not fuse this") for text in reasons(model, tmp_path))


def test_names_the_first_node_in_the_way(tmp_path: Path) -> None:
    (text,) = reasons(small_dit(), tmp_path)
    at = "/transformer_blocks.0/attn"
    assert f"expects Div after MatMul ({at}/MatMul) and finds Cast ({at}/Cast)" in text
    (text,) = reasons(gpt(layers=1), tmp_path)
    assert "expects Reshape after Reshape (/h.0/attn/Reshape_3) and finds MatMul (/h.0/attn/c_proj/MatMul)" in text


def test_a_useless_cast_is_not_what_stops_the_dit_fusion(tmp_path: Path) -> None:
    """Of two Casts after Softmax ORT drops the one from fp32 to fp32; what it lacks is the types of Q and V."""
    (text,) = reasons(small_dit(softmax_casts="two", value_info=False), tmp_path)
    assert "it needs Q's element type" in text
    (text,) = reasons(small_dit(softmax_casts="two"), tmp_path)
    assert "would fuse it" in text


def test_fused_blocks_need_no_reason(tmp_path: Path) -> None:
    assert reasons(optimized(small_dit(), "mmdit", 2, 128), tmp_path) == [""]


@pytest.mark.parametrize("opset", [12, 13, 17])
def test_a_session_fuses_the_bert_of_2020_only(opset: int, tmp_path: Path) -> None:
    model = bert_of_2020(opset)
    (text,) = reasons(model, tmp_path)
    assert (
        (session(model, tmp_path)["Attention"] == 1)
        is (opset <= 12)
        is text.startswith("A session (ORT_ENABLE_ALL) may fuse this")
    ), text
    assert opset <= 12 or "only up to opset 12" in text
