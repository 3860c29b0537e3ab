"""An edit that changes the meaning of attention, or hides it, is an obstacle that names it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from attention_reading import loaded
from onnx import TensorProto, helper, numpy_helper

from explorer.attention import recognise
from explorer.fusion import choose

SIZES = Meaning(batch=2, heads=2, rows=5, keys=7)


class Edited:
    """A graph of attention that is being changed."""

    def __init__(self, meaning: Meaning = SIZES, spelling: Spelling = Spelling(dynamic=False)) -> None:  # noqa: B008
        self.proto = render(meaning, spelling)
        self.graph = self.proto.graph
        self.softmax = self.node("Softmax")
        self.logits, self.probabilities = self.softmax.input[0], self.softmax.output[0]

    def node(self, op: str, at: int = 0) -> onnx.NodeProto:
        return [node for node in self.graph.node if node.op_type == op][at]

    def const(self, array: object, dtype: type = np.float32) -> str:
        name = f"const{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Write a node behind all that its inputs need; returns its first output."""
        names = [f"new{len(self.graph.node)}_{at}" for at in range(outputs)]
        node = helper.make_node(op, list(inputs), names, name=f"New{op}{len(self.graph.node)}", **attributes)
        made = {name: at for at, other in enumerate(self.graph.node) for name in other.output}
        self.graph.node.insert(max((made[name] for name in inputs if name in made), default=-1) + 1, node)
        return names[0]

    def splice(self, value: str, write: Callable[[], str]) -> None:
        """Let everybody who reads `value` read what `write` makes of it instead."""
        readers = [node for node in self.graph.node if value in node.input]
        new = write()
        for node in readers:
            node.input[:] = [new if name == value else name for name in node.input]

    def output(self, name: str) -> None:
        self.graph.output.append(onnx.ValueInfoProto(name=name))


def wrong_axis(e: Edited) -> str:
    e.softmax.attribute[0].i = 2
    return e.softmax.name


def batch_axis(e: Edited) -> str:
    e.softmax.attribute[0].i = 0
    return e.softmax.name


def scale_of(number: float) -> Callable[[Edited], str]:
    def edit(e: Edited) -> str:
        e.node("Mul").input[1] = e.const(number)
        return e.softmax.name if np.isfinite(number) else e.node("MatMul").name

    return edit


def on_logits(op: str, *constants: object, **attributes: object) -> Callable[[Edited], str]:
    """Another operator between QKᵀ and Softmax."""

    def edit(e: Edited) -> str:
        e.splice(e.logits, lambda: e.add(op, e.logits, *[e.const(x) for x in constants], **attributes))
        return e.node(op, -1).name

    return edit


def on_probabilities(op: str, *constants: object, **attributes: object) -> Callable[[Edited], str]:
    """Another operator between Softmax and P·V."""

    def edit(e: Edited) -> str:
        e.splice(e.probabilities, lambda: e.add(op, e.probabilities, *[e.const(x) for x in constants], **attributes))
        return e.node(op, -1).name

    return edit


def output_logits(e: Edited) -> str:
    e.output(e.logits)
    return e.logits


def output_probabilities(e: Edited) -> str:
    e.output(e.probabilities)
    return e.probabilities


def second_reader(e: Edited) -> str:
    e.output(e.add("ReduceSum", e.probabilities))
    return e.probabilities


def reader_of_the_product(e: Edited) -> str:
    product = e.node("MatMul").output[0]
    e.output(e.add("Neg", product))
    return product


def reader_of_the_result(e: Edited) -> str:
    """P·V is read on its way to the merged heads, so these cannot be one operator's output."""
    result = e.node("Transpose", -1).output[0]
    e.output(e.add("Abs", result))
    return result


def mixing_matrix(value: Callable[[Edited], str]) -> Callable[[Edited], str]:
    def edit(e: Edited) -> str:
        def write() -> str:
            apart = e.add("Transpose", value(e), perm=[0, 2, 3, 1])
            mixed = e.add("MatMul", apart, e.const([[0.5, 0.5], [-0.5, 0.5]]))
            return e.add("Transpose", mixed, perm=[0, 3, 1, 2])

        e.splice(value(e), write)
        return _maker(e, "NewMatMul")

    return edit


def mixing_convolution(value: Callable[[Edited], str]) -> Callable[[Edited], str]:
    def edit(e: Edited) -> str:
        weight = np.array([[0.5, 0.5], [-0.5, 0.5]]).reshape(2, 2, 1, 1)
        e.splice(value(e), lambda: e.add("Conv", value(e), e.const(weight)))
        return e.node("Conv").name

    return edit


