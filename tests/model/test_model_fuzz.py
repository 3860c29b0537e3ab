"""Damage at random places of real models: a sentence or a model that can be looked at, never a crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from explorer.errors import ModelError
from explorer.model import describe, load

# Nodes come first in a file, weights behind them.
NODES = 30_000


def damaged(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(rng.choice((NODES, NODES, len(data))), len(data)))
        match rng.randrange(5):
            case 0:
                del data[at:]
                return bytes(data)
            case 1:
                data[at : at + rng.choice((1, 4, 64))] = bytes(4)
            case 2:
                data[at:at] = rng.randbytes(3)
            case _:
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("sample", ["gpt_fp32", "bert_fp32"])
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_sample(samples: Path, tmp_path: Path, sample: str, seed: int):
    rng = random.Random(f"{sample} {seed}")
    whole = (samples / f"{sample}.onnx").read_bytes()
    path = tmp_path / "damaged.onnx"
    for _ in range(3):
        path.write_bytes(damaged(whole, rng))
        try:
            model, sentence = load(path), ""
        except ModelError as error:
            model, sentence = None, str(error)
        assert "\n" not in sentence
        if model is None:
            continue
        graph = describe(model)
        assert len(graph.nodes) == len(list(model.ir.graph))
        for node in model.nodes:
            for value in node.outputs:
                model.constant(value)
