"""Judge blocks one by one: original and fused cut out of their models, both on the same Q, K, V and mask.

What a block of the main graph really receives is captured from a run of the original. Values inside a body of an If,
Loop or Scan cannot be captured: a block there gets made-up ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from explorer.attention import Block
from explorer.errors import ExplorerError, ModelError
from explorer.model import Model, dtype_name
from explorer.model.cut import Part, cut, surroundings
from explorer.verify.bodies import is_size, made_values
from explorer.verify.cases import Case
from explorer.verify.inputs import Feeds, fed, symbol_sizes
from explorer.verify.judge import DOUBTFUL, compare, errors, judge_masked, received
from explorer.verify.meaning import Meaning, meaning, reads
from explorer.verify.runs import Outcome, Runner, elements, needed, run_part
from explorer.verify.verdict import Comparison

_Output = np.ndarray | ExplorerError

_MISREAD = "the graph, computed exactly, gives something else than this block was read as: report this with the model"

# As much of what the blocks received is held at a time, all cases together.
_CAPTURED_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class Judged:
    """The comparisons of each case, and sentences on blocks that were not judged by what they really received."""

    cases: tuple[tuple[Comparison, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """A block with the values that its two cuts take."""

    block: Block
    roles: dict[str, str]
    """What its meaning depends on, with the part that each value plays."""
    original: tuple[str, ...]
    """What the original's cut takes: the same, and sizes and the like from elsewhere in the graph."""
    fused: tuple[str, ...]

    @property
    def output(self) -> str:
        """Name of the block's output, which both models give."""
        assert self.block.output is not None
        return self.block.output.value

    @property
    def inputs(self) -> tuple[str, ...]:
        """Everything that has to be known."""
        return tuple(dict.fromkeys((*self.roles, *self.original, *self.fused)))


def judge_blocks(
    runner: Runner, original: Model, fused: Model, blocks: Sequence[Block], cases: Sequence[Case]
) -> Judged:
    """Compare each of `blocks` of `original` with what it became in `fused`, on `cases`, where the original runs."""
    judge = _Judge(runner, original, fused, cases)
    sites = sites_of(original, fused, blocks)
    captured = [site for site in sites if _in_main_graph(original, site.block)]
    inside = [site for site in sites if not _in_main_graph(original, site.block)]
    for batch in _batches(original, captured, cases):
        judge.captured(batch)
    for site in inside:
        judge.made_up(site)
    notes = [f"{name}: {reason}" for name, reason in judge.unjudged.items()]
    if lost := len(blocks) - len(sites):
        notes.append(
            f"The output of {_blocks(lost)} has no name in the fused model: judged by the model's outputs alone."
        )
    if inside:
        notes.append(
            f"{_blocks(len(inside))} inside the body of an If, Loop or Scan, whose values cannot be captured: judged "
            "by made-up Q, K, V and masks."
        )
    order = {block.id: place for place, block in enumerate(blocks)}
    found = (tuple(sorted(items, key=lambda item: order[item.block])) for items in judge.comparisons)
    return Judged(tuple(found), tuple(notes))


