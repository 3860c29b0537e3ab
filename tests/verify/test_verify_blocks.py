"""Blocks cut out of both models and judged on what they receive."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_texts import ATTENTION, FUSED, HEADER, OUTPUT, PROJECTIONS, SIGNATURE, model, padded

from explorer.attention import recognise
from explorer.errors import SessionError
from explorer.model import load
from explorer.verify import blocks as judging
from explorer.verify import verify

UNMASKED = PROJECTIONS + ATTENTION.replace("MASKED", "Identity (scaled)") + OUTPUT
UNMASKED_FUSED = PROJECTIONS + FUSED.replace(", , , expanded", "") + OUTPUT


def layer(nodes: str, number: int, previous: str) -> str:
    """The nodes with names of their own, reading `previous` in place of x."""
    proto = onnx.parser.parse_model(f"{HEADER} {SIGNATURE} {{ {nodes} }}")
    own = {name: f"{name}_{number}" for node in proto.graph.node for name in node.output} | {"x": previous}
    for node in proto.graph.node:
        for field in (node.input, node.output):
            field[:] = [own.get(name, name) for name in field]
    return onnx.printer.to_text(proto.graph).partition("{")[2].rpartition("}")[0]


def stack(first: str, second: str) -> str:
    """Two layers, one after the other."""
    return layer(first, 1, "x") + layer(second, 2, "y_1") + "y = Identity (y_2)"


@pytest.fixture
def opened(tmp_path):
    return lambda name, nodes, *args: model(tmp_path, name, nodes, *args)


class TestSeveralBlocks:
    def test_each_is_judged_on_its_own_inputs(self, worker, opened):
        """What the first block spoils is no fault of the second."""
        original = opened("original", stack(UNMASKED, UNMASKED))
        wrong = UNMASKED_FUSED.replace("scale = 0.5", "scale = 0.6")
        verdict = verify(worker, original, opened("fused", stack(wrong, UNMASKED_FUSED)), recognise(original))
        first, second = verdict.blocks
        assert (first.passed, second.passed) == (False, True)
        assert not verdict.outputs[0].passed
        assert verdict.failed_blocks == (first.block,)
        assert verdict.suggestion.startswith("Leave unfused: attn0 (at ")
        assert "attn1" not in verdict.suggestion

    def test_however_few_are_held_at_a_time(self, worker, opened, monkeypatch):
        monkeypatch.setattr(judging, "_CAPTURED_BYTES", 1)
        original = opened("original", stack(UNMASKED, UNMASKED))
        fused = opened("fused", stack(UNMASKED_FUSED, UNMASKED_FUSED))
        said = []
        verdict = verify(worker, original, fused, recognise(original), on_progress=lambda at, text: said.append(text))
        assert [block.label for block in verdict.blocks] == ["attn0", "attn1"]
        assert verdict.passed
        assert {"running the inputs of attn0", "running the inputs of attn1"} <= set(said)

    def test_one_that_refuses_does_not_hide_the_others(self, worker, opened):
        refuses = UNMASKED_FUSED.replace("(xq, k, v", "(xq, k, w").replace(
            "context =",
            "unit = Constant <value = int64[1] {1}> () second = Gather <axis = 2> (v, unit) "
            "none = Sub (second, second) w = Add (v, none) context =",
        )
        original = opened("original", stack(UNMASKED, UNMASKED))
        verdict = verify(worker, original, opened("fused", stack(UNMASKED_FUSED, refuses)), recognise(original))
        (case,) = [case for case in verdict.cases if case.refused_by == "fused"]
        assert case.words == "length 1"
        assert [(block.label, block.passed) for block in case.blocks] == [("attn0", True), ("attn1", False)]
        assert verdict.failed_blocks == (recognise(original)[1].id,)

    def test_a_block_that_receives_what_another_gives(self, worker, opened):
        """The second block's query is the first one's output as it is."""
        chained = PROJECTIONS.replace("xq = MatMul (x, wq)", "xq = Identity (x)")
        before = chained + ATTENTION.replace("MASKED", "Identity (scaled)")
        after = chained + FUSED.replace(", , , expanded", "")
        texts = [
            layer(nodes + "y = Identity (context)", 1, "x").replace("y_1 = Identity (context_1)", "")
            + layer(nodes + OUTPUT, 2, "context_1")
            + "y = Identity (y_2)"
            for nodes in (before, after)
        ]
        original = opened("original", texts[0])
        blocks = recognise(original)
        assert blocks[0].output.value in [view.value for view in blocks[1].query.views]
        wrong = texts[1].replace("scale: float = 0.5", "scale: float = 0.6", 1)
        assert wrong != texts[1]
        verdict = verify(worker, original, opened("fused", wrong), blocks)
        assert [block.passed for block in verdict.blocks] == [False, True]
        assert verify(worker, original, opened("right", texts[1]), blocks).passed


class TestWhatABlockReceives:
    def test_it_is_reported(self, worker, opened):
        before, after = padded()
        original = opened("original", before)
        verdict = verify(worker, original, opened("fused", after), recognise(original))
        (block,) = verdict.cases[0].blocks
        report = {item.role: item for item in block.received}
        assert set(report) == {"query", "key", "value", "mask"}
        assert report["mask"].shape == (2, 1, 1, 32)
        assert (report["mask"].low, report["mask"].high, report["mask"].nonfinite) == (-1e4, 0.0, 0)
        assert report["query"].dtype == "float32"
        document = verdict.block_report(block.block)
        assert [case["words"] for case in document["cases"]] == [case.words for case in verdict.cases]

    def test_sizes_from_elsewhere_are_captured_too(self, worker, opened):
        """Both models take the output's shape from x, which no block receives."""
        texts = [
            text.replace("merge = Constant <value = int64[3] {0, 0, 8}> ()", "merge = Shape (x)")
            for text in (UNMASKED, UNMASKED_FUSED)
        ]
        texts[1] = texts[1].replace("context =", "flat =").replace(
            OUTPUT, f"merge = Shape (x) context = Reshape (flat, merge) {OUTPUT}"
        )  # fmt: skip
        original = opened("original", texts[0])
        verdict = verify(worker, original, opened("fused", texts[1]), recognise(original))
        assert verdict.passed
        assert len(verdict.blocks) == 1
        assert verdict.notes == ()

    def test_an_operand_that_is_an_input_or_a_weight(self, worker, opened):
        signature = "attention (float[b, s, 8] x, float[b, 2, s, 4] q) => (float[b, s, 8] y)"
        cut = "q = Transpose <perm = [0, 2, 1, 3]> (q4)"
        before = UNMASKED.replace(cut, "").replace("q4 = Reshape (xq, split)", "").replace("xq = MatMul (x, wq)", "")
        back = "qt = Transpose <perm = [0, 2, 1, 3]> (q) flat = Constant <value = int64[3] {0, 0, 8}> ()"
        after = before.partition("kt =")[0] + back + " xq = Reshape (qt, flat) " + UNMASKED_FUSED.partition("(v4)")[2]
        original = opened("original", before, signature)
        verdict = verify(worker, original, opened("fused", after, signature), recognise(original))
        assert verdict.passed
        assert len(verdict.blocks) == 1


