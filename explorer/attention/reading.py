"""The reading of one softmax: from product to product, role by role, until it is attention or an obstacle says why not.

First the way (`logits`, `probabilities`), with the axes of both products as letters without a meaning; what the letters
mean is told afterwards from the way that query, key, value and result take (`naming`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from explorer.attention.block import Block, Layout
from explorer.attention.contraction import Contraction, contraction
from explorer.attention.layouts import Axes
from explorer.attention.logits import Logits, check_logits, read_logits
from explorer.attention.mask import additive_term, is_zero
from explorer.attention.measures import measures
from explorer.attention.naming import Ends, name_block
from explorer.attention.ort_reason import ort_reason
from explorer.attention.paths import Way
from explorer.attention.probabilities import read_probabilities
from explorer.attention.softmax import Softmax
from explorer.attention.walk import Notes, is_op, name_of, origin, shape_words
from explorer.model import Dim, dtype_name


class Reading:
    """The reading of one softmax between two products."""

    def __init__(self, notes: Notes, order: Mapping[str, int], softmax: Softmax, up: Way, down: Way) -> None:
        self.notes, self.model, self.axes, self.order = notes, notes.model, Axes(), order
        self.softmax, self.up, self.down = softmax, up, down
        self.inner = [up.product, *(hop.node for hop in up.hops), *softmax.nodes, *(hop.node for hop in down.hops)]

    def block(self, label: str) -> Block:
        """The block, with an obstacle for everything that is not as attention has it."""
        notes, model = self.notes, self.model
        softmax_dtype = dtype_name(model.dtype(self.softmax.result))
        block = Block(
            label=label,
            anchor=model.key(self.softmax.node),
            anchor_output=name_of(self.softmax.result),
            region=(),
            softmax_dtype=softmax_dtype,
        )
        if model.value(block.anchor_output) is not self.softmax.result:
            notes.obstacle(
                "scope",
                self.softmax.node,
                "tensors whose names are unique in the whole model",
                f"{block.anchor_output!r} twice, in different bodies",
                "export the model again or give the tensors names of their own",
            )
        notes.take(self.up.product, "qk")
        notes.step("QKᵀ: the product that gives the logits.", self.up.product)
        qk, pv = (self._contraction(way.product) for way in (self.up, self.down))
        if qk is not None and pv is not None:
            block = self._read(block, qk, pv)
        else:
            self._take_softmax()
            notes.take(self.down.product, "pv")
        region = tuple(sorted(notes.region.values(), key=lambda node: self.order[node.name]))
        block = replace(block, region=region, evidence=tuple(notes.steps), obstacles=tuple(notes.obstacles))
        return replace(block, ort_reason=ort_reason(model, block))

    def _take_softmax(self) -> None:
        for node in self.softmax.nodes:
            self.notes.take(node, "softmax")

    def _contraction(self, node: ir.Node) -> Contraction | None:
        found = contraction(self.model, node)
        if found is None:
            shapes = " and ".join(
                shape_words(self.model.shape(value)) for value in node.inputs[:2] if value is not None
            )
            self.notes.obstacle(
                "product",
                node,
                "a product of two tensors of known rank",
                f"a {node.op_type} of shapes {shapes}",
                "give the shapes of the model's inputs (--shape)",
            )
        return found

    def _read(self, block: Block, qk: Contraction, pv: Contraction) -> Block:
        notes, model = self.notes, self.model
        left, right, result = self._factors(qk)
        logits = Logits(result, qk.factor)
        if qk.addend is not None and not is_zero(model, qk.addend):
            term = additive_term(model, qk.addend, qk.addend_factor, result)
            if term is None:
                notes.obstacle("product", qk.node, "an addend of known type", "one of unknown type")
            else:
                logits.add(term)
        known = read_logits(notes, self.axes, self.up, logits)
        self._take_softmax()
        notes.step(f"Softmax over the keys, in {block.softmax_dtype or 'an unknown type'}.", *self.softmax.nodes)
        notes.take(self.down.product, "pv")
        if not known:
            return block
        check_logits(notes, logits, qk.node)
        read = self._ends(qk, pv, (left, right), logits)
        if read is None:
            return block
        ends, guarded = read
        block = replace(
            block,
            softcap=logits.softcap,
            scale=logits.scale,
            nan_guard=guarded,
        )
        named, merge = name_block(notes, self.axes, block, ends, logits)
        self._check_private((self.down.product, *merge), named)
        return named

    def _factors(self, qk: Contraction) -> tuple[Layout, Layout, Layout]:
        """Layouts of the factors and the result of QKᵀ, in new letters."""
        left, right = qk.node.inputs[:2]
        letters: dict[str, str] = {}
        assert left is not None
        assert right is not None
        shapes = [dict(zip(qk.labels(i), self.model.shape(v) or (), strict=True)) for i, v in enumerate((left, right))]
        absent: set[tuple[int, str]] = set()
        for label in dict.fromkeys((*qk.left, *qk.right)):
            sizes = [shape.get(label) for shape in shapes]
            size = sizes[0] if sizes[0] is not None else sizes[1]
            if None not in sizes and sizes[0] != sizes[1]:
                size = self._broadcast(qk.node, label, sizes, absent)  # type: ignore[arg-type]
            assert size is not None
            letters[label] = self.axes.new(size)
        layouts = [tuple("" if (i, x) in absent else letters[x] for x in qk.labels(i)) for i in (0, 1)]
        return layouts[0], layouts[1], tuple(letters[label] for label in qk.result)

    def _broadcast(self, node: ir.Node, label: str, sizes: list[Dim], absent: set[tuple[int, str]]) -> Dim:
        """The size of an axis that differs between two factors: one of them has a single entry for all of the other."""
        if 1 in sizes:
            absent.add((sizes.index(1), label))
            return sizes[1 - sizes.index(1)]
        self.notes.obstacle(
            "shape-unknown",
            node,
            "provably equal sizes of both factors",
            f"{shape_words((sizes[0],))} and {shape_words((sizes[1],))}",
            "give the shapes of the model's inputs (--shape)",
        )
        return sizes[0]

    def _ends(
        self, qk: Contraction, pv: Contraction, factors: tuple[Layout, Layout], logits: Logits
    ) -> tuple[Ends, bool] | None:
        """Both products in letters, or None (and an obstacle) if they are not those of attention."""
        notes, axes = self.notes, self.axes
        layout = axes.current(logits.layout)
        axis = self.softmax.axis
        axis += len(layout) if axis < 0 else 0
        keys = layout[axis] if 0 <= axis < len(layout) else ""
        if self.softmax.onward and any(layout[axis + 1 :]):
            keys += "".join(layout[axis + 1 :])  # it used to normalise over all axes from there on
        owners = [index for index in (0, 1) if keys and set(keys) <= set(axes.now("".join(factors[index])))]
        if len(owners) != 1:
            found = f"axis {axis}, which is no axis of the keys alone"
            hint = "another axis normalises over something else than the keys"
            notes.obstacle("softmax-axis", self.softmax.node, "Softmax over the keys", found, hint)
            return None
        conditions = [hop.node.inputs[0] for hop in self.up.hops if is_op(hop.node, "Where")]
        masks = [name_of(origin(self.model, value)) for value in conditions if value is not None]
        read = read_probabilities(notes, axes, self.down, layout, masks)
        if read is None:
            return None
        layout, guarded = read
        keys = axes.now(keys)
        if any(axes.now(shift) != keys for shift in logits.shifts):
            found = "a maximum taken over another axis than the keys"
            notes.obstacle("logits-operator", self.softmax.node, "logits less the largest of their row", found)
            return None
        notes.step("The probabilities are multiplied with V.", pv.node)
        value = self._value(pv, layout, keys)
        if value is None:
            return None
        v_layout, v_head, result = value
        (head_label,) = qk.summed if len(qk.summed) == 1 else ("",)
        if not head_label:
            notes.obstacle("product", qk.node, "one summed axis, the head size", f"{len(qk.summed)} of them")
            return None
        head = factors[0][qk.left.index(head_label)]
        of_key = owners[0]
        q_value, k_value = (qk.node.inputs[index] for index in (1 - of_key, of_key))
        v_value = pv.node.inputs[1 - self.down.index]
        assert q_value is not None
        assert k_value is not None
        assert v_value is not None
        query, key = (q_value, factors[1 - of_key]), (k_value, factors[of_key])
        ends = Ends(qk.node, pv.node, query, key, (v_value, v_layout), result, head, v_head, keys)
        return ends, guarded

    def _value(self, pv: Contraction, layout: Layout, keys: str) -> tuple[Layout, str, Layout] | None:
        """Layout of V, letter of its head size, and layout of the result; None (and an obstacle) if it is not P·V."""
        notes, axes = self.notes, self.axes
        own, other = pv.labels(self.down.index), pv.labels(1 - self.down.index)
        value = pv.node.inputs[1 - self.down.index]
        shape = None if value is None else self.model.shape(value)
        if shape is None or len(own) != len(layout):
            notes.obstacle("product", pv.node, "P·V with factors of known rank", f"V of shape {shape_words(shape)}")
            return None
        groups = dict(zip(own, layout, strict=True))
        free = [label for label in other if label not in groups]
        summed = [groups[label] for label in pv.summed]
        if len(summed) == 1 and summed != [keys] and len(free) == 1:
            found = "a Softmax over one axis and a product with V that sums over another"
            hint = "another axis normalises over something else than the keys"
            notes.obstacle("softmax-axis", self.softmax.node, "Softmax over the axis that P·V sums over", found, hint)
            return None
        if summed != [keys] or len(free) != 1:
            found = "a product that sums over something else, or whose other factor has further axes"
            notes.obstacle("product", pv.node, "P·V: a sum over the keys alone", found)
            return None
        if pv.addend is not None and not is_zero(self.model, pv.addend):
            notes.obstacle("product", pv.node, "P·V alone", "a Gemm that adds something to it")
        sizes = dict(zip(other, shape, strict=True))
        v_head = axes.new(sizes[free[0]])
        groups[free[0]] = v_head
        v_layout = []
        for label in other:
            size = axes.size(groups[label])
            broadcast = sizes[label] == 1 and size != 1
            if sizes[label] != size and not broadcast:
                notes.obstacle(
                    "shape-unknown",
                    pv.node,
                    "sizes of V that provably fit those of the probabilities",
                    f"{shape_words((sizes[label],))} and {shape_words((size,))}",
                    "give the shapes of the model's inputs (--shape)",
                )
            v_layout.append("" if broadcast else groups[label])
        return tuple(v_layout), v_head, tuple(groups[label] for label in pv.result)

    def _check_private(self, end: tuple[ir.Node, ...], block: Block) -> None:
        """Nobody outside the block may read a value inside it, from QKᵀ to the node before the last of `end`.

        A Shape may if it can be told from the operands.
        """
        for node in (*self.inner, *end[:-1]):
            value = node.outputs[0]
            if measures(self.model, value, block) is not None:
                for use in value.uses():
                    if is_op(use.node, "Shape") and not use.node.outputs[0].is_graph_output():
                        self.notes.take(use.node, "shape")
            self.notes.must_be_private(value)
