"""What is said of operators that already are attention, against what ONNX Runtime computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fused_graphs import GQA, GROUPED, KEEP, MHA, ORT, PADDING, B, Fused, H, N, S, T, bnsh, bsd, meaning, rand, repeated
from onnx import helper

from explorer.attention import recognise
from explorer.model import load

RUNNABLE = {
    "mha": (Fused(MHA, ORT, bsd(), {"num_heads": N}), "none"),
    "mha scale": (Fused(MHA, ORT, bsd(), {"num_heads": N, "scale": 0.7}), "none"),
    "mha scale 0": (Fused(MHA, ORT, bsd(), {"num_heads": N, "scale": 0.0}), "none"),
    "mha kv bnsh": (Fused(MHA, ORT, bsd(k=rand(B, N, T, H), v=rand(B, N, T, H)), {"num_heads": N}), "none"),
    "mha bias": (Fused(MHA, ORT, bsd(b=None, p=None, bias=rand(1, N, S, T)), {"num_heads": N}), "additive"),
    "mha padding": (Fused(MHA, ORT, bsd(b=None, p=PADDING), {"num_heads": N}), "padding"),
    "mha wide values": (Fused(MHA, ORT, bsd(v=rand(B, T, N * 12)), {"num_heads": N}), "none"),
    "mha causal": (
        Fused(MHA, ORT, {"q": rand(B, S, N * H), "k": rand(B, S, N * H), "v": rand(B, S, N * H)},
              {"num_heads": N, "unidirectional": 1}),
        "causal",
    ),
    "gqa": (Fused(GQA, ORT, GROUPED, {"num_heads": N, "kv_num_heads": 2}, outputs=3), "causal+padding"),
    "gqa one": (
        Fused(GQA, ORT, {**GROUPED, "k": rand(B, S, H), "v": rand(B, S, H)},
              {"num_heads": N, "kv_num_heads": 1, "softcap": 3.0}, outputs=3),
        "causal+padding",
    ),
    "23": (Fused("Attention", "", bnsh()), "none"),
    "23 named": (Fused("Attention", "ai.onnx", bnsh()), "none"),
    "23 wide values": (Fused("Attention", "", bnsh(size=12)), "none"),
    "23 3-d": (Fused("Attention", "", bsd(), {"q_num_heads": N, "kv_num_heads": N, "scale": 0.3}), "none"),
    "23 3-d grouped": (
        Fused("Attention", "", bsd(k=rand(B, T, 2 * H), v=rand(B, T, 2 * 12)), {"q_num_heads": N, "kv_num_heads": 2}),
        "none",
    ),
    "23 grouped": (Fused("Attention", "", bnsh(2)), "none"),
    "23 one": (Fused("Attention", "", bnsh(1)), "none"),
    "23 softcap": (Fused("Attention", "", bnsh(), {"softcap": 2.0, "scale": 1.5}), "none"),
    "23 causal": (Fused("Attention", "", bnsh(keys=S), {"is_causal": 1}), "causal"),
    "23 keep": (Fused("Attention", "", bnsh(mask=KEEP)), "boolean"),
    "23 keep for keys": (Fused("Attention", "", bnsh(mask=KEEP[0, 0])), "boolean"),
    "23 add": (Fused("Attention", "", bnsh(mask=rand(1, N, S, T))), "additive"),
    "23 repeated": (repeated(), "none"),
    "24": (Fused("Attention", "", bnsh(), opset=24), "none"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "kind"), RUNNABLE.values(), ids=RUNNABLE)
def test_the_fields_mean_what_onnx_runtime_computes(case: Fused, kind: str, tmp_path: Path) -> None:
    block = case.block(tmp_path)
    if kind == "boolean":
        # a constant of the graph would tell more; an input may hold anything
        assert block.mask.kind in ("boolean", "padding")
    else:
        assert block.mask.kind == kind
    feeds = {name: array for name, array in case.inputs.items() if array is not None}
    np.testing.assert_allclose(meaning(block, feeds), case.run(), rtol=0, atol=2e-5)
    assert block.fused_as == f"{case.domain or 'ai.onnx'}.{case.op}"
    assert block.obstacles == ()
    assert block.dtype == "float32"


@pytest.mark.parametrize(
    ("name", "heads", "size", "v_size"),
    [
        ("mha", (4, 4), 8, 8),
        ("mha kv bnsh", (4, 4), 8, 8),
        ("mha wide values", (4, 4), 8, 12),
        ("gqa", (4, 2), 8, 8),
        ("gqa one", (4, 1), 8, 8),
        ("23 grouped", (4, 2), 8, 8),
        ("23 3-d grouped", (4, 2), 8, 12),
        ("23 one", (4, 1), 8, 8),
        ("23 repeated", (4, 2), 8, 8),
    ],
)
def test_heads_and_sizes(name: str, heads: tuple[int, int], size: int, v_size: int, tmp_path: Path) -> None:
    block = RUNNABLE[name][0].block(tmp_path)
    assert (block.num_heads, block.kv_num_heads) == heads
    assert (block.head_size, block.v_head_size) == (size, v_size)
    assert block.heads == ("N" if heads[1] in (1, heads[0]) else "GR")


def test_sizes_may_be_symbols(tmp_path: Path) -> None:
    shape = [("batch", 4, "rows", 8), ("batch", 2, "keys", 8), ("batch", 2, "keys", 8)]
    proto = Fused("Attention", "", bnsh(2)).proto()
    for info, dims in zip(proto.graph.input, shape, strict=True):
        info.CopyFrom(helper.make_tensor_value_info(info.name, onnx.TensorProto.FLOAT, dims))
    onnx.save(proto, tmp_path / "m.onnx")
    (block,) = recognise(load(tmp_path / "m.onnx"))
    assert dict(block.sizes) == {"B": "batch", "G": 2, "R": 2, "S": "rows", "T": "keys", "H": 8, "V": 8}
    assert block.key is not None
    assert block.key.source.layout == ("B", "G", "T", "H")
