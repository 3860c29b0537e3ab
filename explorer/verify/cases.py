"""The inputs that a proof is made on: ordinary ones, and those on which fusions go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from explorer.errors import InputError
from explorer.model import Model
from explorer.verify.inputs import (
    DEFAULT_BATCH,
    DEFAULT_LENGTH,
    Feeds,
    Shapes,
    load_inputs,
    masks,
    seeded_inputs,
)
from explorer.verify.runs import parameters

LARGE = 300_000_000
"""Parameters above which a model is tried on fewer cases."""
_ODD = (7, 5, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One set of inputs to run the original and the fused model on."""

    words: str
    """What is special about it, "batch 1"."""
    feeds: Feeds
    seed: int | None = None
    """Seed of the inputs, None if they are the user's own."""

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each input."""
        return tuple((name, array.shape) for name, array in self.feeds.items())


def default_cases(
    model: Model,
    shapes: Shapes | None = None,
    seed: int = 0,
    *,
    length: int = DEFAULT_LENGTH,
    batch: int = DEFAULT_BATCH,
) -> tuple[Case, ...]:
    """Seeded inputs: the ordinary case first, a second seed, and as far as the inputs leave it open batch 1, a fully
    padded row, length 1 and an odd length.

    Without `shapes` all sizes that the inputs leave open are tried; given `shapes` are kept. A model of more than
    `LARGE` parameters has no second seed and no odd length. InputError if the shapes do not fit the model.
    """
    large = parameters(model) > LARGE
    first = Case(f"seed {seed}", seeded_inputs(model, shapes, seed, length, batch), seed)
    cases = [first]
    if not large:
        cases.append(Case(f"seed {seed + 1}", seeded_inputs(model, shapes, seed + 1, length, batch), seed + 1))
    if masks(model):
        feeds = seeded_inputs(model, shapes, seed, length, batch, padded_row=True)
        cases.append(Case("a fully padded row", feeds, seed))
    if not shapes:
        odd = next((number for number in _ODD if number < length), None)
        variants = [("batch 1", length, 1), ("length 1", 1, batch)]
        variants += [] if large or odd is None else [(f"length {odd}", odd, batch)]
        for words, size, entries in variants:
            try:
                feeds = seeded_inputs(model, None, seed, size, entries)
            except InputError:  # these sizes leave some input without elements
                continue
            case = Case(words, feeds, seed)
            if all(case.shapes != other.shapes for other in cases):
                cases.append(case)
    return tuple(cases)


def given_case(model: Model, path: str | Path) -> Case:
    """The user's own inputs from an .npz file; InputError if they do not fit the model."""
    return Case("your inputs", load_inputs(model, path))