class TestReading:
    """A block that was read as something else than what the graph computes."""

    def read_wrongly(self, original, **changes):
        (block,) = recognise(original)
        return [type(block)(**{name: getattr(block, name) for name in block.__slots__} | changes)]

    def test_is_a_failure_even_if_fused_as_it_was_read(self, worker, opened):
        before, after = padded()
        original = opened("original", before)
        fused = opened("fused", after.replace("scale = 0.5", "scale = 0.8"))
        verdict = verify(worker, original, fused, self.read_wrongly(original, scale=0.8))
        (block,) = verdict.blocks
        assert block.fused.relative < 1e-6, "it does compute what was read"
        assert not block.passed
        assert "gives something else than this block was read as" in block.problem

    def test_an_original_that_rounds_badly_is_not_misread(self, worker, opened, tmp_path):
        """Logits of hundreds in float16: the original is far from the truth, but for its roundings alone."""
        halved = UNMASKED.replace("(x, w", "(xh, w").replace("y = MatMul", "yh = MatMul")
        large = halved.replace("Constant <value = float {0.5}> ()", "Cast <to = 10> (half)")
        nodes = f"xh = Cast <to = 10> (x) half = Constant <value = float {{500.0}}> () {large} y = Cast <to = 1> (yh)"
        original = as_half(opened("original", nodes), tmp_path)
        fused = UNMASKED_FUSED.replace("(x, w", "(xh, w").replace("y = MatMul", "yh = MatMul").replace("0.5", "500.0")
        other = as_half(opened("fused", f"xh = Cast <to = 10> (x) {fused} y = Cast <to = 1> (yh)"), tmp_path)
        verdict = verify(worker, original, other, recognise(original))
        (block,) = verdict.blocks
        assert block.problem == ""