class _Judge:
    """Collects the comparisons of each case, and for each block that could not be judged the reason."""

    def __init__(self, runner: Runner, original: Model, fused: Model, cases: Sequence[Case]) -> None:
        self.comparisons: list[list[Comparison]] = [[] for _ in cases]
        self.unjudged: dict[str, str] = {}
        self._misread: dict[str, bool] = {}
        self._runner = runner
        self._original = original
        self._fused = fused
        self._cases = cases
        self._sizes = [symbol_sizes(original, case.feeds) for case in cases]

    def captured(self, sites: Sequence[Site]) -> None:
        """Judge `sites` on what they receive in a run of the original."""
        names = list(dict.fromkeys(name for site in sites for name in site.inputs))
        computed = [name for name in names if self._original.value(name).producer() is not None]
        inputs = [value.name or "" for value in fed(self._original)]
        what = f"the inputs of {sites[0].block.label}" + (f" to {sites[-1].block.label}" if sites[1:] else "")
        values = run_part(self._runner, self._original, inputs, computed, [case.feeds for case in self._cases], what)
        for place, (case, found) in enumerate(zip(self._cases, values, strict=True)):
            if not isinstance(found, ExplorerError):
                given = {name: _given(self._original, name, case.feeds) for name in names if name not in found}
                values[place] = {**found, **given}
        self._compare(sites, values)

    def made_up(self, site: Site) -> None:
        """Judge a site on random values."""
        values: list[Outcome] = []
        for case in self._cases:
            try:
                values.append(made_values(self._original, site.block, site.inputs, case))
            except ModelError as error:
                values.append(error)
        self._compare([site], values)

    def _compare(self, sites: Sequence[Site], values: Sequence[Outcome]) -> None:
        known = {place: item for place, item in enumerate(values) if not isinstance(item, ExplorerError)}
        before, after = (
            dict(zip(known, self._outputs(model, sites, inputs, list(known.values())), strict=True))
            for model, inputs in (
                (self._original, lambda site: site.original),
                (self._fused, lambda site: site.fused),
            )
        )
        for place, given in enumerate(values):
            for site in sites:
                try:
                    if isinstance(given, ExplorerError):
                        raise given
                    item = self._comparison(site, place, given, before[place][site.output], after[place][site.output])
                    self.comparisons[place].append(item)
                except ExplorerError as reason:
                    words = f"not judged by itself at {self._cases[place].words}: {reason}"
                    self.unjudged.setdefault(site.block.label, words)

    def _outputs(
        self, model: Model, sites: Sequence[Site], inputs: Callable[[Site], tuple[str, ...]], values: Sequence[Feeds]
    ) -> list[dict[str, _Output]]:
        """The sites' outputs for each of `values`: of one cut for all, and where that does not run of each alone."""
        received = {name for site in sites for name in inputs(site)}
        # What one block gives and another receives cannot be computed and given in one cut
        groups = [[site for site in sites if site.output not in received]]
        groups += [[site] for site in sites if site.output in received]
        found: list[dict[str, _Output]] = [{} for _ in values]
        for group in filter(None, groups):
            names = list(dict.fromkeys(name for site in group for name in inputs(site)))
            outputs = [site.output for site in group]
            what = "the blocks of the original" if model is self._original else "the blocks of the fused model"
            outcomes = run_part(self._runner, model, names, outputs, values, what)
            refused = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, ExplorerError)]
            for item, outcome in zip(found, outcomes, strict=True):
                item.update(dict.fromkeys(outputs, outcome) if isinstance(outcome, ExplorerError) else outcome)
            for site in group if refused and len(group) > 1 else ():
                alone = self._outputs(model, [site], inputs, [values[place] for place in refused])
                for place, item in zip(refused, alone, strict=True):
                    found[place].update(item)
        return found

    def _comparison(self, site: Site, place: int, values: Feeds, original: _Output, fused: _Output) -> Comparison:
        """Raises what stands in the way of judging the block."""
        if isinstance(original, ExplorerError):
            raise original
        if isinstance(fused, ModelError):
            raise fused
        if isinstance(fused, ExplorerError):
            item = compare(site.output, self._dtype(site.output), original, np.full(original.shape, np.nan), original)
            item = replace(item, problem=f"the fused block does not run: {fused}")
        else:
            item = self._by_meaning(site, values, self._sizes[place], original, fused)
        taken = tuple(received(role, name, self._dtype(name), values[name]) for name, role in site.roles.items())
        words = self._cases[place].words
        return replace(item, block=site.block.id, label=site.block.label, case=words, received=taken)

    def _by_meaning(
        self, site: Site, values: Feeds, symbol: Mapping[str, int], original: np.ndarray, fused: np.ndarray
    ) -> Comparison:
        dtype = self._dtype(site.output)
        truth = meaning(site.block, values, original.shape, symbol)
        if not truth.masked.any() or not original.shape == fused.shape == truth.output.shape:
            item = compare(site.output, dtype, original, fused, truth.output)
        else:
            within = truth.masked_elements
            count, nan = int(np.count_nonzero(truth.masked)), (truth.masked_nan(original), truth.masked_nan(fused))
            masked = judge_masked(count, nan, within, original, fused, truth.output, dtype)
            item = replace(compare(site.output, dtype, original, fused, truth.output, within), masked=masked)
        misread = not item.original.relative <= DOUBTFUL and self._is_misread(site, values, truth)
        return replace(item, problem=_MISREAD) if misread else item

    def _is_misread(self, site: Site, values: Feeds, truth: Meaning) -> bool:
        """True if the original's block, computed exactly, is something else than its meaning."""
        if site.block.id not in self._misread:
            part = cut(self._original, site.original, [site.output])
            exact = self._runner.exact(part, needed(part, values))
            misread = False
            if not isinstance(exact, ExplorerError):
                found = exact[site.output]
                fits = found.shape == truth.output.shape
                expected = np.where(truth.masked_elements, np.nan, truth.output) if fits else truth.output
                misread = not errors(found, expected).relative <= DOUBTFUL
            self._misread[site.block.id] = misread
        return self._misread[site.block.id]

    def _dtype(self, name: str) -> str:
        return dtype_name(self._original.dtype(self._original.value(name)))


