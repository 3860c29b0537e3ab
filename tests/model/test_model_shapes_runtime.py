"""Whole graphs in ONNX Runtime: every value in between has the type that was inferred and the contents foretold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from explorer.model import Model, load
from explorer.model.dims import evaluate, is_known, symbols
from explorer.verify.inputs import seeded_inputs

HEADER = '<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>'


def _all_values(path: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What every node of the main graph gives, run as it stands."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    given = {output.name for output in proto.graph.output}
    names = [name for node in proto.graph.node for name in node.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds), strict=True))


def _sizes(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of the inputs' symbols."""
    sizes: dict[str, int] = {}
    for name, array in feeds.items():
        for dim, size in zip(model.shape(model.value(name)) or (), array.shape, strict=True):
            if isinstance(dim, str) and symbols(dim) == {dim}:
                assert sizes.setdefault(dim, size) == size
    return sizes


def check(path: Path, feeds: Mapping[str, np.ndarray]) -> None:
    """Run the model at `path` and compare all that is said of its values."""
    model = load(path)
    sizes = _sizes(model, feeds)
    for name, array in _all_values(path, feeds).items():
        value = model.value(name)
        shape, dtype = model.shape(value), model.dtype(value)
        assert dtype is not None, name
        assert shape is not None, name
        assert dtype.numpy() == array.dtype, name
        assert all(map(is_known, shape)), f"{name}: {shape}"
        assert tuple(evaluate(dim, sizes) for dim in shape) == array.shape, f"{name}: {shape}"
        contents = model.partial(value)
        if contents is None:
            continue
        assert contents.shape == array.shape, name
        if contents.dtype == object:
            assert [evaluate(element, sizes) for element in contents.flat] == array.ravel().tolist(), name
        else:
            np.testing.assert_allclose(contents, array, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", ["bert_fp32", "f5_dit_fp16", "f5_dit_fp16_two_casts", "gpt_fp32"])
@pytest.mark.parametrize("length", [3, 24])
def test_sample_models(samples, name, length):
    path = samples / f"{name}.onnx"
    check(path, seeded_inputs(load(path), length=length))


GRAPHS = {
    "heads": """g (float[batch, seq, 24] x, float[8, 24] t) => (float[a, b, c] y) {
        k0 = Constant <value = int64[1] {0}> () k1 = Constant <value = int64[1] {1}> ()
        h = Constant <value = int64[2] {4, 6}> () i = Constant <value = int64[1] {-1}> ()
        s = Shape (x) b = Gather (s, k0) n = Gather (s, k1) l = Slice (t, k0, n, k0) p = Add (x, l)
        u = Concat <axis = 0> (b, n, h) r = Reshape (p, u) q = Transpose <perm = [0, 2, 1, 3]> (r)
        kt = Transpose <perm = [0, 2, 3, 1]> (r) w = MatMul (q, kt) v = Softmax (w) o = MatMul (v, q)
        z = Transpose <perm = [0, 2, 1, 3]> (o) e = Concat <axis = 0> (b, n, i) y = Reshape (z, e) }""",
    "windows": """g (float[batch, 3, height, width] x, float[8, 3, 3, 3] w) => (float[a, b, c, d] y) {
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
        p = MaxPool <kernel_shape = [2, 2], strides = [1, 2]> (c) f = Flatten <axis = 2> (p)
        r = ReduceMean <keepdims = 1> (f) n = GlobalAveragePool (p)
        d = DepthToSpace <blocksize = 2> (p) y = Neg (d) }""",
    "rotary": """g (float[batch, past, 8] p, float[batch, seq, 8] x, float[512, 4] t) => (float[a, b, c] y) {
        z = Constant <value = int64[1] {0}> () i = Constant <value = int64[1] {1}> ()
        k = Concat <axis = 1> (p, x) sk = Shape (k) sx = Shape (x) all = Gather (sk, i) new = Gather (sx, i)
        from = Sub (all, new) c = Slice (t, from, all, z) h, g = Split <axis = 2, num_outputs = 2> (x) m = Mul (h, c)
        q = Slice (k, from, all, i) e = Concat <axis = 0> (new, i) o = Tile (c, e)
        y = Einsum <equation = "bsd,btd->bst"> (q, k) }""",
    "fused": """g (float[batch, seq, 24] q, float[batch, keys, 24] k, float[24] g) => (float[a, b, c] y) {
        m, pk, pv = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, k)
        s, , , sum = com.microsoft.SkipLayerNormalization (m, q, g, g)
        t, , , u = com.microsoft.SkipSimplifiedLayerNormalization (s, q, g) v = SimplifiedLayerNormalization (t, g)
        f = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (v, k) h = com.microsoft.Gelu (f)
        i = com.microsoft.FastGelu (h) j = com.microsoft.QuickGelu (i) l = com.microsoft.BiasGelu (m, g)
        y = Softmax (j) }""",
    "attention": """g (float[batch, seq, 24] x, float[24, 48] w, float[48] b) => (float[a, n, c] y) {
        y, p = com.microsoft.Attention <num_heads = 2> (x, w, b) }""",
    "past": """g (float[batch, seq, 24] q, float[batch, 4, past, 6] pk) => (float[a, n, c] y) {
        y, k, v = com.microsoft.MultiHeadAttention <num_heads = 4> (q, q, q, , , , pk, pk) }""",
    "grouped": """g (float[batch, 1, 32] q, float[batch, 1, 16] k, float[batch, 2, past, 8] c, int32[batch] l, int32 t)
          => (float[a, n, c] y) {
        y, , = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, k, c, c, l, t) }""",
    "embedding": """g (int32[batch, seq] ids, float[9, 8] w, float[32, 8] p, float[8] g) => (float[a, n, c] y) {
        y, m = com.microsoft.EmbedLayerNormalization (ids, , w, p, , g, g) }""",
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sizes", [(2, 3, 4, 5), (1, 7, 2, 6), (3, 8, 8, 8)])
def test_graphs(tmp_path, name, sizes):
    proto = onnx.parser.parse_model(HEADER + GRAPHS[name])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    size_of = dict(zip(("batch", "seq", "past", "keys"), sizes, strict=True))
    size_of |= {"height": 4 * sizes[1], "width": 4 * sizes[2]}
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or size_of[dim.dim_param] for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = np.asarray(rng.integers(0, 3, shape), dtype)
    if name == "grouped":  # how much of the cache counts
        feeds |= {"l": np.full(sizes[0], size_of["past"] - 1, np.int32), "t": np.array(size_of["past"], np.int32)}
    check(path, feeds)