def as_half(opened, folder):
    """The model with its weights in float16."""
    proto = onnx.load(opened.path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    opened.path.write_bytes(proto.SerializeToString())
    return load(opened.path)


BODY = """
    go = Constant <value = bool {{1}}> () trips = Constant <value = int64 {{2}}> ()
    y = Loop <body = body (int64 i, bool on, float[b, s, 8] carried) => (bool on_out, float[b, s, 8] out) {{
        on_out = Identity (on)
        {}
        out = Identity (y_1)
    }}> (trips, go, x)
"""


class TestBodies:
    """Values inside a Loop cannot be captured."""

    def judged(self, worker, opened, before: str, after: str):
        original, fused = (
            opened(name, BODY.format(layer(nodes, 1, "carried")))
            for name, nodes in (("original", before), ("fused", after))
        )
        blocks = recognise(original)
        assert len(blocks) == 1
        return verify(worker, original, fused, blocks)

    @pytest.mark.parametrize(
        ("before", "after", "roles"),
        [
            (UNMASKED, UNMASKED_FUSED, {"query", "key", "value"}),
            (*padded(), {"query", "key", "value", "mask"}),
        ],
        ids=["plain", "masked"],
    )
    def test_a_block_inside_is_judged_on_made_up_values(self, worker, opened, before, after, roles):
        verdict = self.judged(worker, opened, before, after)
        assert verdict.passed
        assert {item.role for item in verdict.blocks[0].received} == roles
        assert any("judged by made-up Q, K, V and masks" in note for note in verdict.notes)
        rows = [{item.role: item.shape for item in case.blocks[0].received}["key"][0] for case in verdict.cases]
        assert set(rows) == {1, 2}, "sizes are those of the case"

    def test_a_wrong_one_fails(self, worker, opened):
        verdict = self.judged(worker, opened, UNMASKED, UNMASKED_FUSED.replace("scale = 0.5", "scale = 0.6"))
        assert not verdict.blocks[0].passed
        assert not verdict.outputs[0].passed

    def test_a_mask_inside_is_hidden_from_the_last_keys(self, worker, opened):
        before, after = padded()
        verdict = self.judged(worker, opened, before, after.replace("Expand (bias", "Expand (nothing").replace(
            "bias = Mul (hidden, low)", "bias = Mul (hidden, low) nothing = Sub (bias, bias)"
        ))  # fmt: skip
        assert not verdict.blocks[0].passed


def test_what_cannot_be_judged_alone_is_said(worker, opened):
    """The fused model has no value of the block's output's name."""
    before, after = padded()
    original = opened("original", before)
    fused = opened("fused", after.replace("context", "elsewhere"))
    verdict = verify(worker, original, fused, recognise(original))
    assert verdict.passed
    assert verdict.blocks == ()
    assert any("1 fused block" in note and "judged by the model's outputs alone" in note for note in verdict.notes)


def test_a_fused_model_that_does_not_load_is_an_error(worker, opened):
    before, after = padded()
    original = opened("original", before)
    with pytest.raises(SessionError, match=r"cannot load fused\.onnx: .*NoSuchAttention"):
        verify(worker, original, opened("fused", after.replace("MultiHead", "NoSuch")), recognise(original))


def test_a_fused_model_that_never_runs_fails(worker, opened):
    before, after = padded()
    original = opened("original", before)
    verdict = verify(worker, original, opened("fused", after.replace("num_heads = 2", "num_heads = 3")), [])
    assert not verdict.passed
    assert {case.refused_by for case in verdict.cases} == {"fused"}
    assert "does not run at seed 0 (it says: ONNX Runtime" in verdict.suggestion
