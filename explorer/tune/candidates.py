"""The ways in which a block of each family can be computed: cut out of the model, on what it really receives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from explorer.attention import Block
from explorer.attention.family import Family
from explorer.errors import BlockError, ExplorerError, ModelError, SessionError, WorkerDied
from explorer.fusion import TARGETS, Plan, apply, choose
from explorer.model import Model, dtype_name
from explorer.model.cut import cut
from explorer.tune.values import UNFUSED
from explorer.verify.blocks import sites_of
from explorer.verify.bodies import made_values
from explorer.verify.cases import Case
from explorer.verify.inputs import Feeds, fed, symbol_sizes
from explorer.verify.judge import compare
from explorer.verify.meaning import meaning, reads
from explorer.verify.runs import Runner, needed, run_part


@dataclass(frozen=True, slots=True)
class Kin:
    """Blocks of a family that can become the same targets, each of one layout."""

    blocks: tuple[Block, ...]
    targets: tuple[str, ...]

    @property
    def first(self) -> Block:
        """The one that is measured for all; it stands in the main graph if any of them does."""
        return self.blocks[0]


def kin_of(model: Model, blocks: Sequence[Block], families: Iterable[Family]) -> list[Kin]:
    """The families with blocks that can be fused, and to what; those of one that differ in this are no kin."""
    by_id = {block.id: block for block in blocks}
    found = []
    for family in families:
        able: dict[tuple[str, ...], list[Block]] = {}
        for block in sorted((by_id[name] for name in family.blocks), key=lambda block: not is_captured(model, block)):
            able.setdefault(_targets(model, block), []).append(block)
        found += [Kin(tuple(alike), targets) for targets, alike in able.items() if targets]
    return found


def _targets(model: Model, block: Block) -> tuple[str, ...]:
    """All targets of one layout; those that an operator takes unasked before the others."""
    choices = (choose(model, block, name) for name in TARGETS)
    return tuple(dict.fromkeys(choice.exact for choice in choices if not choice.obstacles))


def is_captured(model: Model, block: Block) -> bool:
    """True if what the block receives can be taken from a run of the model: it is not in a body."""
    return model.node(block.anchor).graph is model.ir.graph


class Bench:
    """A block that is measured for its kin: each way to compute it is a model of its own, on the same values."""

    def __init__(self, model: Model, kin: Kin) -> None:
        block = kin.first
        assert block.output is not None
        self.kin = kin
        self.parts: dict[str, Model] = {}
        """By target; under `UNFUSED` the block as it is. Empty if it cannot be measured by itself."""
        self.refusals: dict[str, str] = {}
        """By target: a sentence on why it must not win."""
        self.values: Feeds = {}
        """What the parts take, and what the block's meaning depends on."""
        self._model = model
        self._output = block.output.value
        self._dtype = model.dtype(model.value(self._output))
        self._yardstick: _Yardstick | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The values that have to be known: what the parts take, and what the block's meaning depends on."""
        taken = (value.name or "" for part in self.parts.values() for value in part.ir.graph.inputs)
        return tuple(dict.fromkeys((*taken, *reads(self.kin.first))))

    @property
    def feeds(self) -> Feeds:
        """What all parts take, once they are aligned."""
        return needed(self.parts[UNFUSED], self.values)

    def add(self, target: str, fused: Model | ExplorerError) -> None:
        """Cut the block as `target` out of a model in which it became that."""
        try:
            if isinstance(fused, ExplorerError):
                raise fused
            sites = sites_of(self._model, fused, [self.kin.first])
            if not sites:
                raise ModelError("expected the block's output by its name in the fused model, found none")
            for name, model, inputs in (UNFUSED, self._model, sites[0].original), (target, fused, sites[0].fused):
                if name not in self.parts:
                    varying = [one for one in inputs if not model.value(one).is_initializer()]
                    self.parts[name] = cut(model, varying, [self._output])
        except ExplorerError as error:
            self.refusals[target] = str(error)

    def align(self) -> None:
        """Let all parts take the same values: what one of them does not read costs it nothing."""
        wanted = {value.name or "": value for part in self.parts.values() for value in part.ir.graph.inputs}
        for target, part in tuple(self.parts.items()):
            taken = {value.name for value in part.ir.graph.inputs}
            missing = [value for name, value in wanted.items() if name not in taken]
            if any(part.has_value(value.name or "") for value in missing):
                self.refusals[target] = "it computes a value of its own that the others are given"
                del self.parts[target]
            elif missing:
                unread = (ir.Value(name=value.name, type=value.type, shape=value.shape) for value in missing)
                part.ir.graph.inputs.extend(unread)
                self.parts[target] = Model(part.ir, path=part.path, digest=part.digest, types=part.types)

    def receive(self, runner: Runner, values: Feeds, feeds: Feeds) -> None:
        """Take the values, and check each part on them; `feeds` are the inputs of the whole model.

        A part that does not run, or computes something else than the unfused block, is refused.
        """
        self.values = {name: values[name] for name in self.names}
        original = self._run(runner, UNFUSED)
        self._yardstick = self._measure(original, feeds)
        if isinstance(original, ExplorerError):
            self.refusals[UNFUSED] = str(original)
        for target in self.kin.targets:
            if target in self.parts and (flaw := self.check(runner, target)):
                self.refusals[target] = flaw

    def check(self, runner: Runner, target: str) -> str:
        """Why the part is wrong when `runner` runs it; "" if it is not."""
        found = self._run(runner, target)
        if isinstance(found, ExplorerError):
            return str(found)
        if self._yardstick is None:
            return f"there is nothing to check it by: {self.refusals[UNFUSED]}"
        return self._yardstick.flaw(found)

    def _run(self, runner: Runner, target: str) -> np.ndarray | ExplorerError:
        part = self.parts[target]
        what = f"{self.kin.first.label} as {target or 'it is'}"
        try:
            (found,) = runner.run(part, [needed(part, self.values)], what)
        except (SessionError, WorkerDied) as error:
            return error
        return found if isinstance(found, ExplorerError) else found[self._output]

    def _measure(self, original: np.ndarray | ExplorerError, feeds: Feeds) -> _Yardstick | None:
        """What the block means on these values; None if neither that nor what it gives is known."""
        shape = original.shape if isinstance(original, np.ndarray) else ()
        try:
            found = meaning(self.kin.first, self.values, shape, symbol_sizes(self._model, feeds))
        except ModelError:
            truth, skipped = None, None
        else:
            truth, skipped = found.output, found.masked_elements if found.masked.any() else None
        if not isinstance(original, np.ndarray):
            if truth is None:
                return None
            original = truth.astype(np.float16 if self._dtype == ir.DataType.FLOAT16 else np.float32)
        if truth is None or truth.shape != original.shape:
            truth, skipped = original.astype(np.float64), None
        return _Yardstick(self._output, dtype_name(self._dtype), original, truth, skipped)


