"""What a rendered graph must be recognised as."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, Written, feeds_for, oracle, run_on_cpu

from explorer.attention import Block, recognise
from explorer.fusion import TARGETS, Plan, apply, choose
from explorer.model import Model, load
from explorer.model.save import serialize


def loaded(proto: onnx.ModelProto) -> Model:
    """A model as it is once it has been written to a file and read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(proto.SerializeToString())
        return load(path)


def assert_reads(block: Block, meaning: Meaning, spelling: Spelling, written: Written) -> None:
    """`block` says what `meaning` means."""
    m, rel = meaning, 2e-3 if meaning.half else 1e-6
    assert [str(obstacle) for obstacle in block.obstacles] == []
    assert (block.num_heads, block.kv_num_heads) == (m.heads, m.kv_heads or m.heads)
    assert (block.head_size, block.v_head_size) == (m.head_size, m.v_head_size or m.head_size)
    assert block.scale == pytest.approx(m.scale, rel=rel)
    assert block.softcap == (None if m.softcap is None else pytest.approx(m.softcap, rel=rel))
    assert block.mask.kind == m.mask_kind
    assert len(block.casts) == written.casts
    assert block.nan_guard is ("nan" in spelling.guards)
    assert block.dtype == ("float16" if m.half else "float32")
    assert block.softmax_dtype == ("float16" if m.half and spelling.casts == "none" else "float32")


def assert_fuses(
    model: Model, block: Block, meaning: Meaning, spelling: Spelling, extra: dict[str, np.ndarray], wish: str = "auto"
) -> None:
    """`block` becomes what `wish` says if that can express it, and the fused model computes the meaning.

    `extra` is fed to inputs that the rendered graph alone does not have.
    """
    choice = choose(model, block, wish)
    assert {obstacle.code for obstacle in choice.obstacles} == inexpressible(meaning, wish)
    if choice.obstacles:
        return
    assert wish in ("auto", choice.target)
    before = serialize(model.ir)
    fused = apply(model, [block], Plan(model.digest).with_fusion(block, choice.target))
    assert serialize(model.ir) == before
    counts = fused.op_counts()
    assert counts[TARGETS[choice.target].operator.rpartition(".")[2]] == 1
    assert "Softmax" not in counts
    result = assert_computes(serialize(fused.ir), meaning, spelling, extra)
    if meaning.blind:
        (source, *_) = run_on_cpu(before, feeds_for(meaning, spelling) | extra)
        assert np.all(np.isfinite(result[np.isfinite(source)]))
        assert "nan" not in spelling.guards or np.all(result[source == 0] == 0)


def inexpressible(meaning: Meaning, target: str) -> set[str]:
    """The codes of what keeps `target` from expressing a meaning."""
    m = meaning
    capped = m.softcap is not None
    codes = {
        "mha": {"softcap": capped},
        "mha/bsd": {"softcap": capped},
        "mha/bnsh": {"softcap": capped, "head-size": m.sizes["v"] != m.head_size},
        "gqa": {
            "heads": m.sizes["r"] == 1,
            "lengths": m.rows != m.keys,
            "head-size": m.head_size % 8 != 0 or m.sizes["v"] != m.head_size,
        },
    }
    return {code for code, holds in codes.get(target, {}).items() if holds}


def assert_computes(model: bytes, meaning: Meaning, spelling: Spelling, extra: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of `model`, which is what `meaning` means for all queries that see a key."""
    feeds = feeds_for(meaning, spelling)
    truth = oracle(meaning, spelling, feeds)
    result = run_on_cpu(model, feeds | extra)[0]
    assert result.shape == truth.shape
    sees = np.isfinite(truth)
    tolerance = (2e-2 if meaning.half else 2e-5) * max(np.abs(truth[sees]).max(), 1)
    np.testing.assert_allclose(result.astype(np.float64)[sees], truth[sees], atol=tolerance)
    return result


def only_block(model: Model) -> Block:
    """The one block of `model`."""
    (block,) = recognise(model)
    return block
