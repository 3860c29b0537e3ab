"""What has a Softmax and is no attention: not listed, or listed with no target, but never taken for attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from attention_reading import loaded
from attention_writer import FLOAT, INT64, Tensor, Writer
from onnx import helper

from explorer.attention import recognise
from explorer.fusion import choose

SIZES = {"b": 2, "s": 5, "t": 7, "d": 16, "n": 2, "h": 8, "e": 4, "c": 3, "f": 32, "m": 4}
DYNAMIC = SIZES | {"b": "batch", "s": "rows", "t": "keys"}


class Network:
    """A graph with the input x[b,s,d] and the output y."""

    def __init__(self) -> None:
        self.w = Writer(SIZES, DYNAMIC, 17, "zeros")
        self.x = self.input("x", "b.s.d")

    def input(self, name: str, template: str) -> Tensor:
        return self.w.input(name, tuple(template.split(".")), FLOAT)

    def weight(self, *letters: str) -> str:
        shape = [SIZES[letter] for letter in letters]
        return self.w.const(np.random.default_rng(0).standard_normal(shape).astype(np.float32))

    def linear(self, x: str, before: str, after: str) -> str:
        return self.w.add("Add", self.w.add("MatMul", x, self.weight(before, after)), self.weight(after))

    def heads(self, x: str) -> str:
        """[b, s, n·h] as [b, n, s, h]."""
        apart = self.w.add("Reshape", x, self.w.numbers(0, 0, SIZES["n"], SIZES["h"]))
        return self.w.add("Transpose", apart, perm=[0, 2, 1, 3])

    def merged(self, x: str) -> str:
        return self.w.add("Reshape", self.w.add("Transpose", x, perm=[0, 2, 1, 3]), self.w.numbers(0, 0, -1))

    def model(self, y: str) -> onnx.ModelProto:
        self.w.add("Identity", y)
        self.w.nodes[-1].output[0] = "y"
        output = helper.make_tensor_value_info("y", FLOAT, None)
        graph = helper.make_graph(self.w.nodes, "g", self.w.inputs, [output], self.w.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def classifier(net: Network) -> str:
    first = net.w.add("Gather", net.x.name, net.w.const(np.array(0)), axis=1)
    return net.w.add("Softmax", net.linear(first, "d", "c"), axis=-1)


def classifier_of_each_token(net: Network) -> str:
    return net.w.add("Softmax", net.linear(net.linear(net.x.name, "d", "f"), "f", "c"), axis=-1)


def expected_value_of_classes(net: Network) -> str:
    """Σ p·bin, as detectors regress boxes: a product with a weight on both sides."""
    p = net.w.add("Softmax", net.linear(net.x.name, "d", "m"), axis=-1)
    return net.w.add("MatMul", p, net.weight("m", "c"))


def pooling_by_a_learned_query(net: Network) -> str:
    """One query for all inputs is a weight: its product with K is a projection."""
    k, v = (net.linear(net.x.name, "d", "d") for _ in "kv")
    logits = net.w.add("MatMul", net.weight("c", "d"), net.w.add("Transpose", k, perm=[0, 2, 1]))
    return net.w.add("MatMul", net.w.add("Softmax", logits, axis=-1), v)


def pooling_by_scores(net: Network) -> str:
    """Σ softmax(w·tanh(x))·x."""
    scores = net.w.add("MatMul", net.w.add("Tanh", net.linear(net.x.name, "d", "d")), net.weight("d", "c"))
    p = net.w.add("Transpose", net.w.add("Softmax", scores, axis=1), perm=[0, 2, 1])
    return net.w.add("MatMul", p, net.x.name)


def linear_attention(net: Network) -> str:
    """softmax(Q)·(softmax(K)ᵀ·V): the softmaxes are on Q over the head size and on K over the positions."""
    w = net.w
    q, k, v = (net.heads(net.linear(net.x.name, "d", "d")) for _ in "qkv")
    q = w.add("Mul", w.add("Softmax", q, axis=-1), w.const(np.array(0.35, np.float32)))
    k = w.add("Softmax", k, axis=-2)
    context = w.add("MatMul", w.add("Transpose", k, perm=[0, 1, 3, 2]), v)
    return net.merged(w.add("MatMul", q, context))


def mixture_of_experts(net: Network) -> str:
    """The two experts with the largest softmax, weighted by it, each a small network of its own."""
    w = net.w
    gates = w.add("Softmax", w.add("MatMul", net.x.name, net.weight("d", "e")), axis=-1)
    best = w.add("TopK", gates, w.numbers(2), outputs=2, axis=-1)
    best = w.add("Div", best, w.add("ReduceSum", best, w.numbers(-1), keepdims=1))
    parts = []
    for expert in range(2):
        y = net.linear(w.add("Relu", net.linear(net.x.name, "d", "f")), "f", "d")
        gate = w.add("Gather", best, w.numbers(expert), axis=2)
        parts.append(w.add("Mul", gate, y))
    return w.add("Add", *parts)


def soft_mixture_of_experts(net: Network) -> str:
    """Slots are mixtures of tokens (softmax over tokens), tokens mixtures of slots: x·φ is a projection."""
    w = net.w
    logits = w.add("MatMul", net.x.name, net.weight("d", "m"))
    dispatch = w.add("Transpose", w.add("Softmax", logits, axis=1), perm=[0, 2, 1])
    slots = net.linear(w.add("MatMul", dispatch, net.x.name), "d", "d")
    return w.add("MatMul", w.add("Softmax", logits, axis=-1), slots)


def gating_by_channel(net: Network) -> str:
    """Selective kernels: a softmax over branches weighs feature maps elementwise."""
    w = net.w
    p = w.add("Softmax", net.linear(net.x.name, "d", "d"), axis=-1)
    return w.add("Mul", p, net.x.name)


def similarity_alone(net: Network) -> str:
    """softmax(x·yᵀ), as contrastive models give: no product with values follows."""
    other = net.input("other", "b.t.d")
    return net.w.add(
        "Softmax", net.w.add("MatMul", net.x.name, net.w.add("Transpose", other.name, perm=[0, 2, 1])), axis=-1
    )


def embedding_lookup(net: Network) -> str:
    """Language model head, softmax, expected embedding."""
    ids = net.w.input("ids", ("b", "s"), INT64)
    table = net.weight("f", "d")
    x = net.w.add("Gather", table, ids.name)
    p = net.w.add("Softmax", net.w.add("MatMul", x, net.w.add("Transpose", table, perm=[1, 0])), axis=-1)
    return net.w.add("MatMul", p, table)


OTHERS: tuple[Callable[[Network], str], ...] = (
    classifier, classifier_of_each_token, expected_value_of_classes, pooling_by_a_learned_query, pooling_by_scores,
    linear_attention, mixture_of_experts, soft_mixture_of_experts, gating_by_channel, similarity_alone,
    embedding_lookup,
)  # fmt: skip


@pytest.mark.parametrize("network", OTHERS, ids=lambda network: network.__name__)
def test_a_softmax_that_is_no_attention_is_not_listed(network: Callable[[Network], str]) -> None:
    net = Network()
    proto = net.model(network(net))
    assert recognise(loaded(proto)) == ()


def test_attention_with_two_softmaxes_is_none() -> None:
    net = Network()
    w = net.w
    q, k, v = (net.heads(net.linear(net.x.name, "d", "d")) for _ in "qkv")
    logits = w.add("MatMul", q, w.add("Transpose", k, perm=[0, 1, 3, 2]))
    twice = w.add("Softmax", w.add("Softmax", logits, axis=-1), axis=-1)
    model = loaded(net.model(net.merged(w.add("MatMul", twice, v))))
    blocks = recognise(model)
    assert [[obstacle.code for obstacle in block.obstacles] for block in blocks] == [
        ["probabilities-operator"],
        ["logits-operator"],
    ]
    assert {choose(model, block, "auto").target for block in blocks} == {""}


def test_two_layers_that_share_their_mask_are_two_blocks() -> None:
    """Nothing of one layer is taken for the other, though the second reads what the first gives."""
    net = Network()
    w = net.w
    mask = net.input("mask", "b...s")
    y = net.x.name
    for _ in range(2):
        q, k, v = (net.heads(net.linear(y, "d", "d")) for _ in "qkv")
        logits = w.add("MatMul", q, w.add("Transpose", k, perm=[0, 1, 3, 2]))
        logits = w.add("Add", w.add("Mul", logits, w.const(np.array(0.35, np.float32))), mask.name)
        y = w.add("Add", y, net.linear(net.merged(w.add("MatMul", w.add("Softmax", logits, axis=-1), v)), "d", "d"))
    first, second = recognise(loaded(net.model(y)))
    assert first.obstacles == second.obstacles == ()
    assert not set(first.nodes) & set(second.nodes)
    assert [(block.label, block.num_heads, block.mask.kind) for block in (first, second)] == [
        ("attn0", 2, "additive"),
        ("attn1", 2, "additive"),
    ]
