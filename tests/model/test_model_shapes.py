"""The pass over a graph: how dimensions relate where exporters compute shapes at run time, and whom to believe."""

from __future__ import annotations

import time

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from explorer.model import Model, TensorType
from explorer.model.dims import is_known
from explorer.model.shapes import infer
from explorer.model.types import infer_types

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "other.org" : 1]>'


@pytest.fixture
def shape_of(opened):
    """The shape of value `y` (or another) of a graph given as text."""

    def shape(text: str, name: str = "y") -> tuple[int | str, ...] | None:
        model = opened(text, header=HEADER)
        return model.shape(model.value(name))

    return shape


def c(name: str, *numbers: int) -> str:
    return f"{name} = Constant <value = int64[{len(numbers)}] {{{', '.join(map(str, numbers))}}}> () "


SIZES = f"""s = Shape (x) {c("k0", 0)} {c("k1", 1)} {c("k2", 2)} b = Gather (s, k0) n = Gather (s, k1) """


class TestExporters:
    """Chains of the TorchScript exporter, which ONNX's inference leaves at 'unk__3'."""

    def test_heads_out_of_a_width_and_back(self, shape_of):
        text = f"""g (float[batch, seq, 768] x) => (float[a, b, c] y) {{ {SIZES}
            {c("h", 12)} {c("d", 64)} {c("w", -1)} t = Concat <axis = 0> (b, n, h, d) r = Reshape (x, t)
            p = Transpose <perm = [0, 2, 1, 3]> (r) m = Mul (b, h) u = Concat <axis = 0> (m, n, d) q = Reshape (p, u)
            v = Concat <axis = 0> (b, h, w, d) o = Reshape (q, v) z = Transpose <perm = [0, 2, 1, 3]> (o)
            e = Concat <axis = 0> (b, n, w) y = Reshape (z, e) }}"""
        assert shape_of(text, "p") == ("batch", 12, "seq", 64)
        assert shape_of(text, "q") == ("12*batch", "seq", 64)
        assert shape_of(text, "o") == ("batch", 12, "seq", 64)
        assert shape_of(text) == ("batch", "seq", 768)

    def test_the_target_of_an_expand_behind_equal_and_where(self, shape_of):
        text = f"""g (float[batch, 1, 1, total] m, float[batch, seq, 8] x) => (float[a, b, c, d] y) {{ {SIZES}
            sm = Shape (m) {c("k3", 3)} w = Gather (sm, k3) {c("one", 1)} t = Concat <axis = 0> (b, one, n, w)
            r = Shape (t) f = ConstantOfShape <value = int64[1] {{1}}> (r) minus = Constant <value = int64 {{-1}}> ()
            g = Mul (f, minus) e = Equal (t, g) target = Where (e, f, t) y = Expand (m, target) }}"""
        assert shape_of(text) == ("batch", 1, "seq", "total")

    def test_a_table_cut_to_the_length(self, shape_of):
        text = f"""g (float[batch, seq, 8] x) => (float[a, b, c] y) <float[512, 8] w = {{{", ".join(["0"] * 4096)}}}> {{
            {SIZES} t = Slice (w, k0, n, k0) y = Add (x, t) }}"""
        assert shape_of(text, "t") == ("min(512, seq)", 8)
        assert shape_of(text) == ("batch", "seq", 8), "what is added to a whole must be as long or of length 1"

    def test_a_table_cut_at_the_end_of_a_past(self, shape_of):
        text = """g (float[batch, past, 8] p, float[batch, seq, 8] x) => (float[a, b, c] y) {
            k = Concat <axis = 1> (p, x) sk = Shape (k) sx = Shape (x) i = Constant <value = int64[1] {1}> ()
            all = Gather (sk, i) new = Gather (sx, i) from = Sub (all, new) y = Slice (k, from, all, i) }"""
        assert shape_of(text, "k") == ("batch", "past + seq", 8)
        assert shape_of(text) == ("batch", "seq", 8)

    def test_a_start_of_unknown_sign(self, shape_of):
        """ALiBi of MPT: bias[:, :, 64 - seq:]; a start below 0 counts from the end, so this is seq up to 64 only."""
        text = f"""g (float[batch, seq, seq] x) => (float[a, b, c] y)
            <float[1, 1, 64] w = {{{", ".join(["0"] * 64)}}}> {{ {SIZES} {c("l", 64)} {c("e", 9223372036854775807)}
            from = Sub (l, n) bias = Slice (w, from, e, k2) y = Add (x, bias) }}"""
        assert shape_of(text) == ("batch", "seq", "seq")
        assert is_known(shape_of(text, "bias")[2])

    def test_positions(self, shape_of):
        text = f"""g (float[batch, seq, 8] x) => (int64[a, b] y) {{ {SIZES}
            zero = Constant <value = int64 {{0}}> () one = Constant <value = int64 {{1}}> () q = Squeeze (n)
            r = Range (zero, q, one) u = Unsqueeze (r, k0) t = Concat <axis = 0> (b, n) y = Expand (u, t) }}"""
        assert shape_of(text, "r") == ("seq",)
        assert shape_of(text) == ("batch", "seq")

    def test_padding_to_whole_windows_and_folding_them_into_the_batch(self, shape_of):
        text = f"""g (float[batch, seq, 8] x) => (float[a, b, c] y) {{ {SIZES} {c("w", 16)} {c("d", 8)} {c("i", -1)}
            zero = Constant <value = int64 {{0}}> () rest = Mod (n, w) over = Sub (w, rest) more = Mod (over, w)
            {c("z", 0, 0, 0, 0)} {c("z1", 0)} pads = Concat <axis = 0> (z, more, z1) p = Pad (x, pads)
            s2 = Shape (p) n2 = Gather (s2, k1) count = Div (n2, w) t = Concat <axis = 0> (b, count, w, d)
            r = Reshape (p, t) u = Concat <axis = 0> (i, w, d) y = Reshape (r, u) }}"""
        shape = shape_of(text)
        assert shape[1:] == (16, 8)
        assert is_known(shape[0])

    def test_a_size_in_floats(self, shape_of):
        text = f"""g (float[batch, seq, 8] x) => (float[a] y) {{ {SIZES} q = Squeeze (n) f = Cast <to = 1> (q)
            zero = Constant <value = float {{0.0}}> () one = Constant <value = float {{1.0}}> ()
            y = Range (zero, f, one) }}"""
        assert shape_of(text) == ("seq",)

    def test_operators_of_onnx_runtime_do_not_stop_it(self, shape_of):
        text = """g (float[batch, seq, 64] q, float[batch, keys, 64] k, float[8] g) => (float[a, b, c] y) {
            m = com.microsoft.MultiHeadAttention <num_heads = 8> (q, k, k) n, , , s =
            com.microsoft.SkipSimplifiedLayerNormalization (m, q, g) f = com.microsoft.FusedMatMul <transB = 1> (s, k)
            y = com.microsoft.Gelu (f) }"""
        assert shape_of(text) == ("batch", "seq", "keys")
        assert shape_of(text, "s") == ("batch", "seq", 64)