def mixing_einsum(value: Callable[[Edited], str]) -> Callable[[Edited], str]:
    def edit(e: Edited) -> str:
        weight = e.const([[0.5, 0.5], [-0.5, 0.5]])
        e.splice(value(e), lambda: e.add("Einsum", value(e), weight, equation="bnst,nm->bmst"))
        return e.node("Einsum").name

    return edit


def _maker(e: Edited, start: str) -> str:
    return next(node.name for node in e.graph.node if node.name.startswith(start))


def top_keys(e: Edited) -> str:
    """All but the three largest logits of a row are hidden."""

    def write() -> str:
        largest = e.add("TopK", e.logits, e.const([3], np.int64), outputs=2)
        least = e.add("ReduceMin", largest, axes=[-1], keepdims=1)
        return e.add("Where", e.add("Less", e.logits, least), e.const(-np.inf), e.logits)

    e.splice(e.logits, write)
    return e.node("Where").name


def gated_by_itself(e: Edited) -> str:
    e.splice(e.logits, lambda: e.add("Mul", e.logits, e.add("Sigmoid", e.logits)))
    return _maker(e, "NewMul")


def sink_column(e: Edited) -> str:
    """A learned logit for "nothing" beside those of the keys (gpt-oss)."""
    sink = e.const(np.zeros((2, 2, 5, 1)))
    e.splice(e.logits, lambda: e.add("Concat", e.logits, sink, axis=-1))
    bounds = [e.const([number], np.int64) for number in (0, 7, 3)]
    e.splice(e.probabilities, lambda: e.add("Slice", e.probabilities, *bounds))
    return e.node("Concat").name


def dropout(value: Callable[[Edited], str], training: str) -> Callable[[Edited], str]:
    def edit(e: Edited) -> str:
        if training == "input":
            e.graph.input.append(helper.make_tensor_value_info("training", TensorProto.BOOL, []))
            mode = "training"
        else:
            mode = e.const(True, np.bool_)
        e.splice(value(e), lambda: e.add("Dropout", value(e), e.const(0.1), mode))
        return e.node("Dropout").name

    return edit


def of_another_type(e: Edited) -> str:
    """V is fp32 among fp16, and so is the result."""
    for name in ("v", "y"):
        value = next(x for x in (*e.graph.input, *e.graph.output) if x.name == name)
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    cast = e.node("Cast", -1)
    e.splice(cast.output[0], lambda: cast.input[0])
    e.graph.node.remove(cast)
    return e.node("MatMul").name


def factor_per_key(e: Edited) -> str:
    e.splice(e.logits, lambda: e.add("Mul", e.logits, e.const(np.linspace(0.5, 2, 7))))
    return e.node("MatMul").name


def filled_with(number: float) -> Callable[[Edited], str]:
    def edit(e: Edited) -> str:
        e.node("Where").input[2] = e.const(number)
        return e.node("Where").name

    return edit


def turned_around(e: Edited) -> str:
    """Hidden logits become the largest ones."""
    e.splice(e.logits, lambda: e.add("Mul", e.logits, e.const(-1.0)))
    return "mask"


def shuffled(e: Edited) -> str:
    """A Reshape that puts queries where keys were."""
    e.splice(e.logits, lambda: e.add("Reshape", e.logits, e.const([2, 2, 7, 5], np.int64)))
    return _maker(e, "NewReshape")


def without_ranks(e: Edited) -> str:
    for value in e.graph.input:
        value.type.tensor_type.ClearField("shape")
    for node in [node for node in e.graph.node if node.op_type == "Reshape"][:3]:
        target = f"shape_of_{node.name}"
        e.graph.input.append(helper.make_tensor_value_info(target, TensorProto.INT64, ["rank"]))
        node.input[1] = target
    return e.node("MatMul").name


def unknown_heads(e: Edited) -> str:
    for value in e.graph.input:
        value.type.tensor_type.shape.dim[1].dim_param = "heads"
    return e.node("MatMul").name


def two_batches(e: Edited) -> str:
    e.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "other"
    return e.node("MatMul").name


def other_sum(e: Edited) -> str:
    """The probabilities are summed over the queries."""
    e.splice(e.probabilities, lambda: e.add("Transpose", e.probabilities, perm=[0, 1, 3, 2]))
    return e.softmax.name


