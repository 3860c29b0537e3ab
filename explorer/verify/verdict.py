"""What verification returns: errors of the original and of the fused model against fp64 truth, and the judgement."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 2

ALLOWED_FACTOR = 2.0
"""The fused error may be this many times the original's …"""
ALLOWED_FLOOR = {"float16": 4e-3, "bfloat16": 3.2e-2, "float32": 4e-6, "float64": 1e-12}
"""… plus this much, relative to the largest true value: a few roundings (4 ulp; 32 for fp32) of the element type."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Distance of a tensor from the truth. `relative` is max_abs over the largest magnitude of the truth."""

    max_abs: float
    relative: float
    nonfinite: int
    """Elements that are NaN or infinite where the truth is finite."""
    worst: tuple[int, ...] = ()
    """Index of the element with the largest error, or of the first that is not finite."""


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """Queries whose mask hides every key: what a row is then depends on how the mask hides, and on roundings.

    The fused block must give there what the original gives or what the formula does, and no NaN unless the original
    does.
    """

    count: int
    original_nan: int
    """In how many of them the original gives NaN."""
    fused_nan: int
    error: float
    """Distance of the fused block from the nearer of the two, relative to the original's largest magnitude; infinite
    for a NaN or infinity where the original is finite."""
    allowed: float

    @property
    def passed(self) -> bool:
        """True if the fused block may give what it gives there."""
        return self.error <= self.allowed


@dataclass(frozen=True, slots=True)
class Received:
    """What a block received: one of its query, key, value, masks and factor."""

    role: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    """Smallest finite element."""
    high: float
    nonfinite: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One compared tensor: a block's output (`block` is its id) or a model output (`block` is "")."""

    name: str
    block: str
    dtype: str
    shape: tuple[int, ...]
    original: Errors
    fused: Errors
    allowed: float
    """Largest relative error at which the fused tensor passes."""
    apart: float | None = None
    """Largest distance of fused and original, relative to the original's largest magnitude; None if there is none."""
    label: str = ""
    """The block's label, for people."""
    case: str = ""
    """Words of the case."""
    masked: MaskedRows | None = None
    """For a block with a mask that hides all keys of some query: those rows are judged here and nowhere else."""
    received: tuple[Received, ...] = ()
    """For a block."""
    problem: str = ""
    """Why it fails whatever the numbers, in a sentence: the fused block does not run, say."""

    @property
    def passed(self) -> bool:
        """True if the fused tensor is as close to the truth as allowed and has no new NaN or infinity."""
        close = math.isfinite(self.fused.relative) and self.fused.relative <= self.allowed
        sound = self.fused.nonfinite <= self.original.nonfinite and (self.masked is None or self.masked.passed)
        return close and sound and not self.problem

    @property
    def badness(self) -> tuple[bool, int, float]:
        """Orders comparisons of one tensor: the one that people should see is the largest."""
        error = self.fused.relative
        return not self.passed, self.fused.nonfinite, math.inf if math.isnan(error) else error / self.allowed


