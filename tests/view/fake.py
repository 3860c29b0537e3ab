"""A small model with attention blocks, and a stand-in for `Workspace` that fuses it without ONNX Runtime."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import sample_profiles
import sample_tunings
from onnx import TensorProto, helper

from explorer.attention.block import Block, Mask, Obstacle, Operand, RegionNode, Step, View
from explorer.attention.family import Family, families
from explorer.errors import BlockError, Cancelled, ExportError
from explorer.fusion.choose import Choice
from explorer.fusion.plan import Plan
from explorer.model.describe import GraphInfo, describe
from explorer.model.model import Model
from explorer.model.types import infer_types
from explorer.profile import Profile
from explorer.tune import Tuning
from explorer.verify.verdict import CaseVerdict, Comparison, Errors, Verdict

HOSTILE = '<img src=x onerror="window.hacked=1"><b>$x$</b>\u202e'


def proto(blocks: int = 2, fused: frozenset[int] = frozenset(), name: str = "n") -> onnx.ModelProto:
    """`blocks` attention blocks in a row, in the spelling of the sample model, those in `fused` as one operator."""
    nodes: list[onnx.NodeProto] = []

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"{output}:{op}", **attributes))
        return output

    hidden = "x"
    for index in range(blocks):
        at = f"{name}{index}"
        q, k, v = (node("MatMul", [hidden, f"w{letter}"], f"{at}_{letter}") for letter in "qkv")
        if index in fused:
            nodes.append(
                helper.make_node(
                    "MultiHeadAttention",
                    [q, k, v],
                    [f"{at}_out"],
                    domain="com.microsoft",
                    name=f"{at}_mha",
                    num_heads=2,
                )
            )
            out = f"{at}_out"
        else:
            up = node("Cast", [node("MatMul", [q, k], f"{at}_qk")], f"{at}_up", to=TensorProto.FLOAT)
            soft = node("Softmax", [node("Mul", [up, "hundred"], f"{at}_scaled")], f"{at}_soft", axis=-1)
            out = node("MatMul", [node("Cast", [soft], f"{at}_down", to=TensorProto.FLOAT16), v], f"{at}_out")
        hidden = node("Add", [hidden, out], f"{at}_sum")
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", half, [2, "S", 8, 8])],
        [helper.make_tensor_value_info(hidden, half, None)],
        [
            *(helper.make_tensor(f"w{letter}", half, [8, 8], [0.0] * 64) for letter in "qkv"),
            helper.make_tensor("hundred", TensorProto.FLOAT, [], [100.0]),
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports)


def model(proto: onnx.ModelProto) -> Model:
    """A Model of a proto, as loading a file would make it."""
    return Model(ir.from_proto(proto), path=Path("tiny.onnx"), digest="0", types=infer_types(proto)[0])


def graph_info(blocks: int = 2, fused: frozenset[int] = frozenset(), name: str = "n") -> GraphInfo:
    """The graph of the small model."""
    return describe(model(proto(blocks, fused, name)))


REGION = (("qk", "MatMul", "qk"), ("up", "Cast", "cast"), ("scaled", "Mul", "scale"), ("soft", "Softmax", "softmax"),
          ("down", "Cast", "cast"), ("out", "MatMul", "pv"))  # fmt: skip


def block(index: int, name: str = "n", **changes: Any) -> Block:
    """The Block that recognition would find."""
    at = f"{name}{index}"
    key = View(f"{at}_k", ("B", "N", "H", "S"))
    values: dict[str, Any] = {
        "label": f"attn{index}",
        "anchor": f"{at}_soft:Softmax",
        "anchor_output": f"{at}_soft",
        "region": tuple(RegionNode(f"{at}_{part}:{op}", op, role) for part, op, role in REGION),
        "query": Operand((View(f"{at}_q", ("B", "N", "S", "H")),), ("rope",)),
        "key": Operand((key,), ("rope",)),
        "value": Operand((View(f"{at}_v", ("B", "N", "S", "H")),)),
        "num_heads": 2,
        "kv_num_heads": 2,
        "head_size": 64,
        "v_head_size": 64,
        "scale": 100.0,
        "mask": Mask(),
        "dtype": "float16",
        "softmax_dtype": "float32",
        "evidence": (Step("the logits are cast to float32 and scaled by 100", (f"{at}_up:Cast",)),),
        "ort_reason": "ONNX Runtime expects no Mul after the Cast.",
    }
    return Block(**{**values, **changes})


def verdict(passed: bool = True, block_id: str = "", name: str = "n1_sum") -> Verdict:
    """A verdict about one block and one output."""
    fused = Errors(1e-3, 1e-3 if passed else 0.5, 0)
    compare = Comparison(name, "", "float16", (2, 4, 8, 8), Errors(2e-3, 2e-3, 0), fused, 8e-3, case="seed 0")
    per_block = replace(compare, name="n0_out", block=block_id)
    case = CaseVerdict("seed 0", (("x", (2, 4, 8, 8)),), 0, "numpy in fp64", (per_block,), (compare,))
    short = CaseVerdict("length 1", (("x", (2, 4, 1, 8)),), 0, refusal=f"no {HOSTILE}", refused_by="original")
    return Verdict((case, short), "cpu", ("fp16 numerics not shown",))


@dataclass
class FakeWorkspace:
    """Two blocks (or more) that fuse by name; results are canned. Some may be blocked, or unlike the `other`s."""

    count: int = 2
    name: str = "n"
    blocked: frozenset[int] = frozenset()
    other: frozenset[int] = frozenset()
    source: Path = Path("tiny.onnx")
    notes: tuple[str, ...] = ()
    log: list[str] = field(default_factory=list)
    gate: threading.Event | None = None
    failure: Exception | None = None
    measured: Profile = field(default_factory=lambda: sample_profiles.on_cpu())
    tuning: Tuning | None = None
    settings: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocks = tuple(
            block(index, self.name, scale=50.0 if index in self.other else 100.0) for index in range(self.count)
        )
        self._plans, self.cursor = [Plan("0")], 0
        self._results: dict[tuple[str, Plan], Any] = {}

    @property
    def plan(self) -> Plan:
        return self._plans[self.cursor]

    @property
    def can_undo(self) -> bool:
        return self.cursor > 0

    @property
    def can_redo(self) -> bool:
        return self.cursor < len(self._plans) - 1

    @property
    def verdict(self) -> Verdict | None:
        return self._results.get(("verdict", self.plan))

    @property
    def last_profile(self) -> Profile | None:
        return self._results.get(("profile", self.plan))

    @property
    def current(self) -> Model:
        fused = frozenset(index for index, item in enumerate(self.blocks) if item.id in self.plan.blocks)
        return model(proto(self.count, fused, self.name))

    @property
    def ops_before(self) -> dict[str, int]:
        return model(proto(self.count, name=self.name)).op_counts()

    @property
    def ops_after(self) -> dict[str, int]:
        return dict(Counter(node.op_type for node in self.current.nodes))

    def _index(self, block_id: str) -> int:
        return next(index for index, item in enumerate(self.blocks) if item.id == block_id)

    def status(self, block_id: str) -> str:
        if block_id in self.plan.blocks:
            return "fused"
        return "blocked" if self._index(block_id) in self.blocked else "fusable"

    def obstacles(self, block_id: str) -> tuple[Obstacle, ...]:
        blocked = self._index(block_id) in self.blocked
        return (Obstacle("rank", "somewhere", "a rank of 4", "a rank of 5", "reshape it"),) if blocked else ()

    def choice(self, block_id: str, target: str = "auto") -> Choice:
        if target != "auto":
            return Choice(target, (), "the standard one")
        return Choice("mha", (), f"{'measured' if self.tuning else 'the fastest'} for {HOSTILE}")

    def choices(self, block_id: str) -> dict[str, Choice]:
        capped = Obstacle("softcap", HOSTILE, "no soft cap", HOSTILE)
        return {
            "mha": Choice("mha", (), f"in place of {HOSTILE}"),
            "gqa": Choice("", (capped,)),
            "attention": Choice("attention", (), "the standard one"),
        }

    def nodes_of(self, block_id: str) -> tuple[str, ...]:
        index = self._index(block_id)
        return (f"{self.name}{index}_mha",) if block_id in self.plan.blocks else self.blocks[index].nodes

    def _do(self, plan: Plan) -> None:
        self._plans[self.cursor + 1 :] = [plan]
        self.cursor += 1

    def fuse(self, *ids: str, target: str = "auto") -> Any:
        plan = self.plan
        for block_id in ids:
            plan = plan.with_fusion(self.block(block_id), "mha" if target == "auto" else target)
        self._do(plan)

    def fuse_all(self, target: str = "auto") -> Any:
        self.fuse(*(item.id for item in self.blocks if self.status(item.id) == "fusable"), target=target)

    def family(self, block_id: str) -> Family:
        return next(family for family in families(self.blocks) if block_id in family.blocks)

    def fuse_family(self, block_id: str, target: str = "auto") -> Any:
        members = (member for member in self.family(block_id).blocks if self.status(member) == "fusable")
        self.fuse(*members, target=target)

    def scope(self, block_id: str) -> str | None:
        return None

    def unfuse(self, *ids: str) -> Any:
        self._do(self.plan.without(ids[0]))

    def undo(self) -> None:
        self.cursor -= 1

    def redo(self) -> None:
        self.cursor += 1

    def _work(self, what: str, result: Any, on_progress: Any, cancel: threading.Event | None) -> Any:
        plan = self.plan
        self.log.append(what)
        on_progress(0.5, f"{what} of {HOSTILE}")
        if self.gate is not None:
            while not self.gate.wait(0.01):
                if cancel is not None and cancel.is_set():
                    raise Cancelled(f"{what} was cancelled")
        if self.failure is not None:
            raise self.failure
        self._results[what, plan] = result
        return result

    def verify(self, *, on_progress: Any, cancel: Any, **settings: Any) -> Verdict:
        self.settings.append(settings)
        return self._work("verdict", verdict(block_id=self.blocks[0].id), on_progress, cancel)

    def profile(self, *, on_progress: Any, cancel: Any, **settings: Any) -> Profile:
        self.settings.append(settings)
        return self._work("profile", self.measured, on_progress, cancel)

    def tune(self, *, on_progress: Any, cancel: Any, **settings: Any) -> Tuning:
        self.settings.append(settings)
        self.tuning = self._work("tuning", sample_tunings.tuning(), on_progress, cancel)
        return self.tuning

    def export(self, path: Path, overwrite: bool = False) -> Path:
        if path.exists() and not overwrite:
            raise ExportError(f"expected a new file, found {path}: tick Replace existing file")
        path.write_bytes(self.current.path.name.encode())
        return path

    export_plan = export

    def block(self, name: str) -> Block:
        found = next((item for item in self.blocks if name in (item.id, item.label)), None)
        if found is None:
            raise BlockError(f"expected a block, found {name!r}")
        return found