def sites_of(original: Model, fused: Model, blocks: Sequence[Block]) -> list[Site]:
    """Where each of `blocks` of `original` stands in both models, if `fused` has its output by name."""
    present = [block for block in blocks if block.output is not None and fused.has_value(block.output.value)]
    # Inside a body nothing can be captured, and nothing made up but what the block receives and sizes
    capturable = [block for block in present if _in_main_graph(original, block)]
    inside = [block for block in present if not _in_main_graph(original, block)]
    return [
        *_sites(original, fused, capturable, original.has_value),
        *_sites(original, fused, inside, lambda name: original.has_value(name) and is_size(original, name)),
    ]


def _sites(original: Model, fused: Model, blocks: Sequence[Block], known: Callable[[str], bool]) -> list[Site]:
    roles = [reads(block) for block in blocks]
    before, after = (
        surroundings(model, [_part(model, block, names) for block, names in zip(blocks, roles, strict=True)], known)
        for model in (original, fused)
    )
    return [
        Site(block, names, (*names, *more), (*filter(fused.has_value, names), *others))
        for block, names, more, others in zip(blocks, roles, before, after, strict=True)
    ]


def _part(model: Model, block: Block, roles: Mapping[str, str]) -> Part:
    """The nodes of `model` from query, key and value to the output, whatever they are."""
    assert block.output is not None
    names = [name for name in roles if model.has_value(name)]
    sources = [name for name in names if roles[name] in ("query", "key", "value")]
    return Part(sources, block.output.value, [name for name in names if name not in sources])


def _batches(model: Model, sites: Sequence[Site], cases: Sequence[Case]) -> Iterator[list[Site]]:
    """The sites in order, as many at a time as may be held."""
    sizes = [symbol_sizes(model, case.feeds) for case in cases]
    batch: list[Site] = []
    held = 0
    for site in sites:
        size = 4 * sum(sum(elements(model, site.inputs, each)) for each in sizes)
        if batch and held + size > _CAPTURED_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(site)
        held += size
    if batch:
        yield batch


def _given(model: Model, name: str, feeds: Feeds) -> np.ndarray:
    """A graph input or an initializer."""
    if name in feeds:
        return feeds[name]
    tensor = model.value(name).const_value
    assert tensor is not None, name
    return np.asarray(tensor.numpy())


def _in_main_graph(model: Model, block: Block) -> bool:
    return model.node(block.anchor).graph is model.ir.graph


def _blocks(count: int) -> str:
    return f"{count} fused block{'' if count == 1 else 's'}"