@dataclass(frozen=True, slots=True, eq=False)
class _Yardstick:
    """What an unfused block gives, and what is true."""

    name: str
    dtype: str
    original: np.ndarray
    truth: np.ndarray
    skipped: np.ndarray | None
    """Elements of queries that see no key: what is right there depends on the operator."""

    def flaw(self, found: np.ndarray) -> str:
        """Why `found` is not as true as verification wants it, "" if it is."""
        item = compare(self.name, self.dtype, self.original, found, self.truth, self.skipped)
        if item.passed:
            return ""
        if item.fused.nonfinite > item.original.nonfinite:
            return f"it computes something else than the unfused block: {item.fused.nonfinite} elements are not finite"
        return (
            f"it computes something else than the unfused block: it is {item.fused.relative:.1e} from the truth, where "
            f"{item.allowed:.1e} is allowed"
        )


def benches(runner: Runner, model: Model, kin: Sequence[Kin], feeds: Feeds, seed: int) -> list[Bench]:
    """A bench for each of `kin`, its candidates checked; what they take comes from one run of the model on `feeds`.

    Values inside a body of an If, Loop or Scan cannot be captured: a block there takes made-up ones, of `seed`.
    ModelError, InputError or SessionError if the model does not run on them.
    """
    found = [Bench(model, item) for item in kin]
    for target in TARGETS:
        able = [bench for bench in found if target in bench.kin.targets]
        for bench, fused in zip(able, _fused(model, [bench.kin.first for bench in able], target), strict=True):
            bench.add(target, fused)
    for bench in found:
        bench.align()
    outside = [bench for bench in found if is_captured(model, bench.kin.first)]
    values = _captured(runner, model, dict.fromkeys(name for bench in outside for name in bench.names), feeds)
    for bench in found:
        try:
            if bench not in outside:
                values = made_values(model, bench.kin.first, bench.names, Case("", feeds, seed))
            bench.receive(runner, values, feeds)
        except ModelError as error:
            bench.parts.clear()
            bench.refusals[UNFUSED] = str(error)
    return found


def _fused(model: Model, blocks: Sequence[Block], target: str) -> list[Model | ExplorerError]:
    """For each of `blocks` a model in which it is `target`: one for all, or where that cannot be one for each."""
    plan = Plan(model.digest)
    for block in blocks:
        plan = plan.with_fusion(block, target)
    try:
        return [apply(model, blocks, plan)] * len(blocks)
    except (BlockError, ModelError) as error:
        if len(blocks) == 1:
            return [error]
        return [found for block in blocks for found in _fused(model, [block], target)]


def _captured(runner: Runner, model: Model, names: Iterable[str], feeds: Feeds) -> Feeds:
    """The values called `names`, as they are when the model runs on `feeds`."""
    values: Feeds = {}
    computed: list[str] = []
    for name in names:
        tensor = model.value(name).const_value
        if name in feeds:
            values[name] = feeds[name]
        elif model.value(name).producer() is None and tensor is not None:
            values[name] = np.asarray(tensor.numpy())
        else:
            computed.append(name)
    inputs = [value.name or "" for value in fed(model)]
    (found,) = run_part(runner, model, inputs, computed, [feeds], "what the blocks receive")
    if isinstance(found, ExplorerError):
        raise found
    return values | found
