"""How long a scan takes against the size of the graph: `load` and `recognise` on transformers of 1k to 100k nodes.

    python benchmarks/scan_speed.py [--sizes 1000 10000 …] [--repeat 3] [--json OUT.json]

The graphs are what a TorchScript export of eager attention looks like: no value_info, every Reshape target computed
from Shape → Gather → Unsqueeze → Concat, scales from Shape → Cast → Sqrt, decomposed LayerNorm and Gelu, a Constant
node for every scalar. Each row is the fastest of the repeats. `cpu_s` is the process's own time, which other work on
the machine hardly changes; `us_per_node` is made of it, and `ratio` relates that to the smallest graph: 1.0 is linear.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from explorer.attention import recognise
from explorer.model import load

SIZES = (1_000, 3_000, 10_000, 17_000, 30_000, 100_000)
HEADS, HEAD_SIZE = 4, 8
WIDTH = HEADS * HEAD_SIZE


class Tape:
    """Nodes and weights, written one after the other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def number(self, value: object, dtype: type = np.float32) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def weight(self, *shape: int) -> str:
        name = f"onnx::weight_{len(self.weights)}"
        values = self._rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[0]))
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def linear(self, x: str, rows: int, columns: int) -> str:
        return self.op("Add", self.weight(columns), self.op("MatMul", x, self.weight(rows, columns)))

    def dim(self, x: str, axis: int) -> str:
        size = self.op("Gather", self.op("Shape", x), self.number(axis, np.int64), axis=0)
        return self.op("Unsqueeze", size, self.number([0], np.int64))

    def layer_norm(self, x: str) -> str:
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.number(2)), axes=[-1])
        deviation = self.op("Sqrt", self.op("Add", variance, self.number(1e-5)))
        normal = self.op("Div", centred, deviation)
        return self.op("Add", self.op("Mul", normal, self.weight(WIDTH)), self.weight(WIDTH))

    def heads(self, x: str) -> str:
        """(B, S, D) → (B, S, N, H), the target computed from x."""
        sizes = [self.number([HEADS], np.int64), self.number([HEAD_SIZE], np.int64)]
        target = self.op("Concat", self.dim(x, 0), self.dim(x, 1), *sizes, axis=0)
        return self.op("Reshape", self.linear(x, WIDTH, WIDTH), target)

    def root_of_scale(self, query: str) -> str:
        """√(1/√H) as scaled_dot_product_attention is exported: half of the scale on Q, half on K."""
        size = self.op("Slice", self.op("Shape", query), *(self.number([i], np.int64) for i in (-1, 2**63 - 1)))
        root = self.op("Sqrt", self.op("Cast", size, to=TensorProto.FLOAT))
        return self.op("Sqrt", self.op("Cast", self.op("Div", self.number([1.0]), root), to=TensorProto.FLOAT))

    def attention(self, x: str, mask: str) -> str:
        query = self.op("Transpose", self.heads(x), perm=[0, 2, 1, 3])
        key = self.op("Transpose", self.heads(x), perm=[0, 2, 3, 1])
        value = self.op("Transpose", self.heads(x), perm=[0, 2, 1, 3])
        query = self.op("Mul", query, self.root_of_scale(query))
        key = self.op("Mul", key, self.root_of_scale(query))
        logits = self.op("Add", self.op("MatMul", query, key), mask)
        heads = self.op("MatMul", self.op("Softmax", logits, axis=-1), value)
        merged = self.op("Transpose", heads, perm=[0, 2, 1, 3])
        target = self.op("Concat", self.dim(merged, 0), self.dim(merged, 1), self.number([WIDTH], np.int64), axis=0)
        return self.linear(self.op("Reshape", merged, target), WIDTH, WIDTH)

    def gelu(self, x: str) -> str:
        error = self.op("Erf", self.op("Div", x, self.number(2**0.5)))
        product = self.op("Mul", x, self.op("Add", error, self.number(1.0)))
        return self.op("Mul", product, self.number(0.5))

    def layer(self, x: str, mask: str) -> str:
        x = self.op("Add", x, self.attention(self.layer_norm(x), mask))
        inner = self.gelu(self.linear(self.layer_norm(x), WIDTH, 2 * WIDTH))
        return self.op("Add", x, self.linear(inner, 2 * WIDTH, WIDTH))


def transformer(size: int) -> onnx.ModelProto:
    """An encoder of whole layers with about `size` nodes."""
    tape = Tape()
    hidden = "x"
    while len(tape.nodes) < size:
        before = len(tape.nodes)
        hidden = tape.layer(hidden, "mask")
        if size - len(tape.nodes) < (len(tape.nodes) - before) / 2:
            break
    tape.nodes.append(helper.make_node("Identity", [hidden], ["y"], name="/y"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 1, "sequence"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    graph = helper.make_graph(tape.nodes, "transformer", [x, mask], [y], tape.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(size: int, repeat: int) -> dict[str, float]:
    """Fastest of `repeat` scans of a transformer with about `size` nodes."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(transformer(size).SerializeToString())
        for _ in range(repeat):
            start, cpu = time.perf_counter(), time.process_time()
            model = load(path)
            loaded = time.perf_counter()
            blocks = recognise(model)
            end, cpu_end = time.perf_counter(), time.process_time()
            times.append((cpu_end - cpu, end - start, loaded - start, end - loaded))
            nodes, found = len(model.nodes), len(blocks)
            del model, blocks
    cpu_s, total_s, load_s, recognise_s = min(times)
    row = {"load_s": load_s, "recognise_s": recognise_s, "total_s": total_s, "cpu_s": cpu_s}
    seconds = {name: round(value, 3) for name, value in row.items()}
    return {"nodes": nodes, "blocks": found, **seconds, "us_per_node": round(cpu_s / nodes * 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    rows: list[dict[str, float]] = []
    columns = ("nodes", "blocks", "load_s", "recognise_s", "total_s", "cpu_s", "us_per_node", "ratio")
    print("".join(f"{column:>13}" for column in columns))
    for size in args.sizes:
        row = measure(size, args.repeat)
        row["ratio"] = round(row["us_per_node"] / rows[0]["us_per_node"], 2) if rows else 1.0
        rows.append(row)
        print("".join(f"{row[column]:>13}" for column in columns), flush=True)
    if args.json:
        machine = {"python": platform.python_version(), "onnx": onnx.__version__, "machine": platform.machine()}
        args.json.write_text(json.dumps({"machine": machine, "repeat": args.repeat, "curve": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