class TestEquality:
    """Nothing is said to be equal that need not be."""

    def test_two_symbols_broadcast(self, shape_of):
        both = shape_of("g (float[a] x, float[b] z) => (float[n] y) { y = Add (x, z) }")
        assert both == ("max(a, b)",)

    def test_a_number_and_a_symbol_broadcast(self, shape_of):
        assert shape_of("g (float[a] x, float[7] z) => (float[n] y) { y = Add (x, z) }") == (7,)

    def test_sizes_that_cannot_be_1_are_equal_or_the_model_is_wrong(self, shape_of):
        text = "g (float[a, k] x, float[b, k] z) => (float[n, m] y) { c = Concat <axis = 0> (x, x) y = Add (c, z) }"
        assert shape_of(text) == ("2*a", "k")

    def test_a_squeeze_of_every_axis_of_size_1_leaves_a_rank_that_nobody_knows(self, shape_of):
        assert shape_of("g (float[a, 1, b] x) => (float[n] z) { y = Squeeze (x) z = Neg (y) }") is None
        assert shape_of("g (float[4, 1, 3] x) => (float[n] z) { y = Squeeze (x) z = Neg (y) }") == (4, 3)

    def test_what_depends_on_contents_is_unknown_and_the_same_downstream(self, shape_of):
        text = "g (bool[a] x) => (int64[n, m] z) { y = NonZero (x) z = Transpose (y) }"
        rank, count = shape_of(text)
        assert rank == 1
        assert not is_known(count)
        assert shape_of(text, "z") == (count, 1)

    def test_an_unknown_factor_cancels(self, shape_of):
        text = f"""g (bool[a] m, float[a, 6, 8] x) => (float[n, h, d] y) {{ p = Compress <axis = 0> (x, m)
            {c("t", -1, 48)} r = Reshape (p, t) {c("u", -1, 6, 8)} y = Reshape (r, u) }}"""
        assert shape_of(text) == shape_of(text, "p")


