"""Profiles as tables of words, for a terminal and for the view. They may quote names from a model: whoever shows them
escapes. Pure: values in, cells out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from explorer.attention.family import label_range
from explorer.profile import words
from explorer.profile.compare import Comparison
from explorer.profile.sweep import sweep_axis
from explorer.profile.trace import OpTime, Trace
from explorer.profile.values import Measurement, Placement, Point, Profile, Variant
from explorer.runtime.memory import in_words

MOST_OPERATORS = 10
MOST_CHANGES = 5
MOST_ELSEWHERE = 4
WORTH_TELLING = 0.01
"""A change of an operator's time that is a smaller share of all operators' is not shown."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells under a header; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, title: str, columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Self:
        """A table without the columns in which no row says anything."""
        found = list(rows)
        told = [at for at in range(len(columns)) if at == 0 or any(row[at] for row in found)]
        return cls(title, tuple(columns[at] for at in told), tuple(tuple(row[at] for at in told) for row in found))


@dataclass(frozen=True, slots=True)
class Traced:
    """A variant at a point where its run was traced."""

    variant: Variant
    measurement: Measurement
    trace: Trace

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name


def traced(profile: Profile, point: Point) -> list[Traced]:
    """The variants that were traced at this point.

    A CUDA graph is traced without the graph: where the same model was measured without it, that one stands for both.
    """
    found = [
        Traced(profile.variant(item.variant), item, item.trace) for item in point.measurements if item.trace is not None
    ]
    plain = {_model(item.variant) for item in found if not item.variant.cuda_graph}
    return [item for item in found if not item.variant.cuda_graph or _model(item.variant) not in plain]


def _model(variant: Variant) -> tuple[object, ...]:
    return variant.plan, variant.ops, variant.sdpa_kernel


def latencies(profile: Profile, point: Point) -> Table:
    """What each variant took: the timed runs, the first run and the session's load, and its Casts."""
    rows = []
    for item in point.measurements:
        variant, ratio = profile.variant(item.variant), item.ratio
        rows.append(
            (
                item.variant,
                "did not run" if item.latency is None else words.ms(item.latency.median_ms),
                "" if item.latency is None else words.spread(item.latency),
                "" if item.latency is None else words.ms(item.latency.p99_ms),
                words.times_as_fast(ratio),
                words.casts(variant),
                "" if item.trace is None else words.us(item.trace.time_of("Cast")),
                "" if item.first_run_ms is None else words.ms(item.first_run_ms),
                "" if variant.load_s is None else f"{variant.load_s:.2f} s",
            )
        )
    columns = (
        "",
        "median",
        "middle half",
        "p99",
        "times as fast",
        "Casts: file → run",
        "Cast time",
        "first run",
        "load",
    )
    return Table.of("Latency", columns, rows)


def operators(profile: Profile, point: Point) -> Table | None:
    """Time of one run by operator, of each variant that was traced; for two the difference, too."""
    shown = traced(profile, point)
    if not shown:
        return None
    times = [{own.op_type: own for own in item.trace.ops} for item in shown]
    ranked = rank_operators([item.trace for item in shown])
    rows = [_operator(name, [own.get(name) for own in times]) for name in ranked[:MOST_OPERATORS]]
    if rest := ranked[MOST_OPERATORS:]:
        rows.append(_operator("others", [_sum(own[name] for name in rest if name in own) for own in times]))
    lost = [OpTime("", item.trace.unattributed_us, 0) for item in shown]
    rows.append(_operator("not attributed", lost))
    whole = [_sum((*own.values(), none)) for own, none in zip(times, lost, strict=True)]
    rows.append(_operator("all", whole))
    kind = words.kind_of_time(item.trace for item in shown)
    change = ("difference",) if len(shown) == 2 else ()
    columns = ("operator", *(item.name for item in shown), *change)
    return Table(f"{kind[0].upper()}{kind[1:]} of one run by operator (nodes)", columns, tuple(rows))