@dataclass(frozen=True, slots=True)
class CaseVerdict:
    """The judgement on one set of inputs."""

    words: str
    """What is special about it, "batch 1"."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    seed: int | None
    """Seed of the inputs, None if they were the user's own."""
    truth: str = ""
    """How the end-to-end truth was computed, in words."""
    blocks: tuple[Comparison, ...] = ()
    outputs: tuple[Comparison, ...] = ()
    refusal: str = ""
    """Why a model does not run on it; nothing is compared end to end then."""
    refused_by: str = ""
    """"original" (then the case says nothing about the fusion), "fused" (then it failed), or ""."""

    @property
    def passed(self) -> bool:
        """True if nothing failed; so it is where the original itself does not run."""
        return self.refused_by != "fused" and all(item.passed for item in (*self.blocks, *self.outputs))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The proof that a fused model computes what the original does, or the evidence that it does not."""

    cases: tuple[CaseVerdict, ...]
    """The ordinary one first."""
    provider: str
    notes: tuple[str, ...] = ()
    """What this verdict cannot prove, in sentences."""

    @property
    def passed(self) -> bool:
        """True if every case passed, and at least one tensor was compared."""
        return bool(self.blocks or self.outputs) and all(case.passed for case in self.cases)

    @property
    def blocks(self) -> tuple[Comparison, ...]:
        """Each block's worst comparison of all cases."""
        return _worst(item for case in self.cases for item in case.blocks)

    @property
    def outputs(self) -> tuple[Comparison, ...]:
        """Each output's worst comparison of all cases."""
        return _worst(item for case in self.cases for item in case.outputs)

    @property
    def truth(self) -> str:
        """How the end-to-end truth of the ordinary case was computed, in words."""
        return self.cases[0].truth if self.cases else ""

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Shapes of the inputs of the ordinary case."""
        return self.cases[0].shapes if self.cases else ()

    @property
    def seed(self) -> int | None:
        """Seed of the ordinary case, None if the inputs were the user's own."""
        return self.cases[0].seed if self.cases else None

    @property
    def failed_blocks(self) -> tuple[str, ...]:
        """Ids of the blocks that fail in some case."""
        return tuple(item.block for item in self.blocks if not item.passed)

    @property
    def suggestion(self) -> str:
        """What to do about a failure, in a sentence; "" if there is none."""
        if self.passed:
            return ""
        failed = [item for item in self.blocks if not item.passed]
        if failed:
            names = ", ".join(f"{item.label or item.block} (at {item.case})" for item in failed)
            return f"Leave unfused: {names}; what they compute there is not what the original computes."
        refused = next((case for case in self.cases if case.refused_by == "fused"), None)
        if refused is None and not self.blocks and not self.outputs:
            return "Nothing was compared: give inputs or shapes with which the original gives floating-point numbers."
        what = (
            "gives other outputs"
            if refused is None
            else f"does not run at {refused.words} (it says: {refused.refusal})"
        )
        return (
            f"Each block alone computes what the original does, but the whole fused model {what}: unfuse half of the "
            "blocks and verify again to find those at fault."
        )

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON document; what the blocks received is in `block_report`."""
        document = {
            "schema": SCHEMA,
            "passed": self.passed,
            "provider": self.provider,
            "truth": self.truth,
            "shapes": _shapes(self.shapes),
            "seed": self.seed,
            "blocks": [_comparison(item) for item in self.blocks],
            "outputs": [_comparison(item) for item in self.outputs],
            "failed_blocks": self.failed_blocks,
            "suggestion": self.suggestion,
            "notes": self.notes,
            "cases": [
                {
                    "words": case.words,
                    "passed": case.passed,
                    "shapes": _shapes(case.shapes),
                    "seed": case.seed,
                    "truth": case.truth,
                    "refused_by": case.refused_by,
                    "refusal": case.refusal,
                    "blocks": [_comparison(item) for item in case.blocks],
                    "outputs": [_comparison(item) for item in case.outputs],
                }
                for case in self.cases
            ],
        }
        finite: dict[str, Any] = finite_or_null(document)
        return finite

    def block_report(self, block_id: str) -> dict[str, Any]:
        """Everything about one block as a JSON document: in each case the inputs' shapes and seed, what it received,
        the errors and where the largest is. KeyError if no case has the block."""
        found = [(case, item) for case in self.cases for item in case.blocks if item.block == block_id]
        if not found:
            raise KeyError(block_id)
        document = {
            "schema": SCHEMA,
            "block": block_id,
            "label": found[0][1].label,
            "passed": all(item.passed for _, item in found),
            "provider": self.provider,
            "cases": [
                {
                    "words": case.words,
                    "shapes": _shapes(case.shapes),
                    "seed": case.seed,
                    **_comparison(item),
                    "received": [asdict(tensor) for tensor in item.received],
                }
                for case, item in found
            ],
        }
        finite: dict[str, Any] = finite_or_null(document)
        return finite


def _worst(items: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """The worst of those that compare the same tensor."""
    worst: dict[tuple[str, str], Comparison] = {}
    for item in items:
        key = (item.block, item.name)
        worst[key] = max(worst.get(key, item), item, key=lambda each: each.badness)
    return tuple(worst.values())


def _comparison(item: Comparison) -> dict[str, Any]:
    document = {**asdict(item), "passed": item.passed}
    del document["received"]
    return document


def _shapes(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes}


def finite_or_null(document: Any) -> Any:
    """`document` with every NaN and infinity as null: JSON has no word for them."""
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, dict):
        return {key: finite_or_null(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [finite_or_null(value) for value in document]
    return document


def allowed_error(original: Errors, dtype: str) -> float:
    """The margin: how large the fused tensor's relative error may be, given the original's and the element type."""
    return ALLOWED_FACTOR * original.relative + ALLOWED_FLOOR.get(dtype, ALLOWED_FLOOR["float32"])
