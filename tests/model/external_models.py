"""Models with weights in files of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ONES = np.ones(16, np.float32).tobytes()


def stored(
    location: str,
    name: str = "w",
    *,
    offset: object = 0,
    length: object = 64,
    dims: tuple[int, ...] = (4, 4),
    data_type: int = TensorProto.FLOAT,
) -> TensorProto:
    """A tensor whose contents are in the file `location`; an entry that is None is left out."""
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def multiplying(*weights: TensorProto) -> onnx.ModelProto:
    """y = x @ (the first of the weights, all [4, 4])."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", weights[0].name], ["y"], name="mm")],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(location: str, **entries: object) -> onnx.ModelProto:
    """A model whose weight is in the file `location`."""
    return multiplying(stored(location, **entries))


EVERYWHERE = ("w.bin", "weights/a.bin", "weights/deeper/b.bin", "c.bin", "d.bin")


def everywhere(*, inside: bool = True) -> onnx.ModelProto:
    """y = x + 1 + 2 + 3 + 4 + 5, each number in a file of its own.

    They are an initializer, a Constant and an initializer `inside` a branch or beside it, a Constant, and one of a
    function.
    """
    sums = "p = Add (one, a) three = Add (p, b)"
    branch = "If (c) <then_branch = t () => (float[4, 4] q) {{ {} }}, else_branch = e () => (float[4, 4] r) {{ {} }}>"
    then, other = "a = Constant <value_int = 1> () p = Add (one, a) q = Add (p, b)", "r = Neg (x)"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[4, 4] x, bool c) => (float[4, 4] y) {{
            one = Add (x, w)
            {f"three = {branch.format(then, other)}" if inside else sums}
            k = Constant <value_int = 1> ()
            four = Add (three, k)
            y = my.F (four)
        }}
        <domain: "my", opset_import: ["": 17]> F (i) => (o) {{ d = Constant <value_int = 1> () o = Add (i, d) }}"""
    )
    w, a, b, c, d = (stored(location, name) for location, name in zip(EVERYWHERE, "wabcd", strict=True))
    proto.graph.initializer.append(w)
    constants = [(node, c) for node in proto.graph.node if node.op_type == "Constant"]
    if inside:
        body = proto.graph.node[1].attribute[0].g
        body.initializer.append(b)
        constants.append((body.node[0], a))
    else:
        proto.graph.initializer.extend([a, b])
    for node, tensor in (*constants, (proto.functions[0].node[0], d)):
        node.attribute[0].CopyFrom(helper.make_attribute("value", tensor))
    return proto


def write_data(folder: Path, *locations: str) -> None:
    """The files at `locations`: sixteen ones in the first, twos in the second, …"""
    for number, location in enumerate(locations, 1):
        path = folder / location
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.full(16, number, np.float32).tobytes())
