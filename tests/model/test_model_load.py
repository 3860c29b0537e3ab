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


def external(location: str, *, offset: object = 0, length: object = 64, dims: tuple[int, ...] = (4, 4)):
    """The same model with its weight in the file `location`."""
    proto = model_with_weights()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = dims
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return proto


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


class TestExternalData:
    def test_is_left_where_it_is(self, write, tmp_path):
        (tmp_path / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
        model = load(write(external("w.bin")))
        np.testing.assert_array_equal(model.constant(model.value("w")), np.arange(16).reshape(4, 4))

    def test_missing(self, write):
        text = refusal(write(external("w.bin")))
        assert "'w.bin'" in text
        assert "found none" in text
        assert "copy it there" in text

    def test_too_short(self, write, tmp_path):
        (tmp_path / "w.bin").write_bytes(bytes(60))
        text = refusal(write(external("w.bin")))
        assert "at least 64 bytes" in text
        assert "found 60" in text
        assert "copy it again" in text

    def test_too_short_without_a_length(self, write, tmp_path):
        """`length` may be left out: then the type and the dimensions say how much there must be."""
        (tmp_path / "w.bin").write_bytes(bytes(60))
        text = refusal(write(external("w.bin", length=None)))
        assert "found 60" in text

    def test_too_short_behind_the_offset(self, write, tmp_path):
        (tmp_path / "w.bin").write_bytes(bytes(64))
        assert "at least 80 bytes" in refusal(write(external("w.bin", offset=16)))

    @pytest.mark.parametrize(
        ("offset", "length"), [("many", 64), (0, "some"), (-16, 64), (0, -1), ("1e3", 64), ("", 64)]
    )
    def test_nonsense_offsets(self, write, tmp_path, offset, length):
        (tmp_path / "w.bin").write_bytes(bytes(128))
        text = refusal(write(external("w.bin", offset=offset, length=length)))
        assert "'w'" in text

    @pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", ""])
    def test_outside_the_folder(self, tmp_path, location):
        (tmp_path / "w.bin").write_bytes(bytes(64))
        folder = tmp_path / "model"
        folder.mkdir()
        path = folder / "model.onnx"
        path.write_bytes(external(location).SerializeToString())
        text = refusal(path)
        assert "inside" in text
        assert repr(location) in text
        assert "refused" in text

    def test_through_a_link_to_the_outside(self, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(64))
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "w.bin").symlink_to(tmp_path / "secret")
        (folder / "model.onnx").write_bytes(external("w.bin").SerializeToString())
        assert "refused" in refusal(folder / "model.onnx")

    def test_in_a_subfolder(self, write, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "w.bin").write_bytes(np.ones(16, np.float32).tobytes())
        model = load(write(external("data/w.bin")))
        assert model.constant(model.value("w")).sum() == 16

    def test_found_from_another_working_directory(self, write, tmp_path, monkeypatch):
        (tmp_path / "w.bin").write_bytes(np.ones(16, np.float32).tobytes())
        write(external("w.bin"))
        monkeypatch.chdir(tmp_path)
        model = load("model.onnx")
        monkeypatch.chdir("/")
        assert model.constant(model.value("w")).sum() == 16

    def test_in_a_constant_of_a_body(self, write):
        tensor = external("w.bin").graph.initializer[0]
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["o"], value=tensor)],
            "branch",
            [],
            [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4, 4])],
        )
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
            "g",
            [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
        )
        assert "'w.bin'" in refusal(write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))


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
        assert model.shape(model.value("a")) is None

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


class TestKeys:
    def test_names_where_they_are_unique(self, opened):
        model = opened("g (float[N] x) => (float[N] y) { [one] a = Neg (x) [two] y = Neg (a) }")
        assert [model.key(node) for node in model.nodes] == ["one", "two"]

    @pytest.mark.parametrize("name", ["", "same"])
    def test_made_up_where_they_are_not(self, opened, name):
        label = f"[{name}] " if name else ""
        model = opened(f"g (float[N] x) => (float[N] y) {{ {label}a = Neg (x) {label}b = Abs (a) {label}y = Neg (b) }}")
        keys = [model.key(node) for node in model.nodes]
        assert len(set(keys)) == 3
        assert [model.node(key) for key in keys] == list(model.nodes)

    def test_a_made_up_key_never_collides_with_a_name(self, write):
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {NEG}')
        proto.graph.node[1].name = "Neg:a"  # what the nameless node before it would be called
        model = load(write(proto))
        keys = [model.key(node) for node in model.nodes]
        assert len(set(keys)) == 2
        assert keys[1] == "Neg:a", "a node with a unique name of its own keeps it"

    def test_the_same_on_every_load(self, write):
        path = write("g (float[N] x) => (float[N] y) { a = Neg (x) [n] b = Neg (a) [n] c = Neg (b) y = Abs (c) }")
        first, second = load(path), load(path)
        assert [first.key(n) for n in first.nodes] == [second.key(n) for n in second.nodes]

    def test_nodes_without_any_output(self, write):
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "o": 1]> {NEG}')
        for _ in range(2):
            proto.graph.node.append(helper.make_node("Print", ["a"], [], domain="o"))
        model = load(write(proto))
        assert len({model.key(node) for node in model.nodes}) == 4

    def test_bodies_follow_their_owner(self, opened):
        model = opened(
            """g (float[N] x, bool c) => (float[N] y) {
                 [first] a = Exp (x)
                 [choice] b = If (c) <then_branch = t () => (float[N] o) { [inner] o = Neg (a) },
                                       else_branch = e () => (float[N] p) { [inner] p = Abs (a) }>
                 [last] y = Sqrt (b)
               }"""
        )
        assert [node.op_type for node in model.nodes] == ["Exp", "If", "Neg", "Abs", "Sqrt"]
        assert model.op_counts() == {"Exp": 1, "If": 1, "Neg": 1, "Abs": 1, "Sqrt": 1}
        assert len({model.key(node) for node in model.nodes}) == 5
        assert model.has_value("o")
        assert not model.has_node("absent")

    def test_op_counts_most_frequent_first(self, opened):
        model = opened("g (float[N] x) => (float[N] y) { a = Neg (x) b = Abs (a) c = Abs (b) y = Exp (c) }")
        assert next(iter(model.op_counts().items())) == ("Abs", 2)
