"""Random graphs that compute masks out of lengths and constants, in the operators that exporters write them with.

All tensors are [1|rows, 1|cols]; `Masks` picks the operators with a hypothesis `draw`. Each graph is honest ONNX: the
reference evaluator runs it at any lengths up to `LONGEST`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

LONGEST = 7
BOOL, INT64, FLOAT = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT
Shape = tuple[str | int, ...]


class MaskGraph:
    """A graph in the making. Its input `x` has the lengths of rows and columns as its shape."""

    def __init__(self, rows: str = "rows", cols: str = "cols", opset: int = 18) -> None:
        self.rows, self.cols, self.opset = rows, cols, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.types: dict[str, tuple[int, Shape]] = {}

    def constant(self, array: Any) -> str:
        array = np.asarray(array)
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        self.types[name] = (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        return name

    def node(self, op: str, inputs: list[str], dtype: int, shape: Shape, **attributes: Any) -> str:
        """Add a node and return its output, of which the file says type and shape."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.types[name] = (dtype, shape)
        return name

    def whole(self, *tensors: str) -> Shape:
        """The shape that these broadcast to."""
        shapes = [self.types[tensor][1] for tensor in tensors]
        return tuple(next((dim for dim in axis if dim != 1), 1) for axis in zip(*shapes, strict=True))

    def length(self, axis: int) -> str:
        """The number of rows or columns, a scalar."""
        shape = self.node("Shape", ["x"], INT64, (2,))
        return self.node("Gather", [shape, self.constant(np.int64(axis))], INT64, (), axis=0)

    def lengths(self) -> str:
        return self.node("Shape", ["x"], INT64, (2,))

    def model(self, output: str, value_info: bool = True) -> onnx.ModelProto:
        def info(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, *self.types[name])

        self.types["x"] = (FLOAT, (self.rows, self.cols))
        initializers = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        inner = [info(node.output[0]) for node in self.nodes if node.output[0] != output]
        graph = helper.make_graph(
            self.nodes, "g", [info("x")], [info(output)], initializers, value_info=inner if value_info else []
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)


def run(model: onnx.ModelProto, rows: int, cols: int) -> np.ndarray:
    """The mask for an input of this many rows and columns."""
    with np.errstate(all="ignore"):
        (mask,) = ReferenceEvaluator(model).run(None, {"x": np.zeros((rows, cols), np.float32)})
    return np.asarray(mask)


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