class TestWhomToBelieve:
    def infer(self, text: str, known: dict[str, TensorType]) -> dict[str, TensorType]:
        proto = onnx.parser.parse_model(HEADER + text)
        return infer(ir.from_proto(proto), {**infer_types(proto)[0], **known})

    TEXT = "g (float[batch, 8] x) => (float[n, m] y) { a = Neg (x) u = other.org.Magic (a) y = Neg (u) }"

    def test_a_rule_before_what_else_is_said(self):
        stale = TensorType(ir.DataType.FLOAT16, ("?7", 8))
        types = self.infer(self.TEXT, {"a": stale})
        assert str(types["a"]) == "float32[batch, 8]"

    def test_numbers_that_contradict_a_rule(self):
        types = self.infer(self.TEXT, {"a": TensorType(ir.DataType.FLOAT, ("batch", 9))})
        assert str(types["a"]) == "float32[batch, 9]"

    def test_another_rank_than_a_rule_finds(self):
        types = self.infer(self.TEXT, {"a": TensorType(ir.DataType.FLOAT, (3, 4, 5))})
        assert str(types["a"]) == "float32[3, 4, 5]"

    def test_where_there_is_no_rule(self):
        types = self.infer(self.TEXT, {"u": TensorType(ir.DataType.FLOAT, (3, "?7"))})
        assert types["y"].shape == (3, "?7")

    def test_dimensions_that_a_rule_leaves_open(self):
        text = "g (bool[a] x) => (int64[n, m] y) { y = NonZero (x) }"
        types = self.infer(text, {"y": TensorType(ir.DataType.INT64, (1, "a"))})
        assert types["y"].shape == (1, "a")

    def test_a_function_of_the_model_is_not_the_operator_of_that_name(self, opened):
        proto = onnx.parser.parse_model(
            HEADER + "g (float[a, 4] x) => (float[n, m] y) { y = other.org.Neg (x) }"
            """ <domain: "other.org", opset_import: ["" : 17]> Neg (x) => (y) { y = Transpose (x) }"""
        )
        proto.graph.node[0].domain = proto.functions[0].domain = "com.microsoft"
        proto.functions[0].name = proto.graph.node[0].op_type = "Gelu"
        model = opened(proto)
        assert model.shape(model.value("y"))[0] == 4


class TestBodies:
    LOOP = """g (float[batch, 4] x, int64 count) => (float[n, m] y, float[i, j, k] z) {{
        t = Constant <value = bool {{1}}> ()
        y, z = Loop (count, t, x) <body = b (int64 i, bool go, float[p, q] old) => (bool on, new, each) {{
            on = Identity (go) {0} each = Neg (new) }}> }}"""

    def test_what_a_loop_keeps(self, shape_of):
        text = self.LOOP.format("new = Neg (old)")
        assert shape_of(text) == ("batch", 4)
        assert shape_of(text, "new") == ("batch", 4)
        times, *each = shape_of(text, "z")
        assert each == ["batch", 4]
        assert not is_known(times)

    def test_what_a_loop_lets_grow(self, shape_of):
        text = self.LOOP.format("new = Concat <axis = 0> (old, x)")
        rows, columns = shape_of(text)
        assert columns == 4
        assert not is_known(rows)
        assert not is_known(shape_of(text, "new")[0])
        assert shape_of(text, "z")[1] != rows, "what is unknown inside differs from one repetition to the next"

    def test_what_a_loop_brings_to_another_rank(self, shape_of):
        text = self.LOOP.format("k = Constant <value = int64[1] {0}> () new = Unsqueeze (old, k)")
        text = text.replace("float[p, q] old", "old")  # else the body says that it is a matrix, which is then believed
        assert shape_of(text, "new") is None

    def test_loops_in_loops_end(self, opened):
        inner = "new = Concat <axis = 0> (old, old)"
        for depth in range(6):
            inner = f"""t{depth} = Constant <value = bool {{1}}> () new = Loop (i, t{depth}, old) <body =
                b{depth} (int64 i{depth}, bool g{depth}, float[p, q] o{depth}) => (bool h{depth}, float[p, q] r{depth})
                {{ h{depth} = Identity (g{depth}) {inner.replace("old", f"o{depth}").replace("new", f"r{depth}")} }}>"""
        start = time.perf_counter()
        model = opened(self.LOOP.format(inner))
        assert time.perf_counter() - start < 10
        assert not is_known(model.shape(model.value("y"))[0])

    def test_a_scan(self, shape_of):
        text = """g (float[batch] x, float[steps, batch, 4] s) => (float[n] y, float[i, j] z) {
            y, z = Scan <num_scan_inputs = 1, body = b (float[p] old, float[p, q] each) => (new, out) {
                m = ReduceSum <keepdims = 0> (each) new = Add (old, m) out = Neg (new) }> (x, s) }"""
        assert shape_of(text) == ("batch",)
        assert shape_of(text, "each") == ("batch", 4)
        assert shape_of(text, "z") == ("steps", "batch")

    IF = """g (float[batch, 4] x, bool c) => (float[n, m] y) {{
        k = Constant <value = int64[1] {{0}}> () {0}
        y = If (c{1}) <then_branch = t () => (float[i, j] a) {{ a = Concat <axis = 0> (x, x) }},
                    else_branch = e () => (float[i, j] b) {{ b = Neg (x) }}> }}"""

    def test_branches_that_differ(self, shape_of):
        rows, columns = shape_of(self.IF.format("", ""))
        assert columns == 4
        assert not is_known(rows)

    def test_the_branch_that_is_always_taken(self, shape_of):
        text = self.IF.format(
            "s = Shape (x) r = Size (s) two = Constant <value = int64 {2}> () cc = Equal (r, two)", "c"
        )
        assert shape_of(text) == ("2*batch", 4)

    def test_one_name_in_both_branches(self):
        proto = onnx.parser.parse_model(
            HEADER
            + """g (float[batch, 4] x, bool c) => (float[n, m] y) {
                 y = If (c) <then_branch = t () => (float[i, j] a) { h = Neg (x) a = Neg (h) },
                             else_branch = e () => (float[i, j] b) { h = Concat <axis = 0> (x, x) b = Neg (h) }> }"""
        )
        types = infer(ir.from_proto(proto), {"x": TensorType(ir.DataType.FLOAT, ("batch", 4))})
        rows, columns = types["h"].shape
        assert columns == 4
        assert not is_known(rows)