def rank_operators(traces: Sequence[Trace]) -> list[str]:
    """All operators by the longest of their times in any of the traces."""
    longest: dict[str, float] = {}
    for trace in traces:
        for item in trace.ops:
            longest[item.op_type] = max(longest.get(item.op_type, 0.0), item.time_us)
    return sorted(longest, key=lambda name: (-longest[name], name))


def _sum(times: Iterable[OpTime]) -> OpTime:
    items = list(times)
    return OpTime("", sum(item.time_us for item in items), sum(item.count for item in items))


def _operator(name: str, times: Sequence[OpTime | None]) -> tuple[str, ...]:
    cells = [_time(item) for item in times]
    if len(times) == 2:
        before, after = (0.0 if item is None else item.time_us for item in times)
        cells.append(_difference(before, after))
    return (name, *cells)


def _difference(before_us: float, after_us: float) -> str:
    change = words.us(abs(after_us - before_us))
    return change if change == words.us(0) else f"{'+' if after_us > before_us else '−'}{change}"


def _time(item: OpTime | None) -> str:
    if item is None:
        return "–"
    return words.us(item.time_us) + (f" ({item.count:.0f})" if item.count else "")


def kernels(profile: Profile, point: Point) -> Table | None:
    """Which attention kernels ran, as seen and as ONNX Runtime says, and how many nodes with each."""
    tally = Counter(
        (item.name, dispatch.operator, dispatch.dtype, dispatch.kernel or "not known")
        for item in traced(profile, point)
        for dispatch in item.measurement.dispatch
    )
    if not tally:
        return None
    rows = tuple((*row, str(count)) for row, count in tally.items())
    return Table("Attention kernels", ("", "operator", "type", "kernel", "nodes"), rows)


def blocks(profile: Profile, point: Point) -> Table | None:
    """Time of all attention blocks of each variant together, and by the parts that it is made of."""
    labels = dict(profile.labels)
    rows = []
    for item in traced(profile, point):
        regions = item.trace.regions
        if not regions:
            continue
        parts: Counter[str] = Counter()
        for region in regions:
            parts.update({part.op_type: part.time_us for part in region.parts})
        whole = sum(region.time_us for region in regions)
        named = label_range([labels.get(region.block, region.block) for region in regions])
        made_of = ", ".join(f"{words.ROLES.get(part, part)} {words.us(time)}" for part, time in parts.most_common())
        rows.append((item.name, f"{len(regions)} ({named})", words.us(whole), words.us(whole / len(regions)), made_of))
    columns = ("", "blocks", "all", "each", "made of")
    return Table("Attention blocks", columns, tuple(rows)) if rows else None


def machine(profile: Profile, point: Point) -> Table | None:
    """What the device did in a traced run: working, waiting, copying, memory; what ran elsewhere."""
    shown = traced(profile, point)
    if not shown:
        return None
    facts = [_facts(item, profile.provider) for item in shown]
    names = dict.fromkeys(name for own in facts for name in own)
    rows = tuple((name, *(own.get(name, "–") for own in facts)) for name in names)
    return Table("The device in one traced run", ("", *(item.name for item in shown)), rows)


def _facts(item: Traced, provider: str) -> dict[str, str]:
    trace, variant = item.trace, item.variant
    facts = {"from start to end, while traced": words.us(trace.wall_us)}
    if trace.method == "cupti":
        span = trace.busy_us + trace.idle_us
        facts["GPU works"] = words.us(trace.busy_us)
        facts["GPU waits in between"] = (
            f"{words.us(trace.idle_us)} ({words.share(trace.idle_us, span)}), at most {words.us(trace.longest_gap_us)}"
        )
    facts["not attributed to a node"] = (
        f"{words.us(trace.unattributed_us)} ({words.share(trace.unattributed_share, 1.0)})"
    )
    for copies in trace.copies:
        facts[copies.kind] = f"{copies.count:.0f} × {words.us(copies.time_us)}, {in_words(copies.size_bytes)}"
    if trace.arena_peak_bytes is not None:
        held = "" if trace.arena_held_bytes is None else f" (of {in_words(trace.arena_held_bytes)} held)"
        facts["memory at its peak, with weights"] = in_words(trace.arena_peak_bytes) + held
    if variant.placement:
        facts["nodes by provider"] = ", ".join(_placed(own, provider) for own in variant.placement)
    facts["Memcpy nodes"] = str(variant.memcpy_nodes)
    return facts


