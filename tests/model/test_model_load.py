"""What `load` makes of good files, odd files and files that are no models at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from explorer.errors import ModelError
from explorer.model import load

NEG = "g (float[N, 4] x) => (float[N, 4] y) { a = Neg (x) y = Abs (a) }"


def model_with_weights() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"), helper.make_node("Neg", ["a"], ["y"], name="neg")],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refusal(path: Path | str) -> str:
    """The sentence with which `load` refuses the file."""
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.__cause__ is None
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestNoModel:
    def test_missing_file(self, tmp_path):
        text = refusal(tmp_path / "absent.onnx")
        assert "no such file" in text
        assert "absent.onnx" in text
        assert "check the path" in text

    def test_folder(self, tmp_path):
        assert "found a folder" in refusal(tmp_path)

    @pytest.mark.usefixtures("in_time")
    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert "a pipe or a device: save what it gives to a file" in refusal(tmp_path / "pipe")

    @pytest.mark.usefixtures("in_time")
    def test_a_device(self):
        assert "a pipe or a device" in refusal("/dev/zero")

    def test_path_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        assert "file/model.onnx" in refusal(tmp_path / "file" / "model.onnx")

    def test_name_too_long(self, tmp_path):
        assert "too long" in refusal(tmp_path / ("a" * 300))

    def test_name_with_a_null_byte(self, tmp_path):
        assert "expected" in refusal(str(tmp_path) + "/a\0b.onnx")

    def test_empty_file(self, write):
        text = refusal(write(b""))
        assert "empty" in text

    @pytest.mark.parametrize(
        "content",
        [
            b"hello, world\n",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
            b"<!DOCTYPE html><html><body>404</body></html>",
            b"\x89PNG\r\n\x1a\n" + bytes(64),
            b"PK\x03\x04" + bytes(64),
            b"\x80\x04\x95" + bytes(64),
        ],
        ids=["text", "git-lfs", "html", "png", "zip", "pickle"],
    )
    def test_another_format(self, write, content):
        text = refusal(write(content))
        assert "expected an ONNX model" in text
        assert str(len(content)) in text
        assert "export or download it again" in text

    def test_more_than_one_file_can_hold(self, tmp_path):
        """Its own external data, opened by mistake: refused before it is read."""
        path = tmp_path / "model.onnx_data"
        path.touch()
        os.truncate(path, 2**31)  # takes no room
        text = refusal(path)
        assert "2.1 GB" in text
        assert "external data" in text

    def test_graph_without_nodes(self, write):
        proto = model_with_weights()
        del proto.graph.node[:]
        assert "found an empty one" in refusal(write(proto))

    def test_model_without_an_opset(self, write):
        proto = model_with_weights()
        del proto.opset_import[:]
        text = refusal(write(proto))
        assert "opset" in text

    def test_every_truncation_is_refused(self, tmp_path):
        whole = model_with_weights().SerializeToString()
        path = tmp_path / "cut.onnx"
        opened = []
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            try:
                load(path)
            except ModelError:
                continue
            opened.append(length)
        assert opened == [], f"opened from these many of {len(whole)} bytes"

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_sample_is_refused(self, write, samples, share):
        whole = (samples / "f5_dit_fp16.onnx").read_bytes()
        text = refusal(write(whole[: int(len(whole) * share)]))
        assert "truncated" in text


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
@example([(164, 29)], True)  # an element type that does not exist
def test_a_damaged_file_opens_or_is_refused_in_one_sentence(edits, weights):
    whole = bytearray(
        (model_with_weights() if weights else onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {NEG}'))
        .SerializeToString()
    )  # fmt: skip
    for at, byte in edits:
        whole[at % len(whole)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.onnx")
        path.write_bytes(whole)
        try:
            model = load(path)
        except ModelError as error:
            model, sentence = None, str(error)
    if model is None:
        assert sentence
        assert "\n" not in sentence
    else:
        assert model.nodes


class TestIllFormedGraphs:
    def test_dangling_input(self, write):
        text = refusal(write("g (float[N] x) => (float[N] y) { [sum] y = Add (x, lost) }"))
        assert "'lost'" in text
        assert "'sum'" in text
        assert "export the model again" in text

    def test_dangling_input_in_a_body(self, write):
        text = refusal(
            write(
                """g (float[N] x, bool c) => (float[N] y) {
                     y = If (c) <then_branch = t () => (float[N] o) { o = Add (x, lost) },
                                 else_branch = e () => (float[N] p) { p = Neg (x) }>
                   }"""
            )
        )
        assert "'lost'" in text

    def test_output_that_nothing_gives(self, write):
        text = refusal(write("g (float[N] x) => (float[N] y) { a = Neg (x) }"))
        assert "'y'" in text

    def test_cycle(self, write):
        text = refusal(write("g (float[N] x) => (float[N] y) { a = Add (x, b) b = Neg (a) y = Neg (b) }"))
        assert "cycle" in text

    def test_one_name_for_two_tensors(self, write):
        text = refusal(write("g (float[N] x) => (float[N] y) { a = Neg (x) a = Abs (x) y = Neg (a) }"))
        assert "'a'" in text

    def test_one_name_for_two_stored_tensors(self, write):
        proto = model_with_weights()
        proto.graph.initializer.append(proto.graph.initializer[0])
        assert "'w'" in refusal(write(proto))

    def test_one_name_for_two_inputs(self, write):
        assert "'x'" in refusal(write("g (float[N] x, float[N] x) => (float[N] y) { y = Neg (x) }"))

    def test_an_input_without_a_name(self, write):
        proto = model_with_weights()
        proto.graph.input.add()
        assert "name for every input" in refusal(write(proto))

    @pytest.mark.parametrize("field", [b"MatMul", b"mm", b"axis", b"com.e"])
    def test_a_name_that_is_no_text(self, write, field):
        proto = model_with_weights()
        proto.graph.node[0].domain = "com.e"
        proto.graph.node[0].attribute.append(helper.make_attribute("axis", 1))
        assert "as text" in refusal(write(proto.SerializeToString().replace(field, b"\xff" + field[1:])))

    def test_a_type_that_does_not_exist(self, write):
        proto = model_with_weights()
        proto.graph.input[0].type.tensor_type.elem_type = 99
        assert "99" in refusal(write(proto))

    def test_nothing_is_printed_about_them(self, write, capfd, caplog):
        """One sentence, in the exception: libraries underneath must not add theirs to the terminal."""
        refusal(write("g (float[N] x) => (float[N] y) { y = Add (x, lost) }"))
        assert capfd.readouterr() == ("", "")
        assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


class TestOddButUsable:
    def test_unsorted_nodes_are_sorted_and_it_says_so(self, opened):
        model = opened("g (float[N] x) => (float[N] y) { y = Abs (b) b = Exp (a) a = Neg (x) }")
        assert [node.op_type for node in model.nodes] == ["Neg", "Exp", "Abs"]
        assert any("sorted" in note for note in model.notes)

    def test_sorted_nodes_keep_their_order(self, opened):
        model = opened("g (float[N] x) => (float[N] y, float[N] z) { z = Exp (x) a = Neg (x) y = Abs (a) }")
        assert [node.op_type for node in model.nodes] == ["Exp", "Neg", "Abs"]
        assert model.notes == ()

    def test_unknown_domain(self, opened):
        model = opened(
            "g (float[N] x) => (float[N] y) { a = other.org.Magic (x) b = other.org.Trick (a) y = Neg (b) }",
            header='<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>',
        )
        (note,) = [note for note in model.notes if "other.org" in note]
        assert "Magic" in note
        assert "registered" in note
        assert len(model.nodes) == 3

    def test_unknown_domain_in_a_body(self, opened):
        model = opened(
            """g (float[N] x, bool c) => (float[N] y) {
                 y = If (c) <then_branch = t () => (float[N] o) { o = other.org.Magic (x) },
                             else_branch = e () => (float[N] p) { p = Neg (x) }>
               }""",
            header='<ir_version: 8, opset_import: ["" : 17, "other.org" : 1]>',
        )
        assert any("other.org" in note for note in model.notes)

    def test_domain_of_a_function_of_the_model_is_known(self, opened):
        model = opened(
            'g (float[N] x) => (float[N] y) { y = my.Twice (x) } <domain: "my", opset_import: ["" : 17]> '
            "Twice (a) => (b) { b = Add (a, a) }",
            header='<ir_version: 8, opset_import: ["" : 17, "my" : 1]>',
        )
        assert model.notes == ()

    def test_microsoft_domain_is_known(self, opened):
        assert opened("g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu (x) }").notes == ()

    def test_opset_from_the_future(self, write):
        proto = model_with_weights()
        proto.opset_import[0].version = 99
        model = load(write(proto))
        assert model.opset == 99
        (note,) = model.notes
        assert "opset 99" in note
        assert str(onnx.defs.onnx_opset_version()) in note
        assert "older opset" in note

    def test_shape_inference_that_stops_is_a_note(self, opened, monkeypatch):
        def stop(*_: object, **__: object) -> None:
            raise onnx.shape_inference.InferenceError("[ShapeInferenceError] no luck\nand a long story")

        monkeypatch.setattr(onnx.shape_inference, "infer_shapes", stop)
        model = opened("g (float[2, 3] x) => (float[2, 3] y) { a = Neg (x) y = Neg (a) }")
        (note,) = model.notes
        assert "shapes are unknown" in note
        assert "no luck" in note
        assert "\n" not in note
        assert model.shape(model.value("x")) == (2, 3)

    def test_shapes_that_contradict_each_other_do_not_stop_it(self, opened):
        model = opened("g (float[2, 3] x, float[4, 5] z) => (float[2, 5] y) { a = MatMul (x, z) y = Neg (a) }")
        assert model.shape(model.value("y")) == (2, 5)

    def test_path_may_be_text_or_a_path(self, write):
        path = write(NEG)
        assert load(str(path)).path == load(path).path == path.resolve()

    def test_digest_is_the_hash_of_the_file(self, write):
        path = write(NEG)
        assert load(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_relative_path_is_made_absolute(self, write, tmp_path, monkeypatch):
        write(NEG)
        monkeypatch.chdir(tmp_path)
        assert load("model.onnx").path == Path(os.path.realpath(tmp_path), "model.onnx")

    def test_opset_under_its_long_name(self, write):
        proto = model_with_weights()
        proto.opset_import[0].domain = "ai.onnx"
        assert load(write(proto)).opset == 17