LOGITS, PROBABILITIES = (lambda e: e.logits), (lambda e: e.probabilities)
STATIC = (SIZES, Spelling(dynamic=False))
PADDED = (Meaning(keys=7, mask="padding"), Spelling(dynamic=False))
WHERE = (Meaning(keys=7, mask="boolean2"), Spelling(dynamic=False))
SQUARE = (Meaning(), Spelling(dynamic=False))
BNSH = (Meaning(keys=7), Spelling(query="bnsh", key="bnsh", value="bnsh", merge="none"))
SANDWICH = (Meaning(half=True), Spelling(casts="before"))

Edit = Callable[[Edited], str]
EDITS: dict[str, tuple[tuple[Meaning, Spelling], Edit, str]] = {
    "softmax over the queries": (STATIC, wrong_axis, "softmax-axis"),
    "softmax over the batch": (STATIC, batch_axis, "softmax-axis"),
    "zero scale": (STATIC, scale_of(0.0), "scale"),
    "infinite scale": (STATIC, scale_of(np.inf), "scale"),
    "factor per key": (STATIC, factor_per_key, "scale-unknown"),
    "tanh behind a mask": (PADDED, on_logits("Tanh"), "logits-operator"),
    "relu on the logits": (STATIC, on_logits("Relu"), "logits-operator"),
    "narrow clip": (STATIC, on_logits("Clip", -5.0, 5.0), "logits-operator"),
    "power of the logits": (STATIC, on_logits("Pow", 2.0), "logits-operator"),
    "rounded logits": (STATIC, on_logits("Round"), "logits-operator"),
    "logits shuffled": (STATIC, shuffled, "logits-layout"),
    "heads mixed before softmax by MatMul": (STATIC, mixing_matrix(LOGITS), "talking-heads"),
    "heads mixed before softmax by Conv": (STATIC, mixing_convolution(LOGITS), "talking-heads"),
    "heads mixed before softmax by Einsum": (STATIC, mixing_einsum(LOGITS), "talking-heads"),
    "heads mixed behind softmax by MatMul": (STATIC, mixing_matrix(PROBABILITIES), "talking-heads"),
    "heads mixed behind softmax by Conv": (STATIC, mixing_convolution(PROBABILITIES), "talking-heads"),
    "heads mixed behind softmax by Einsum": (STATIC, mixing_einsum(PROBABILITIES), "talking-heads"),
    "largest logits only": (STATIC, top_keys, "mask-from-logits"),
    "logits gated by themselves": (STATIC, gated_by_itself, "mask-from-logits"),
    "sink column": (STATIC, sink_column, "attention-sink"),
    "dropout of logits that trains": (STATIC, dropout(LOGITS, "constant"), "dropout"),
    "dropout of probabilities that trains": (STATIC, dropout(PROBABILITIES, "constant"), "dropout"),
    "dropout that may train": (STATIC, dropout(PROBABILITIES, "input"), "dropout"),
    "probabilities doubled": (STATIC, on_probabilities("Mul", 2.0), "probabilities-operator"),
    "probabilities squared": (STATIC, on_probabilities("Pow", 2.0), "probabilities-operator"),
    "probabilities clipped": (STATIC, on_probabilities("Clip", 0.1, 1.0), "probabilities-operator"),
    "sum over the queries": (SQUARE, other_sum, "softmax-axis"),
    "masked logits that do not vanish": (WHERE, filled_with(-5.0), "logits-operator"),
    "masked logits of zero": (WHERE, filled_with(0.0), "logits-operator"),
    "masked logits turned around": (WHERE, turned_around, "mask-fill"),
    "logits are an output": (STATIC, output_logits, "interior-output"),
    "probabilities are an output": (STATIC, output_probabilities, "interior-output"),
    "probabilities have another reader": (STATIC, second_reader, "interior-used"),
    "QKᵀ has another reader": (STATIC, reader_of_the_product, "interior-used"),
    "V of another type": (SANDWICH, of_another_type, "mixed-dtypes"),
    "unknown ranks": (STATIC, without_ranks, "product"),
    "unknown number of heads": (BNSH, unknown_heads, "heads-unknown"),
    "batches that need not be equal": (BNSH, two_batches, "shape-unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_that_changes_the_meaning_is_an_obstacle(name: str) -> None:
    start, edit, code = EDITS[name]
    edited = Edited(*start)
    at = edit(edited)
    model = loaded(edited.proto)
    (block,) = recognise(model)
    choice = choose(model, block, "mha")
    obstacles = choice.obstacles
    assert choice.target == ""
    assert (obstacles[0].code, obstacles[0].at) == (code, at)
    assert {obstacle.code for obstacle in obstacles} == {code}
