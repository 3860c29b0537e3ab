"""Follows one of ONNX Runtime's fusion rules through a graph, as far as it goes.

Each rule is data: the spellings it follows, in one small notation.

    label:Op|Op(0213)?@1   one of these operators, its perm, ? if it may be missing, the input it is reached through

A chain goes forward from the product QKᵀ, called qk; a path goes backward from a node that the chain labelled. Some
nodes are passed over because ORT removes them first: Casts that change nothing, and the operators in `skips`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from explorer.model import Model
from explorer.model.constants import attribute

_TOKEN = re.compile(r"(?:(?P<label>\w+):)?(?P<ops>[\w|]+)(?:\((?P<perm>\d+)\))?(?P<optional>\?)?(?:@(?P<at>\d))?")

Nodes = dict[str, ir.Node]
Check = Callable[[Model, Nodes], str]


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way of writing attention: what comes after QKᵀ, and paths (operand in words, where it starts, tokens)."""

    chain: str
    paths: tuple[tuple[str, str, str], ...] = ()
    max_opset: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Rule:
    """One of ORT's fusions. `check` says what else stops it; `whole` is False if not all it asks for is known here."""

    name: str
    spellings: tuple[Spelling, ...]
    model_type: str = ""
    skips: frozenset[str] = frozenset()
    check: Check = lambda model, nodes: ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a rule gets with a block, in nodes, and the first thing that stops it ("" if nothing does)."""

    rule: Rule
    spelling: Spelling
    steps: int
    stop: str
    nodes: Nodes


def closest(model: Model, qk: ir.Node, rules: tuple[Rule, ...]) -> Outcome:
    """The outcome of the rule that gets to the end, else of the one that gets furthest; the first of equals."""
    outcomes = [_try(model, qk, rule, spelling) for rule in rules for spelling in rule.spellings]
    return max(outcomes, key=lambda outcome: (not outcome.stop, outcome.steps))


def _try(model: Model, qk: ir.Node, rule: Rule, spelling: Spelling) -> Outcome:
    nodes: Nodes = {"qk": qk}
    if qk.op_type != "MatMul":
        return Outcome(
            rule, spelling, 0, f"expects MatMul for the product of Q and K and finds {named(model, qk)}", nodes
        )
    steps, stop = _follow(model, rule, qk, spelling.chain, nodes, forward=True)
    if not stop and model.opset > spelling.max_opset:
        stop = f"knows these operators only up to opset {spelling.max_opset}, and the graph has opset {model.opset}"
    for operand, start, tokens in () if stop else spelling.paths:
        ways = [_follow(model, rule, nodes[start], way, nodes, forward=False) for way in tokens.split(" or ")]
        far, stop = max(ways, key=lambda way: (not way[1], way[0]))
        steps += far
        if stop:
            stop = f"{stop}, on the way to {operand}"
            break
    return Outcome(rule, spelling, steps, stop or rule.check(model, nodes), nodes)


def _follow(model: Model, rule: Rule, node: ir.Node, tokens: str, nodes: Nodes, *, forward: bool) -> tuple[int, str]:
    """Walk from `node` along `tokens`, labelling `nodes`; how many matched, and what stopped it."""
    steps, skipped = 0, ""
    for match in _TOKEN.finditer(tokens):
        label, ops, perm, at, optional = match.group("label", "ops", "perm", "at", "optional")
        near = list(readers(model, rule, node.outputs[0]) if forward else _producers(model, rule, node))
        fits = (n for n, i in near if n.op_type in ops.split("|") and at in (None, str(i)) and has_perm(n, perm))
        hit = next(fits, None)
        if hit is None and optional:
            skipped += f"{ops} or "
        elif hit is None:
            wanted = f"{skipped}{ops.replace('|', ' or ')}" + (f" with perm {','.join(perm)}" if perm else "")
            seen = [
                _words(model, n, i, ops, perm)
                for n, i in near
                if n.op_type != "Shape" and (forward or at in (None, str(i)))
            ]
            found = " and ".join(seen[:2]) or "no such node"
            place = f"{'after' if forward else 'before'} {named(model, node)}"
            return steps, f"expects {wanted} {place} and finds {found}"
        else:
            steps, skipped, node = steps + 1, "", hit
            nodes[label or ops] = hit
    return steps, ""


def readers(model: Model, rule: Rule, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for use in value.uses():
        if vanishes(model, rule, use.node):
            yield from readers(model, rule, use.node.outputs[0])
        else:
            yield use.node, use.idx


def _producers(model: Model, rule: Rule, node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
    for index, value in enumerate(node.inputs):
        source = value.producer() if value is not None else None
        while source is not None and vanishes(model, rule, source) and source.inputs[0] is not None:
            source = source.inputs[0].producer()
        if source is not None and source.op_type != "Constant":
            yield source, index


def vanishes(model: Model, rule: Rule, node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.inputs[0] is None:
        return node.op_type in rule.skips
    before = model.dtype(node.inputs[0])
    return before is not None and before == model.dtype(node.outputs[0])


def has_perm(node: ir.Node, perm: str | None) -> bool:
    return perm is None or [str(axis) for axis in attribute(node, "perm", ())] == list(perm)


def named(model: Model, node: ir.Node) -> str:
    return f"{node.op_type} ({model.key(node)})"


def _words(model: Model, node: ir.Node, index: int, ops: str, perm: str | None) -> str:
    if node.op_type not in ops.split("|"):
        return named(model, node)
    axes = ",".join(map(str, attribute(node, "perm", ())))
    return named(model, node) + (
        f" with perm {axes}" if perm and not has_perm(node, perm) else f", through input {index}"
    )


def stored(value: ir.Value | None) -> bool:
    """True for an initializer or the output of a Constant: ORT's python optimizer folds nothing."""
    producer = None if value is None else value.producer()
    return value is not None and (value.is_initializer() if producer is None else producer.op_type == "Constant")


def scalar_of(model: Model, mul: ir.Node) -> float | None:
    """The one stored scalar among the two factors."""
    scalars = [model.scalar(value) for value in mul.inputs if stored(value)]
    return scalars[0] if len(scalars) == 1 else None
