"""What verification returns: errors of the original and of the fused model against fp64 truth, and the judgement."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1

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

    @property
    def passed(self) -> bool:
        """True if the fused tensor is as close to the truth as allowed and has no new NaN or infinity."""
        close = math.isfinite(self.fused.relative) and self.fused.relative <= self.allowed
        return close and self.fused.nonfinite <= self.original.nonfinite


@dataclass(frozen=True, slots=True)
class Verdict:
    """The proof that a fused model computes what the original does, or the evidence that it does not."""

    blocks: tuple[Comparison, ...]
    outputs: tuple[Comparison, ...]
    truth: str
    """How the end-to-end truth was computed, in words."""
    provider: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    seed: int | None
    """Seed of the inputs, None if they were the user's own."""
    notes: tuple[str, ...] = ()
    """What this verdict cannot prove, in sentences."""

    @property
    def passed(self) -> bool:
        """True if every compared tensor passed, and at least one was compared."""
        compared = (*self.blocks, *self.outputs)
        return bool(compared) and all(comparison.passed for comparison in compared)

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON document."""
        document = {"schema": SCHEMA, "passed": self.passed, **asdict(self)}
        for part in ("blocks", "outputs"):
            document[part] = [{**asdict(comparison), "passed": comparison.passed} for comparison in getattr(self, part)]
        document["shapes"] = {name: list(shape) for name, shape in self.shapes}
        finite: dict[str, Any] = finite_or_null(document)
        return finite


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
