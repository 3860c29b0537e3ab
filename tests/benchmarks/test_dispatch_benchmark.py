"""The benchmark of told kernels: which settings it asks for, and what it does not let pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import dispatch

from explorer.profile import Dispatch, Measurement

CASES = {case.name: case for case in dispatch.CASES}


def test_each_target_that_claims_a_block_with_each_kernel(tmp_path):
    found = dispatch.subjects_of(CASES["gqa causal"], 16, ["mha", "attention", "gqa"], tmp_path)
    assert len(found) == 3 * 5
    assert {(row["target"], row["asked"], subject.sdpa_kernel) for row, subject in found} >= {
        ("mha", "default", 0),
        ("attention", "flash", 1),
        ("gqa", "memory-efficient", 2),
        ("gqa", "cudnn", 8),
        ("attention", "math", 16),
    }
    f5 = dispatch.subjects_of(CASES["f5"], 16, ["mha", "attention", "gqa"], tmp_path)
    assert {row["target"] for row, _ in f5} == {"mha", "attention"}


@pytest.mark.parametrize(
    ("asked", "said", "seen", "warning", "wrong"),
    [
        ("flash", "FLASH_ATTENTION", "FLASH_ATTENTION", "", ""),
        ("default", "MATH", "MATH", "", ""),
        ("cudnn", "MATH", "MATH", "this operator has no cuDNN path", ""),
        ("cudnn", "MATH", "MATH", "", "gave way without a word"),
        ("flash", "FLASH_ATTENTION", "MATH", "they disagree", "said and seen disagree"),
        ("flash", "FLASH_ATTENTION", "", "", "seen nothing"),
        ("flash", "", "FLASH_ATTENTION", "", "said nothing"),
    ],
)
def test_what_is_told_is_judged(asked, said, seen, warning, wrong):
    told = Dispatch("attn", "MultiHeadAttention", "fp16", said, seen, warning)
    measured = Measurement("x", 1.0, None, None, None, (told,), "")
    assert dispatch.judged({"asked": asked}, measured)["wrong"] == wrong


def test_a_refusal_is_an_answer_and_silence_is_not():
    refused = Measurement("x", None, None, None, None, (), "ONNX Runtime cannot run it")
    assert dispatch.judged({"asked": "cudnn"}, refused) == {
        "asked": "cudnn", "said": "", "seen": "", "warning": "ONNX Runtime cannot run it", "wrong": "",
    }  # fmt: skip
    silent = Measurement("x", 1.0, None, None, None, (), "")
    assert dispatch.judged({"asked": "cudnn"}, silent)["wrong"] == "0 attention nodes told"


def test_on_a_cpu_nothing_is_told_and_that_is_wrong(tmp_path):
    with dispatch.Worker() as worker:
        rows = list(dispatch.measure(worker, CASES["gqa"], 16, ["gqa"], "cpu"))
    assert len(rows) == 5
    assert all(row["wrong"] == "0 attention nodes told" for row in rows)
