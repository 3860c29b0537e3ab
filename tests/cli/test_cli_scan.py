"""What a scan shows people: a row for each family, every block on demand, the evidence for one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from attention_graphs import Meaning, Spelling, render
from cli_models import blocked, document, no_attention, renamed, two_blocks
from onnx import TensorProto, helper


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]

    def column(self, title: str) -> list[str]:
        return [row[self.header.index(title)] for row in self.rows]


def table(text: str) -> Table:
    """The table in a text: its columns stand two spaces or more apart."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("block"))
    end = lines.index("", start)
    header = lines[start]
    titles = [title for title in header.split("  ") if title.strip()]
    starts = [header.index(title.strip()) for title in titles]
    rows = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[start:end]]
    return Table([title.strip() for title in titles], rows[1:])


def fused(op: str = "Attention", heads: int = 4, kv: int = 2, **attributes: float) -> onnx.ModelProto:
    """One ai.onnx.Attention with fewer key heads, wider values and a softcap."""
    shapes = {"q": [2, heads, 5, 8], "k": [2, kv, 5, 8], "v": [2, kv, 5, 12], "y": [2, heads, 5, 12]}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    node = helper.make_node(op, ["q", "k", "v"], ["y"], name="fused", **attributes)
    graph = helper.make_graph([node], "g", infos[:3], infos[3:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def branch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` as the branch of an If."""
    inner = helper.make_graph(
        list(proto.graph.node), "then", [], list(proto.graph.output), list(proto.graph.initializer)
    )
    other = helper.make_graph([helper.make_node("Identity", ["q"], ["z"])], "else", [], [onnx.ValueInfoProto(name="z")])
    node = helper.make_node("If", ["yes"], ["out"], name="Branch", then_branch=inner, else_branch=other)
    inputs = [helper.make_tensor_value_info("yes", TensorProto.BOOL, []), *proto.graph.input]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)


class TestFamilies:
    def test_one_row_for_all_that_are_alike(self, run, write):
        found = table(run("scan", write(two_blocks())).out)
        assert found.column("blocks") == ["attn0…attn1"]
        assert found.column("count") == ["2"]
        assert found.column("status") == ["fusable"]
        assert "id" not in found.header

    def test_every_block(self, run, write):
        path = write(two_blocks())
        found = table(run("scan", path, "--all").out)
        blocks = document(run("scan", path, "--json"))["blocks"]
        assert found.column("block") == ["attn0", "attn1"]
        assert found.column("id") == [block["id"] for block in blocks]
        assert found.column("anchor") == [block["anchor"] for block in blocks]

    def test_what_stands_in_the_way_is_said_once(self, run, write):
        first, second = (onnx.compose.add_prefix(blocked(), f"{name}_") for name in "ab")
        both = onnx.compose.merge_models(first, second, io_map=[("a_y", "b_q")])
        out = run("scan", write(both)).out
        (line,) = [line for line in out.splitlines() if "cannot be fused" in line]
        assert line.startswith("attn0…attn1 cannot be fused: at a_")
        assert "(in attn0, and likewise in the others)" in line
        assert "remove that output if you do not need it" in line
        assert table(out).column("status") == ["blocked"]

    def test_why_ort_leaves_them_is_said_once(self, run, write):
        out = run("scan", write(two_blocks())).out
        assert out.count("Why ONNX Runtime leaves attn0…attn1 alone: ") == 1
        assert out.count("Why ONNX Runtime leaves") == 1

    def test_the_document_has_both(self, run, write):
        found = document(run("scan", write(two_blocks()), "--json"))
        assert found["families"] == [{"label": "attn0…attn1", "blocks": [block["id"] for block in found["blocks"]]}]
        assert document(run("scan", write(no_attention()), "--json"))["families"] == []


class TestColumns:
    def test_keys_and_values_where_they_differ(self, run, write):
        found = table(run("scan", write(fused(softcap=30.0, softmax_precision=10))).out)
        assert found.column("heads") == ["4 (2 kv)"]
        assert found.column("head size") == ["8 (12 v)"]
        assert found.column("softcap") == ["30"]
        assert found.column("types") == ["float32 → float16"]
        assert found.column("status") == ["fused"]

    def test_what_does_not_differ_is_not_said_twice(self, run, write):
        found = table(run("scan", write(fused(kv=4))).out)
        assert found.column("heads") == ["4"]
        assert found.column("types") == ["float32"]
        assert "softcap" not in found.header

    def test_what_nobody_knows(self, run, write):
        proto = fused()
        for info in (*proto.graph.input, *proto.graph.output):
            info.type.tensor_type.ClearField("shape")
        found = table(run("scan", write(proto)).out)
        assert (found.column("heads"), found.column("head size"), found.column("scale")) == (["?"], ["?"], ["?"])

    def test_the_document_has_them_too(self, run, write):
        (block,) = document(run("scan", write(fused(softcap=30.0)), "--json"))["blocks"]
        assert (block["kv_num_heads"], block["v_head_size"], block["softcap"]) == (2, 12, 30)
        assert block["sizes"] == {"B": 2, "G": 2, "H": 8, "R": 2, "S": 5, "T": 5, "V": 12}
        assert block["layouts"] == {"query": "B(GR)SH", "key": "BGSH", "value": "BGSH"}


class TestExplain:
    @pytest.mark.parametrize("by", ["label", "id"])
    def test_the_evidence_step_by_step(self, run, write, by):
        path = write(two_blocks())
        block = document(run("scan", path, "--json"))["blocks"][1]
        outcome = run("scan", path, "--explain", block[by])
        assert outcome.status == 0
        assert outcome.out.startswith(f"attn1 ({block['id']}) at {block['anchor']}: fusable\n")
        assert "one of attn0…attn1: 2 identical blocks" in outcome.out
        lines = outcome.out.splitlines()
        for number, step in enumerate(block["evidence"], 1):
            at = lines.index(f"{number:>3}. {step['text']}")
            assert [line.strip() for line in lines[at + 1 : at + 1 + len(step["nodes"])]] == step["nodes"]
        assert f"Why ONNX Runtime leaves it alone: {block['ort_reason']}" in outcome.out

    def test_what_stands_in_the_way(self, run, write):
        out = run("scan", write(blocked()), "--explain", "attn0").out
        assert "It cannot be fused: at " in out

    def test_several(self, run, write):
        out = run("scan", write(two_blocks()), "--explain", "attn1", "--explain", "attn0").out
        assert out.index("attn1 (") < out.index("attn0 (")

    def test_an_unknown_block(self, run, write):
        sentence = run("scan", write(), "--explain", "attn9").sentence
        assert "'attn9'" in sentence
        assert "attn0" in sentence

    @pytest.mark.parametrize("other", ["--all", "--json"])
    def test_not_together_with_another_form(self, run, write, other):
        assert run("scan", write(), "--explain", "attn0", other).status == 2

    @pytest.mark.parametrize("name", ["\x1b[2Jred", "x\nPASSED: fine", "\u202eback"], ids=ascii)
    def test_names_cannot_forge_lines(self, run, write, name):
        out = run("scan", write(renamed("MatMul", name)), "--explain", "attn0").out
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert not any(line.startswith("PASSED") for line in out.splitlines())


class TestShapes:
    def path(self, write):
        return write(render(Meaning(), Spelling()))

    def test_a_shape_taken_for_granted(self, run, write):
        path = self.path(write)
        (before,) = document(run("scan", path, "--json"))["blocks"]
        (after,) = document(run("scan", path, "--shape", "q=2x5x16", "--json"))["blocks"]
        assert (before["sizes"]["S"], after["sizes"]["S"]) == ("rows", 5)
        assert "[2, 5, 16]" in run("scan", path, "--shape", "q=2x5x16").out

    def test_what_is_written_declares_it(self, run, write, tmp_path):
        out = tmp_path / "out.onnx"
        assert run("fuse", self.path(write), "-o", out, "--shape", "q=2x5x16").status == 0
        dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in dims] == [2, 5, 16]

    def test_one_that_does_not_fit(self, run, write):
        assert "expected" in run("scan", self.path(write), "--shape", "q=2x5").sentence
        assert "nobody" in run("scan", self.path(write), "--shape", "nobody=1").sentence

    def test_help_says_what_it_means(self, run):
        for command in ("scan", "fuse"):
            assert "taken for granted" in " ".join(run(command, "--help").out.split())
        for command in ("verify", "profile"):
            assert "to run on" in " ".join(run(command, "--help").out.split())


class TestScope:
    def test_a_block_in_the_body_of_a_node(self, run, write):
        path = write(branch(render(Meaning(), Spelling(dynamic=False))))
        (block,) = document(run("scan", path, "--json"))["blocks"]
        assert block["scope"] == "Branch"
        assert "in the body of Branch" in run("scan", path, "--explain", "attn0").out

    def test_one_in_the_main_graph(self, run, write):
        (block,) = document(run("scan", write(), "--json"))["blocks"]
        assert block["scope"] is None


def test_numbers_that_are_none_are_still_a_table(run, write):
    proto = render(Meaning(), Spelling(dynamic=False))
    scale = next(t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), scale.name))
    assert table(run("scan", write(proto)).out).column("scale") == ["nan"]