class TestIllFormed:
    @pytest.mark.parametrize(
        "steps",
        [
            "y = Transpose <perm = [0, 5]> (x)",
            "y = Concat <axis = 7> (x, x)",
            "y = Conv (x, x)",
            "y = MatMul (x)",
            "y = Reshape (x)",
            'y = Einsum <equation = "ijk,k->"> (x, x)',
            "k = Constant <value = int64[2] {7, -7}> () y = Reshape (x, k)",
            "k = Constant <value = int64[1] {-7}> () y = Expand (x, k)",
            "k = Constant <value = int64[4] {-99, 0, 0, 0}> () y = Pad (x, k)",
            "k = Constant <value = int64[1] {0}> () y = Slice (x, k, k, k, k)",
            "y = Cast <to = 99> (x)",
            "y = Split (x)",
            "y = Gather <axis = 4> (x, x)",
            "y = com.microsoft.MultiHeadAttention (x)",
            "y = AveragePool <kernel_shape = [3]> (x)",
            "y = Loop (x, x)",
            "y = Flatten <axis = 9> (x)",
        ],
    )
    def test_no_rule_raises(self, steps):
        proto = onnx.parser.parse_model(HEADER + f"g (float[a, 4] x) => (float[n] z) {{ {steps} z = Neg (y) }}")
        types = infer(ir.from_proto(proto), {"x": TensorType(ir.DataType.FLOAT, ("a", 4))})
        shape = types["y"].shape if "y" in types else None
        assert shape is None or all(isinstance(dim, str) or dim >= 0 for dim in shape)


def test_a_rewritten_graph_keeps_the_types_it_is_given(opened):
    model = opened("g (float[batch, 4] x) => (float[n, m] y) { a = Neg (x) y = Neg (a) }")
    new = {"a": TensorType(ir.DataType.FLOAT, ("batch", 5))}
    again = Model(model.ir, path=model.path, digest="", types={**model.types, **new})
    assert again.shape(again.value("a")) == ("batch", 5)
    assert again.shape(again.value("x")) == ("batch", 4)


def test_a_long_chain_takes_time_in_proportion(opened):
    """20,000 nodes of the kind that exporters write for each Reshape."""
    nodes, x = [], "x"
    for at in range(4000):
        nodes += [
            helper.make_node("Shape", [x], [f"s{at}"]),
            helper.make_node("Gather", [f"s{at}", "zero"], [f"b{at}"]),
            helper.make_node("Concat", [f"b{at}", "rest"], [f"t{at}"], axis=0),
            helper.make_node("Reshape", [x, f"t{at}"], [f"r{at}"]),
            helper.make_node("Transpose", [f"r{at}"], [f"x{at}"], perm=[0, 2, 1]),
        ]
        x = f"x{at}"
    graph = helper.make_graph(
        nodes,
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", 8])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        [
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("rest", TensorProto.INT64, [2], [8, -1]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    known = {"x": TensorType(ir.DataType.FLOAT, ("batch", "seq", 8))}
    start = time.process_time()
    types = infer(model, known)
    assert time.process_time() - start < 6
    assert types[x].shape == ("batch", "seq", 8)
