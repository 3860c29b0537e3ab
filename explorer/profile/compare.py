"""What changed from one profile to another: another ONNX Runtime, driver or machine, another plan, another day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from explorer.errors import InputError
from explorer.profile.values import Measurement, Profile, Ratio, Shapes, Variant


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the two profiles say differently; "" where one says nothing of it."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class OpChange:
    """The time of all nodes of one type in one run, in microseconds."""

    op_type: str
    before_us: float
    after_us: float


@dataclass(frozen=True, slots=True)
class Change:
    """One variant on inputs of one shape, in both profiles.

    before_ms, after_ms  median latency; None where it did not run
    ratio     before's median over after's, above 1 if it became faster, with its 95 % interval (the runs are not
              paired); None if one of the two did not run
    ops       by how much they changed, the most first; empty unless both were traced by the same method
    dispatch  attention nodes that ran with another kernel; empty unless both were traced
    """

    variant: str
    shapes: Shapes
    before_ms: float | None
    after_ms: float | None
    ratio: Ratio | None
    ops: tuple[OpChange, ...]
    dispatch: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that can be compared of two profiles, and what cannot.

    conditions   what the two were measured under, where it differs: provider, source, runs, versions, devices
    graphs       plan, options, optimization level, Casts and Memcpy nodes of a variant ("fused: Casts exported"),
                 where they differ
    changes      by point, then by variant, of all that both profiles have
    only_before, only_after  (variant, shapes) that the other profile does not have
    """

    conditions: tuple[Difference, ...]
    graphs: tuple[Difference, ...]
    changes: tuple[Change, ...]
    only_before: tuple[tuple[str, Shapes], ...]
    only_after: tuple[tuple[str, Shapes], ...]


def compare(before: Profile, after: Profile) -> Comparison:
    """What changed from `before` to `after`, by variant name and shapes. Its intervals have the seed of `after`.

    InputError if no variant of one was measured on the same shapes in the other.
    """
    old, new = dict(_measurements(before)), dict(_measurements(after))
    if not old.keys() & new.keys():
        raise InputError(
            f"expected profiles with a variant measured on the same shapes in both, found {_names(before)} then and "
            f"{_names(after)} now: profile the same models on the same shapes"
        )
    graphs: list[Difference] = []
    for variant in before.variants:
        if other := next((item for item in after.variants if item.name == variant.name), None):
            graphs += _differences(_graph(variant), _graph(other))
    return Comparison(
        conditions=tuple(_differences(_conditions(before), _conditions(after))),
        graphs=tuple(graphs),
        changes=tuple(_change(key, old[key], new[key], after.seed) for key in old if key in new),
        only_before=tuple(key for key in old if key not in new),
        only_after=tuple(key for key in new if key not in old),
    )


def _names(profile: Profile) -> str:
    return ", ".join(variant.name for variant in profile.variants)


def _measurements(profile: Profile) -> Iterator[tuple[tuple[str, Shapes], Measurement]]:
    for point in profile.points:
        for item in point.measurements:
            yield (item.variant, tuple(sorted(point.shapes))), item


def _conditions(profile: Profile) -> dict[str, str]:
    own = {"provider": profile.provider, "source": profile.source, "runs": str(profile.runs)}
    return own | dict(profile.environment)


def _graph(variant: Variant) -> dict[str, str]:
    facts = {
        "plan": variant.plan,
        "sdpa_kernel": str(variant.sdpa_kernel),
        "CUDA graph": "yes" if variant.cuda_graph else "no",
        "optimization": variant.optimization,
        "Casts exported": str(variant.casts_exported),
    }
    if variant.ops_optimized:
        facts |= {"Casts optimized": str(variant.casts_optimized), "Memcpy nodes": str(variant.memcpy_nodes)}
    return {f"{variant.name}: {what}": value for what, value in facts.items()}


def _change(key: tuple[str, Shapes], before: Measurement, after: Measurement, seed: int) -> Change:
    old, new = before.latency, after.latency
    return Change(
        variant=key[0],
        shapes=key[1],
        before_ms=None if old is None else old.median_ms,
        after_ms=None if new is None else new.median_ms,
        ratio=None if old is None or new is None else Ratio.of(old, new, seed, paired=False),
        ops=tuple(_ops(before, after)),
        dispatch=tuple(_dispatch(before, after)),
    )


def _ops(before: Measurement, after: Measurement) -> Iterable[OpChange]:
    if before.trace is None or after.trace is None or before.trace.method != after.trace.method:
        return ()
    old, new = ({item.op_type: item.time_us for item in trace.ops} for trace in (before.trace, after.trace))
    changes = [OpChange(op, old.get(op, 0.0), new.get(op, 0.0)) for op in old | new]
    return sorted(changes, key=lambda change: (-abs(change.after_us - change.before_us), change.op_type))


def _dispatch(before: Measurement, after: Measurement) -> Iterable[Difference]:
    if before.trace is None or after.trace is None:
        return ()
    old, new = ({item.node: item.kernel for item in found.dispatch} for found in (before, after))
    return _differences(old, new)


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    for what in dict.fromkeys((*before, *after)):
        old, new = before.get(what, ""), after.get(what, "")
        if old != new:
            yield Difference(what, old, new)
