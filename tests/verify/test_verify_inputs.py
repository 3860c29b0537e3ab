"""Inputs that fit a model, and one sentence for those that do not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from attention_graphs import Meaning, render
from onnx import TensorProto, helper, numpy_helper

from explorer.errors import InputError
from explorer.model import load
from explorer.verify import input_shapes, load_inputs, seeded_inputs

TWO = "g (float[batch, seq, 4] x, float16[batch, 3] z) => (float[batch, seq, 4] y) { y = Neg (x) }"


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestShapes:
    def test_what_is_open_gets_a_size(self, opened):
        assert input_shapes(opened(TWO)) == {"x": (2, 32, 4), "z": (2, 3)}
        assert input_shapes(opened(TWO), length=256) == {"x": (2, 256, 4), "z": (2, 3)}

    def test_a_symbol_is_bound_everywhere(self, opened):
        assert input_shapes(opened(TWO), {"z": (5, 3)}) == {"x": (5, 32, 4), "z": (5, 3)}
        assert input_shapes(opened(TWO), {"x": (1, 7, 4)}) == {"x": (1, 7, 4), "z": (1, 3)}

    def test_the_order_is_the_models(self, opened):
        assert list(input_shapes(opened(TWO), {"z": (5, 3), "x": (5, 1, 4)})) == ["x", "z"]

    def test_a_dimension_without_a_name(self, opened):
        model = opened("g (float[?, ?, 4] x) => (float[?, ?, 4] y) { y = Neg (x) }")
        assert input_shapes(model) == {"x": (2, 32, 4)}

    def test_a_dimension_that_is_a_sum_of_others(self, opened):
        model = opened(
            helper.make_model(
                helper.make_graph(
                    [helper.make_node("Neg", ["x"], ["y"])],
                    "g",
                    [
                        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])
                        for name, size in (("whole", "past + seq"), ("x", "seq"), ("cache", "past"))
                    ],
                    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["seq"])],
                ),
                opset_imports=[helper.make_opsetid("", 17)],
            )
        )
        assert input_shapes(model, {"x": (3,), "cache": (4,)})["whole"] == (7,)
        assert input_shapes(model, {"whole": (7,), "x": (3,)})["cache"] == (4,)
        assert "past + seq" in refusal(input_shapes, model, {"whole": (8,), "x": (3,), "cache": (4,)})

    def test_a_scalar(self, opened):
        model = opened("g (float x, float[N] z) => (float y) { y = Neg (x) }")
        assert input_shapes(model)["x"] == ()

    def test_initializers_need_no_feed(self, tmp_path):
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, float[1] w) => (float[N] y) { y = Add (x, w) }'
        )
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        model = load(tmp_path / "m.onnx")
        assert list(input_shapes(model)) == ["x"]
        assert list(seeded_inputs(model)) == ["x"]

    def test_unknown_input(self, opened):
        text = refusal(input_shapes, opened(TWO), {"w": (2,)})
        assert "x, z" in text
        assert "'w'" in text

    @pytest.mark.parametrize("shape", [(2, 7, 5), (2, 7), (2, 7, 4, 1), (), (0, 7, 4), (2, -7, 4)])
    def test_wrong_shape(self, opened, shape):
        text = refusal(input_shapes, opened(TWO), {"x": shape})
        assert "batch×seq×4" in text
        assert "'x'" in text
        assert "×".join(map(str, shape)) in text

    def test_conflicting_symbols(self, opened):
        text = refusal(input_shapes, opened(TWO), {"x": (2, 7, 4), "z": (3, 3)})
        assert "'batch'" in text
        assert "2 and 3" in text
        assert "agree" in text

    def test_conflicting_symbols_in_one_input(self, opened):
        model = opened("g (float[n, n] x) => (float[n, n] y) { y = Neg (x) }")
        assert "3 and 4" in refusal(input_shapes, model, {"x": (3, 4)})
        assert input_shapes(model, {"x": (3, 3)}) == {"x": (3, 3)}

    def test_a_rank_that_the_model_leaves_open_is_the_users_to_choose(self, tmp_path):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
        path = tmp_path / "m.onnx"
        path.write_bytes(helper.make_model(graph).SerializeToString())
        assert input_shapes(load(path), {"x": (2, 3)}) == {"x": (2, 3)}


class TestSeeded:
    def test_types_and_shapes(self, opened):
        feeds = seeded_inputs(opened(TWO), {"x": (2, 5, 4)})
        assert {name: (a.dtype, a.shape) for name, a in feeds.items()} == {
            "x": (np.float32, (2, 5, 4)),
            "z": (np.float16, (2, 3)),
        }
        assert abs(seeded_inputs(opened(TWO), {"x": (8, 256, 4)})["x"].std() - 1) < 0.1

    def test_a_seed_is_reproducible_and_seeds_differ(self, opened):
        model = opened(TWO)
        first, again, other = seeded_inputs(model, seed=1), seeded_inputs(model, seed=1), seeded_inputs(model, seed=2)
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])
            assert not np.array_equal(first[name], other[name])

    def test_token_ids_stay_in_the_table(self, samples):
        feeds = seeded_inputs(load(samples / "bert_fp32.onnx"), {"input_ids": (4, 64)})
        ids = feeds["input_ids"]
        assert ids.dtype == np.int64
        assert ids.min() >= 0
        assert 64 < ids.max() < 128, "the whole table of 128 rows is used"

    def test_the_smallest_table_counts(self, opened):
        small, large = (", ".join("1" * count) for count in (14, 100))
        model = opened(
            f"""g (int64[n] ids) => (float[n, 2] y)
                  <float[7, 2] small = {{{small}}}, float[50, 2] large = {{{large}}}> {{
                  c = Cast <to = 6> (ids) a = Gather (small, c) b = Gather (large, ids) y = Add (a, b) }}"""
        )
        ids = seeded_inputs(model, {"ids": (500,)})["ids"]
        assert set(ids.tolist()) == set(range(7))

    def test_integers_that_index_nothing(self, opened):
        model = opened("g (int32[n] flags) => (int32[n] y) { y = Neg (flags) }")
        feeds = seeded_inputs(model, {"flags": (100,)})
        assert feeds["flags"].dtype == np.int32
        assert set(feeds["flags"].tolist()) == {0, 1}

    def test_booleans(self, opened):
        model = opened("g (bool[n] keep) => (bool[n] y) { y = Not (keep) }")
        keep = seeded_inputs(model, {"keep": (100,)})["keep"]
        assert keep.dtype == bool
        assert 0 < keep.sum() < 100

    def test_masks_hide_the_end_of_every_row_but_the_first(self, samples):
        mask = seeded_inputs(load(samples / "bert_fp32.onnx"), {"input_ids": (3, 16)})["attention_mask"]
        assert mask.shape == (3, 16)
        assert mask[0].tolist() == [1] * 16
        assert mask[1].tolist() == mask[2].tolist() == [1] * 12 + [0] * 4

    def test_bfloat16_is_given_as_float32(self, opened):
        model = opened("g (bfloat16[n] x) => (bfloat16[n] y) { y = Neg (x) }")
        assert seeded_inputs(model)["x"].dtype == np.float32

    def test_text_cannot_be_made_up(self, opened):
        model = opened("g (string[n] words) => (string[n] y) { y = Identity (words) }")
        text = refusal(seeded_inputs, model)
        assert "'words'" in text
        assert "in a file" in text


class TestFromAFile:
    def write(self, tmp_path: Path, **arrays: np.ndarray) -> Path:
        path = tmp_path / "feeds.npz"
        np.savez(path, **arrays)
        return path

    good = {"x": np.ones((2, 5, 4), np.float32), "z": np.ones((2, 3), np.float16)}  # noqa: RUF012

    def test_arrays_that_fit(self, opened, tmp_path):
        feeds = load_inputs(opened(TWO), self.write(tmp_path, **self.good, extra=np.zeros(1)))
        assert list(feeds) == ["x", "z"]
        np.testing.assert_array_equal(feeds["x"], self.good["x"])

    def test_missing_array(self, opened, tmp_path):
        text = refusal(load_inputs, opened(TWO), self.write(tmp_path, x=self.good["x"]))
        assert "'z'" in text
        assert "found only x" in text

    def test_wrong_type(self, opened, tmp_path):
        text = refusal(load_inputs, opened(TWO), self.write(tmp_path, **{**self.good, "z": np.ones((2, 3))}))
        assert "float16" in text
        assert "float64" in text
        assert "'z'" in text
        assert "convert" in text

    def test_wrong_shape(self, opened, tmp_path):
        arrays = {**self.good, "x": np.ones((2, 5, 9), np.float32)}
        text = refusal(load_inputs, opened(TWO), self.write(tmp_path, **arrays))
        assert "batch×seq×4" in text
        assert "2×5×9" in text

    def test_arrays_that_do_not_fit_each_other(self, opened, tmp_path):
        arrays = {**self.good, "z": np.ones((3, 3), np.float16)}
        text = refusal(load_inputs, opened(TWO), self.write(tmp_path, **arrays))
        assert "'batch'" in text
        assert "2 and 3" in text

    def test_missing_file(self, opened, tmp_path):
        assert "absent.npz" in refusal(load_inputs, opened(TWO), tmp_path / "absent.npz")

    def test_folder(self, opened, tmp_path):
        assert str(tmp_path) in refusal(load_inputs, opened(TWO), tmp_path)

    @pytest.mark.parametrize("kind", ["empty", "text", "npy", "truncated", "pickle", "zip of text", "damaged"])
    def test_not_an_npz(self, opened, tmp_path, kind):
        path = self.write(tmp_path, **self.good)
        whole = path.read_bytes()
        with io.BytesIO() as npy, io.BytesIO() as pickled, io.BytesIO() as zipped:
            np.save(npy, np.ones(3))
            np.savez(pickled, x=np.array([{}], object), z=self.good["z"])
            with zipfile.ZipFile(zipped, "w") as archive:
                archive.writestr("x", "hello")
                archive.writestr("z", "hello")
            damaged = bytearray(whole)
            at = whole.index(b"x.npy") + 300
            damaged[at : at + 8] = b"\xff" * 8
            content = {
                "empty": b"",
                "text": b"hello, world",
                "npy": npy.getvalue(),
                "truncated": whole[: len(whole) // 2],
                "pickle": pickled.getvalue(),
                "zip of text": zipped.getvalue(),
                "damaged": bytes(damaged),
            }[kind]
        path.write_bytes(content)
        text = refusal(load_inputs, opened(TWO), path)
        assert "feeds.npz" in text
        assert "allow_pickle" not in text, "numpy's advice is not ours"

    def test_the_file_is_closed(self, opened, tmp_path):
        path = self.write(tmp_path, **self.good)
        load_inputs(opened(TWO), path)
        open_files = {str(link.resolve()) for link in Path("/proc/self/fd").iterdir()}
        assert str(path.resolve()) not in open_files


def test_inputs_of_the_samples(samples):
    shapes = input_shapes(load(samples / "f5_dit_fp16.onnx"), {"x": (2, 938, 100)})
    assert shapes["x"] == (2, 938, 100)
    assert all(isinstance(size, int) for shape in shapes.values() for size in shape)
    assert "found 1×8×100" in refusal(input_shapes, load(samples / "f5_dit_fp16.onnx"), {"x": (1, 8, 100)})


def test_an_additive_float_mask_is_part_of_the_inputs(tmp_path):
    (tmp_path / "m.onnx").write_bytes(render(Meaning(mask="padding")).SerializeToString())
    model = load(tmp_path / "m.onnx")
    feeds = seeded_inputs(model, {"q": (2, 8, 16)})
    assert feeds["mask"].shape == (2, 1, 1, 8)
    assert feeds["mask"].dtype == np.float32
    assert feeds["mask"][0].max() == feeds["mask"][1, ..., :6].max() == 0
    assert set(feeds["mask"][1, ..., 6:].ravel()) == {-1e4}


@pytest.mark.parametrize(
    ("nodes", "hidden"),
    [
        ("y = Add (x, mask)", -1e4),
        ("wide = Unsqueeze (mask, axis) y = Add (x, wide)", -1e4),
        ("one = Constant <value = float {1.0}> () rest = Sub (one, mask) y = Add (x, rest)", 0),
        ("y = Mul (x, mask)", 0),
        ("y = com.microsoft.MultiHeadAttention <num_heads = 1> (x, x, x, , , mask)", -1e4),
    ],
)
def test_a_float_mask_hides_as_the_model_reads_it(opened, nodes, hidden):
    graph = "g (float[b, s, 8] x, float[b, s, s] mask) => (float[d0, d1, d2] y) {"
    graph = f"{graph} axis = Constant <value = int64[1] {{1}}> () {nodes} }}"
    mask = seeded_inputs(opened(graph), {"x": (2, 8, 8)})["mask"]
    assert set(mask[1, :, -2:].ravel()) == {hidden}
    assert set(mask[0].ravel()) == set(mask[1, :, :-2].ravel()) == {1 if hidden == 0 else 0}


def test_sizes_that_contradict_each_other(opened):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["13 - words"]), value("w", TensorProto.FLOAT, [1, "words"])],
        [value("y", TensorProto.FLOAT, ["13 - words"])],
    )
    model = opened(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    text = refusal(seeded_inputs, model)
    assert "found -19 with words = 32: give shapes" in text
    assert seeded_inputs(model, length=12)["x"].shape == (1,)
    assert seeded_inputs(model, {"w": (1, 5)})["x"].shape == (8,)