class Masks:
    """Random integers, conditions and numbers of one graph."""

    def __init__(self, draw: Callable[..., Any], graph: MaskGraph) -> None:
        self.draw, self.graph = draw, graph

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def small(self) -> int:
        return int(self.draw(st.integers(-2, 3)))

    def positions(self, axis: int) -> str:
        """0, 1, 2 … (or shifted, or stretched) along one axis: [rows, 1] or [1, cols]."""
        graph = self.graph
        dim = (graph.rows, graph.cols)[axis]
        flat: Shape = (dim,)
        start = self.small()
        step = self.pick(1, 1, 2, -1)
        how = self.pick("range", "buffer", "cumsum", "gather", "tail", "behind")
        if how == "range":
            first = graph.constant(np.int64(start))
            count = graph.node("Mul", [graph.length(axis), graph.constant(np.int64(step))], INT64, ())
            last = graph.node("Add", [count, first], INT64, ())
            line = graph.node("Range", [first, last, graph.constant(np.int64(step))], INT64, flat)
        elif how == "cumsum":
            count = graph.node("Unsqueeze", [graph.length(axis), graph.constant([0])], INT64, (1,))
            ones = helper.make_tensor("value", INT64, [1], [step])
            line = graph.node("ConstantOfShape", [count], INT64, flat, value=ones)
            exclusive = self.pick(0, 1)
            line = graph.node("CumSum", [line, graph.constant(np.int64(0))], INT64, flat, exclusive=exclusive)
        else:
            begin = abs(start)
            count = graph.node("Unsqueeze", [graph.length(axis), graph.constant([0])], INT64, (1,))
            if how in ("tail", "behind"):  # counted from the end
                buffer = graph.constant((start + step * np.arange(LONGEST)).astype(np.int64))
                back = graph.node("Neg", [count], INT64, (1,))
                last = graph.constant([LONGEST])
                line = graph.node("Slice", [buffer, back, last, graph.constant([0])], INT64, flat)
                if how == "behind":
                    ends = [graph.node("Squeeze", [back], INT64, ()), graph.constant(np.int64(0))]
                    at = graph.node("Range", [*ends, graph.constant(np.int64(1))], INT64, flat)
                    line = graph.node("Gather", [buffer, at], INT64, flat, axis=0)
            elif how == "buffer":
                buffer = graph.constant(start + step * np.arange(2 * LONGEST))
                end = graph.node("Add", [count, graph.constant([begin])], INT64, (1,))
                line = graph.node("Slice", [buffer, graph.constant([begin]), end, graph.constant([0])], INT64, flat)
            else:
                zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
                at = graph.node("Range", [zero, graph.length(axis), one], INT64, flat)
                buffer = graph.constant((start + step * np.arange(LONGEST)).astype(np.int64))
                line = graph.node("Gather", [buffer, at], INT64, flat, axis=0)
        shape: Shape = (dim, 1) if axis == 0 else (1, dim)
        if self.pick(True, False):
            return graph.node("Unsqueeze", [line, graph.constant([1 - axis])], INT64, shape)
        return graph.node("Reshape", [line, graph.constant([-1, 1] if axis == 0 else [1, -1])], INT64, shape)

    def integer(self, depth: int) -> str:
        """Integers made of positions and lengths."""
        graph = self.graph
        how = (
            self.pick("line", "line", "number", "length")
            if depth <= 0
            else self.pick("line", "add", "scale", "expand", "transpose", "flag", "float", "choice", "slice", "move")
        )
        if how == "line":
            return self.positions(self.pick(0, 1))
        if how == "number":
            return graph.constant([[self.small()]])
        if how == "length":
            return graph.node("Unsqueeze", [graph.length(self.pick(0, 1)), graph.constant([0, 1])], INT64, (1, 1))
        if how == "flag":
            condition = self.condition(depth - 1)
            return graph.node("Cast", [condition], INT64, graph.types[condition][1], to=INT64)
        if how == "move":
            return self.moved(depth - 1)
        inner = self.integer(depth - 1)
        shape = graph.types[inner][1]
        if how == "add":
            other = self.integer(depth - 1)
            return graph.node(self.pick("Add", "Sub"), [inner, other], INT64, graph.whole(inner, other))
        if how == "scale":
            return graph.node("Mul", [inner, graph.constant(np.int64(self.small()))], INT64, shape)
        if how == "expand":
            return graph.node("Expand", [inner, graph.lengths()], INT64, (graph.rows, graph.cols))
        if how == "transpose":
            if graph.rows != graph.cols:
                return graph.node("Neg", [inner], INT64, shape)
            return graph.node("Transpose", [inner], INT64, shape[::-1], perm=[1, 0])
        if how == "float":
            number = graph.node("Cast", [inner], FLOAT, shape, to=FLOAT)
            return graph.node("Cast", [number], INT64, shape, to=INT64)
        if how == "slice":
            top = graph.node("Unsqueeze", [graph.length(0), graph.constant([0])], INT64, (1,))
            return graph.node("Slice", [inner, graph.constant([0]), top, graph.constant([0])], INT64, shape)
        condition, other = self.condition(depth - 1), self.integer(depth - 1)
        whole = graph.whole(condition, inner, other)
        return graph.node("Where", [condition, inner, other], INT64, whole)

    def moved(self, depth: int) -> str:
        """Integers put together, taken apart or counted through."""
        graph = self.graph
        whole: Shape = (graph.rows, graph.cols)
        how = self.pick("regroup", "count", "concat", "pad", "pick")
        if how == "count":
            total = graph.node("ReduceProd", [graph.lengths()], INT64, (1,), keepdims=1)
            ones = helper.make_tensor("value", INT64, [1], [1])
            flat = graph.node("ConstantOfShape", [total], INT64, (f"{graph.rows}*{graph.cols}",), value=ones)
            axis = graph.constant(np.int64(0))
            count = graph.node("CumSum", [flat, axis], INT64, (f"{graph.rows}*{graph.cols}",), exclusive=1)
            table = graph.node("Reshape", [count, graph.lengths()], INT64, whole)
            return graph.node(self.pick("Mod", "Div"), [table, graph.length(1)], INT64, whole)
        if how in ("concat", "pad"):
            begin = self.pick(0, 1)
            line, wider = self.positions(1), (1, f"{graph.cols} + 1")
            number = graph.constant([[self.small()]])
            if how == "concat":
                longer = graph.node("Concat", [number, line], INT64, wider, axis=1)
            else:
                scalar = graph.constant(np.int64(self.small()))
                longer = graph.node("Pad", [line, graph.constant([0, 1, 0, 0]), scalar], INT64, wider)
            first = graph.constant([begin])
            count = graph.node("Unsqueeze", [graph.length(1), graph.constant([0])], INT64, (1,))
            last = graph.node("Add", [count, first], INT64, (1,))
            return graph.node("Slice", [longer, first, last, graph.constant([1])], INT64, (1, graph.cols))
        inner = graph.node("Expand", [self.integer(depth), graph.lengths()], INT64, whole)
        if how == "regroup":
            flat = graph.node("Reshape", [inner, graph.constant([-1])], INT64, (f"{graph.rows}*{graph.cols}",))
            return graph.node("Reshape", [flat, graph.lengths()], INT64, whole)
        index = []
        for axis in (0, 1):
            line = graph.node("Expand", [self.line(axis), graph.lengths()], INT64, whole)
            index.append(graph.node("Unsqueeze", [line, graph.constant([-1])], INT64, (*whole, 1)))
        if graph.rows == graph.cols and self.pick(True, False):
            index.reverse()
        both = graph.node("Concat", index, INT64, (*whole, 2), axis=-1)
        return graph.node("GatherND", [inner, both], INT64, whole)

    def condition(self, depth: int) -> str:
        """Booleans made of comparisons, triangles and logic."""
        graph = self.graph
        how = (
            self.pick("compare", "triangle")
            if depth <= 0
            else self.pick("compare", "compare", "not", "logic", "choice", "trilu", "triangle", "number")
        )
        if how == "compare":
            left, right = self.integer(depth - 1), self.integer(depth - 1)
            op = self.pick("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
            return graph.node(op, [left, right], BOOL, graph.whole(left, right))
        if how == "triangle":
            return self.triangle()
        if how == "number":
            number = self.integer(depth - 1)
            return graph.node("Cast", [number], BOOL, graph.types[number][1], to=BOOL)
        inner = self.condition(depth - 1)
        if how == "not":
            return graph.node("Not", [inner], BOOL, graph.types[inner][1])
        if how == "trilu":
            whole = graph.node("Expand", [inner, graph.lengths()], BOOL, (graph.rows, graph.cols))
            diagonal = graph.constant(np.int64(self.small()))
            return graph.node("Trilu", [whole, diagonal], BOOL, (graph.rows, graph.cols), upper=self.pick(0, 1))
        other = self.condition(depth - 1)
        if how == "logic":
            op = self.pick("And", "Or", "Xor", "Equal")
            return graph.node(op, [inner, other], BOOL, graph.whole(inner, other))
        third = self.condition(depth - 1)
        return graph.node("Where", [inner, other, third], BOOL, graph.whole(inner, other, third))

    def triangle(self) -> str:
        """A triangle from a buffer or from an operator."""
        graph = self.graph
        shape: Shape = (graph.rows, graph.cols)
        diagonal = self.small()
        how = self.pick("buffer", "trilu", "eye")
        if how == "buffer":
            buffer = np.tri(LONGEST, LONGEST, diagonal, dtype=bool)
            if self.pick(False, False, True):
                at = tuple(self.draw(st.integers(0, LONGEST - 1)) for _ in range(2))
                buffer[at] = not buffer[at]
            if self.pick(True, False):
                buffer = buffer.T.copy()
            starts, axes = graph.constant([0, 0]), graph.constant([0, 1])
            return graph.node("Slice", [graph.constant(buffer), starts, graph.lengths(), axes], BOOL, shape)
        if how == "eye":
            zeros = graph.node("ConstantOfShape", [graph.lengths()], FLOAT, shape)
            eye = graph.node("EyeLike", [zeros], FLOAT, shape, k=diagonal)
            return graph.node("Cast", [eye], BOOL, shape, to=BOOL)
        ones = helper.make_tensor("value", FLOAT, [1], [1.0])
        full = graph.node("ConstantOfShape", [graph.lengths()], FLOAT, shape, value=ones)
        part = graph.node("Trilu", [full, graph.constant(np.int64(diagonal))], FLOAT, shape, upper=self.pick(0, 1))
        return graph.node("Equal", [part, graph.constant(np.float32(self.pick(0, 1)))], BOOL, shape)

    def number(self, depth: int) -> str:
        """Numbers that are added to logits."""
        graph = self.graph
        how = self.pick("where", "product", "trilu", "sum")
        fill = np.float32(self.pick(-np.inf, -1e9, -3.4028234663852886e38, -100, 0))
        if how == "where":
            condition = self.condition(depth)
            branches = [graph.constant(np.float32(0)), graph.constant(fill)]
            if self.pick(True, False):
                branches.reverse()
            return graph.node("Where", [condition, *branches], FLOAT, graph.types[condition][1])
        if how == "product":
            condition = self.condition(depth)
            shape = graph.types[condition][1]
            flag = graph.node("Cast", [condition], FLOAT, shape, to=FLOAT)
            if self.pick(True, False):
                flag = graph.node("Sub", [graph.constant(np.float32(1)), flag], FLOAT, shape)
            return graph.node("Mul", [flag, graph.constant(fill)], FLOAT, shape)
        if how == "trilu":
            shape = (graph.rows, graph.cols)
            full = graph.node("Expand", [graph.constant(np.float32(fill)), graph.lengths()], FLOAT, shape)
            diagonal = graph.constant(np.int64(self.small()))
            return graph.node("Trilu", [full, diagonal], FLOAT, shape, upper=self.pick(0, 1))
        if depth <= 0:
            return graph.constant(np.zeros((1, 1), np.float32))
        left, right = self.number(depth - 1), self.number(depth - 1)
        return graph.node("Add", [left, right], FLOAT, graph.whole(left, right))

    def line(self, axis: int, start: int = 0) -> str:
        """start, start + 1 … along one axis."""
        graph = self.graph
        zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
        dim = (graph.rows, graph.cols)[axis]
        flat = graph.node("Range", [zero, graph.length(axis), one], INT64, (dim,))
        if start:
            flat = graph.node("Add", [flat, graph.constant(np.int64(start))], INT64, (dim,))
        shape: Shape = (dim, 1) if axis == 0 else (1, dim)
        return graph.node("Unsqueeze", [flat, graph.constant([1 - axis])], INT64, shape)

    def diagonal(self, ahead: int) -> str:
        """True where column ≤ row + ahead, in one of many spellings."""
        graph = self.graph
        shape: Shape = (graph.rows, graph.cols)
        how = self.pick("rows", "columns", "strict", "opposite", "difference", "buffer", "trilu", "upper", "flag")
        if how == "rows":
            return graph.node("GreaterOrEqual", [self.line(0, ahead), self.line(1)], BOOL, shape)
        if how == "columns":
            return graph.node("LessOrEqual", [self.line(1, -ahead), self.line(0)], BOOL, shape)
        if how == "strict":
            return graph.node("Less", [self.line(1), self.line(0, ahead + 1)], BOOL, shape)
        if how == "opposite":
            return graph.node(
                "Not", [graph.node("Greater", [self.line(1), self.line(0, ahead)], BOOL, shape)], BOOL, shape
            )
        if how == "difference":
            between = graph.node("Sub", [self.line(1), self.line(0)], INT64, shape)
            return graph.node("Less", [between, graph.constant(np.int64(ahead + 1))], BOOL, shape)
        if how == "buffer":
            buffer = graph.constant(
                np.tri(LONGEST, LONGEST, ahead).astype(self.pick(bool, np.float32, np.int64, np.uint8))
            )
            dtype = graph.types[buffer][0]
            starts, axes = graph.constant([0, 0]), graph.constant([0, 1])
            cut = graph.node("Slice", [buffer, starts, graph.lengths(), axes], dtype, shape)
            return cut if dtype == BOOL else graph.node("Cast", [cut], BOOL, shape, to=BOOL)
        if how == "flag":
            flag = graph.node("Cast", [self.diagonal(ahead)], FLOAT, shape, to=FLOAT)
            product = graph.node("Mul", [flag, flag], FLOAT, shape)
            return graph.node("Greater", [product, graph.constant(np.float32(0.5))], BOOL, shape)
        ones = helper.make_tensor("value", FLOAT, [1], [1.0])
        full = graph.node("ConstantOfShape", [graph.lengths()], FLOAT, shape, value=ones)
        upper = int(how == "upper")
        at = graph.constant(np.int64(ahead + upper))
        part = graph.node("Trilu", [full, at], FLOAT, shape, upper=upper)
        return graph.node("Equal", [part, graph.constant(np.float32(1 - upper))], BOOL, shape)

    def band(self, depth: int) -> str:
        """A condition on row − column alone, made of `diagonal`s."""
        graph = self.graph
        shape: Shape = (graph.rows, graph.cols)
        how = "diagonal" if depth <= 0 else self.pick("diagonal", "not", "and", "or", "choice")
        if how == "diagonal":
            return self.diagonal(self.pick(0, 0, 0, -1, 1, 2))
        inner = self.band(depth - 1)
        if how == "not":
            return graph.node("Not", [inner], BOOL, shape)
        other = self.band(depth - 1)
        if how == "choice":
            return graph.node("Where", [inner, other, self.band(depth - 1)], BOOL, shape)
        return graph.node({"and": "And", "or": "Or"}[how], [inner, other], BOOL, shape)

    def added(self, condition: str) -> tuple[str, float]:
        """Numbers to add: 0 where the condition holds and a number elsewhere, which is returned, too."""
        graph = self.graph
        shape = graph.types[condition][1]
        fill = self.pick(-np.inf, -1e9, -10000.0, -100.0)
        number = graph.constant(np.float32(fill))
        if self.pick(True, False):
            zero = graph.constant(np.float32(0))
            if self.pick(True, False):
                return graph.node("Where", [condition, zero, number], FLOAT, shape), fill
            opposite = graph.node("Not", [condition], BOOL, shape)
            return graph.node("Where", [opposite, number, zero], FLOAT, shape), fill
        fill = -1e9 if fill == -np.inf else fill
        flag = graph.node("Cast", [condition], FLOAT, shape, to=FLOAT)
        hidden = graph.node("Sub", [graph.constant(np.float32(1)), flag], FLOAT, shape)
        return graph.node("Mul", [hidden, graph.constant(np.float32(fill))], FLOAT, shape), fill
