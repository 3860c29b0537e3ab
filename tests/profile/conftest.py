from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from explorer.model import load
from explorer.profile import Subject
from explorer.runtime.client import Worker
from explorer.runtime.context import Context

INPUTS = "(float16[1,2,S,8] q, float16[1,2,8,S] k, float16[1,2,S,8] v) => (float16[1,2,S,8] y)"
UPCAST = "{ l = MatMul (q, k) f = Cast <to = 1> (l) p = Softmax (f) h = Cast <to = 10> (p) y = MatMul (h, v) }"
PLAIN = "{ l = MatMul (q, k) p = Softmax (l) y = MatMul (p, v) }"


@pytest.fixture(scope="session")
def worker():
    with Worker() as worker:
        yield worker


@pytest.fixture
def save_model(tmp_path):
    def save(name: str, graph: str) -> str:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(
            onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + graph).SerializeToString()
        )
        return str(path)

    return save


@pytest.fixture
def make_subject(save_model):
    """A subject with this graph, in the notation of onnx.parser."""

    def make(name: str, graph: str, **options) -> Subject:
        return Subject(name, load(save_model(name, graph)), **options)

    return make


@pytest.fixture
def pair(make_subject):
    """Float16 attention with its softmax in float32, and without the two Casts."""
    return [make_subject("original", f"g {INPUTS} {UPCAST}"), make_subject("fused", f"g {INPUTS} {PLAIN}")]


def attention_feeds(length: int, batch: int = 1):
    shapes = {"q": (batch, 2, length, 8), "k": (batch, 2, 8, length), "v": (batch, 2, length, 8)}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


@pytest.fixture
def make_feeds():
    """Inputs of `pair` of any length."""
    return attention_feeds


@pytest.fixture
def feeds():
    return attention_feeds(5)


@pytest.fixture
def context(tmp_path):
    log = tmp_path / "log"
    log.touch()
    return Context(lambda fraction, text: None, tmp_path, log)