def _placed(placement: Placement, provider: str) -> str:
    """How many nodes a provider runs, and if it is not the one that was asked for, of which operators."""
    name = placement.provider.removesuffix("ExecutionProvider")
    count = f"{name} {sum(number for _, number in placement.ops)}"
    if name.lower() == provider:
        return count
    most = [f"{op} {number}" for op, number in placement.ops[:MOST_ELSEWHERE]]
    more = ["…"] if len(placement.ops) > MOST_ELSEWHERE else []
    return f"{count} ({', '.join([*most, *more])})"


def sweep(profile: Profile) -> Table | None:
    """Median latency of every variant at every point, and how many times as fast as the first it is."""
    if len(profile.points) < 2:
        return None
    axis = sweep_axis(profile)
    names = [variant.name for variant in profile.variants]
    rows = []
    for index, point in enumerate(profile.points):
        found = [point.of(name) for name in names]
        medians = ["did not run" if item.latency is None else words.ms(item.latency.median_ms) for item in found]
        ratios = ["" if item.ratio is None else f" ({item.ratio.value:.2f}×)" for item in found]
        cells = map("".join, zip(medians, ratios, strict=True))
        rows.append((str(axis[1][index]) if axis else words.shapes(point.shapes), *cells))
    columns = (axis[0] if axis else "inputs", *names)
    return Table("Median latency over inputs (times as fast as the first)", columns, tuple(rows))


def changes(comparison: Comparison) -> list[Table]:
    """What changed from one profile to another: latencies, operators, kernels, and the conditions of both."""
    latency = [
        (
            item.variant,
            words.shapes(item.shapes),
            "did not run" if item.before_ms is None else words.ms(item.before_ms),
            "did not run" if item.after_ms is None else words.ms(item.after_ms),
            words.times_as_fast(item.ratio),
        )
        for item in comparison.changes
    ]
    times = [
        (
            *(item.variant, words.shapes(item.shapes), op.op_type),
            *(words.us(op.before_us), words.us(op.after_us), _difference(op.before_us, op.after_us)),
        )
        for item in comparison.changes
        for op in item.ops[:MOST_CHANGES]
        if abs(op.after_us - op.before_us) > WORTH_TELLING * sum(own.before_us for own in item.ops)
    ]
    dispatch = [
        (item.variant, words.shapes(item.shapes), found.what, found.before, found.after)
        for item in comparison.changes
        for found in item.dispatch
    ]
    conditions = [(item.what, item.before, item.after) for item in (*comparison.conditions, *comparison.graphs)]
    tables = (
        Table("Latency, then and now", ("", "inputs", "then", "now", "times as fast"), tuple(latency)),
        Table("Operators that changed most", ("", "inputs", "operator", "then", "now", "difference"), tuple(times)),
        Table("Attention kernels", ("", "inputs", "node", "then", "now"), tuple(dispatch)),
        Table("What else differs", ("", "then", "now"), tuple(conditions)),
    )
    return [table for table in tables if table.rows]


def point_tables(profile: Profile, point: Point) -> list[Table]:
    """Everything that a trace tells at one point."""
    found = (operators(profile, point), blocks(profile, point), kernels(profile, point), machine(profile, point))
    return [table for table in found if table is not None]
