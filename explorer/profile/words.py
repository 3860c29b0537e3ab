"""Profiles in sentences, for a terminal and for the view. Pure: values in, text out.

They may quote names from a model: whoever shows them escapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite

from explorer.profile.statistics import MIN_RUNS
from explorer.profile.sweep import crossovers, sweep_axis
from explorer.profile.trace import Trace
from explorer.profile.values import Latency, Measurement, Point, Profile, Ratio, Shapes, Variant
from explorer.runtime.gpu import GpuState

ROLES = {
    "qk": "Q·Kᵀ",
    "cast": "cast",
    "scale": "scale",
    "mask": "mask",
    "softcap": "soft cap",
    "softmax": "softmax",
    "guard": "NaN guard",
    "pv": "P·V",
    "layout": "layout",
    "merge": "merge heads",
    "repeat": "repeat heads",
    "shape": "sizes",
    "fused": "fused attention",
}
"""What the parts of an attention block are called."""

SDPA_KERNELS = {0: "any", 1: "flash", 2: "memory-efficient", 8: "cudnn", 16: "math"}
"""What the values of the CUDA provider option sdpa_kernel are called."""

LAUNCH_BOUND = 0.75
"""A run in which the GPU works for a smaller share of the time is bound by launching kernels from the host."""

_FACTS = (("cuda", "CUDA"), ("cudnn", "cuDNN"), ("driver", "driver"), ("cupti", "CUPTI"), ("python", "python"))
_KERNELS = {"cupti": "GPU time", "launch-blocking": "node time", "node-timer": "node time"}


def ms(value: float) -> str:
    """Milliseconds with three digits that count: "118 ms", "8.53 ms", "0.012 ms", "0 ms"."""
    if abs(value) < 5e-4:
        return "0 ms"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f} ms" if isfinite(value) else "?"


def us(value: float) -> str:
    """Microseconds, said in milliseconds."""
    return ms(value / 1000)


def share(part: float, whole: float) -> str:
    """A part of a whole in percent, to a tenth where it is small."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 or not percent else f"{percent:.1f} %"


def shapes(items: Shapes) -> str:
    """The inputs of a point: "x 2×938×100, time 2×64"."""
    return ", ".join(f"{name} {'×'.join(map(str, dims)) or 'scalar'}" for name, dims in items)


def place(profile: Profile) -> str:
    """What it was measured on, in a line: device, ONNX Runtime, and on CUDA the libraries."""
    facts = dict(profile.environment)
    device = facts.get("gpu" if profile.provider == "cuda" else "cpu", "unknown device")
    libraries = [f"{name} {facts[key]}" for key, name in _FACTS if key in facts and profile.provider == "cuda"]
    return ", ".join(
        (f"On {profile.provider.upper()} ({device})", f"ONNX Runtime {facts.get('onnxruntime', '?')}", *libraries)
    )


def speeds(profile: Profile, point: Point) -> list[str]:
    """How each variant compares with the first at one point, honest about the interval."""
    first = profile.variants[0].name
    said = []
    for item in point.measurements:
        if item.ratio is None:
            continue
        if item.ratio.low is None:
            said.append(
                f"{item.variant}: {item.ratio.value:.2f}× the speed of {first}, but {profile.runs} rounds are too few "
                f"to tell that from chance: take {MIN_RUNS} or more."
            )
            continue
        interval = f"95 % interval {item.ratio.low:.2f} to {item.ratio.high:.2f}"
        if item.ratio.sign > 0:
            said.append(f"{item.variant} is {item.ratio.value:.2f}× as fast as {first} ({interval}).")
        elif item.ratio.sign < 0:
            said.append(f"{item.variant} is slower here: {item.ratio.value:.2f}× the speed of {first} ({interval}).")
        else:
            said.append(f"No measurable difference of {item.variant} to {first}: {item.ratio.value:.2f}×, {interval}.")
    return said


def refusals(point: Point) -> list[str]:
    """Why variants did not run at this point."""
    return [f"{item.variant} did not run: {item.refusal}" for item in point.measurements if item.refusal]


def conditions(profile: Profile, point: Point) -> list[str]:
    """What one should know of the timed runs at this point: warm-up, clocks, others on the device."""
    said = [f"{profile.runs} timed rounds in turns after {point.warmup} to warm up."]
    if not point.steady:
        said[0] = said[0].removesuffix(".") + ", and the runs were still getting faster: more runs would tell more."
    return said + _gpu(point.gpu)


def _gpu(states: Sequence[GpuState]) -> list[str]:
    if not states:
        return []
    last, facts = states[-1], []
    clocks = [str(state.sm_clock_mhz) for state in states if state.sm_clock_mhz is not None]
    if clocks:
        most = "" if last.max_sm_clock_mhz is None else f" of {last.max_sm_clock_mhz}"
        facts.append(f"GPU clock {' → '.join(dict.fromkeys(clocks))} MHz{most}")
    if last.temperature_c is not None:
        facts.append(f"{last.temperature_c} °C")
    if last.power_w is not None:
        facts.append(f"{last.power_w:.0f} W" + ("" if last.power_limit_w is None else f" of {last.power_limit_w:.0f}"))
    said = [f"{', '.join(facts)}."] if facts else []
    held = dict.fromkeys(reason for state in states for reason in state.held_back_by)
    if held:
        said.append(f"The GPU's clock was held back by: {', '.join(held)}.")
    others = dict.fromkeys(other for state in states for other in state.others)
    if others:
        said.append(f"Others have this GPU open: {', '.join(others)}.")
    return said


def launch_bound(item: Measurement) -> str:
    """Whether launching from the host or the GPU's work sets the pace, by the timed runs; "" where nobody can tell.

    While a run is traced the host is slower, so what the GPU worked is compared with the latency of the timed runs.
    """
    if item.trace is None or item.latency is None or item.trace.method != "cupti":
        return ""
    busy_ms, median = item.trace.busy_us / 1000, item.latency.median_ms
    worked = f"the GPU works for {ms(busy_ms)} of {ms(median)} ({share(min(busy_ms, median), median)})"
    if busy_ms < LAUNCH_BOUND * median:
        return f"{item.variant}: {worked}: bound by launching from the host; a CUDA graph or larger inputs help."
    return f"{item.variant}: {worked}: bound by the GPU's work."


def warnings(point: Point) -> list[str]:
    """Each warning about an attention kernel once for a variant, with how many nodes it is about."""
    tally = Counter(
        (item.variant, dispatch.warning)
        for item in point.measurements
        for dispatch in item.dispatch
        if dispatch.warning
    )
    return [f"{variant}, {_nodes(count)}: {warning}" for (variant, warning), count in tally.items()]


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def tracing(point: Point) -> list[str]:
    """How the times of nodes came about: each sentence once."""
    return list(dict.fromkeys(item.trace.note for item in point.measurements if item.trace and item.trace.note))


def kind_of_time(traces: Iterable[Trace]) -> str:
    """What the times of nodes are: "GPU time" as CUPTI saw it, or ONNX Runtime's "node time"."""
    return next((_KERNELS[trace.method] for trace in traces), "time")


def crossings(profile: Profile) -> list[str]:
    """Along the dimension that varies: where each variant starts to beat the first, as far as that can be measured."""
    axis = sweep_axis(profile)
    if axis is None:
        return []
    name, first = axis[0], profile.variants[0].name
    said = []
    for variant in profile.variants[1:]:
        signs, sizes = _signs(profile, variant.name), measured_crossovers(profile, variant.name)
        if not signs:
            continue
        measurable = [sign for sign in signs if sign]
        if not measurable:
            said.append(f"No measurable difference of {variant.name} to {first} at any {name} measured.")
        elif len(sizes) > 1:
            places = ", ".join(f"{size:.0f}" for size in sizes)
            said.append(f"The latencies of {first} and {variant.name} cross at {name} ≈ {places}.")
        elif sizes:
            said.append(f"{variant.name} is {measurable[-1]} than {first} from {name} ≈ {sizes[0]:.0f} on.")
        else:
            everywhere = len(measurable) == len(signs)
            where = f"at every {name} measured" if everywhere else "wherever a difference can be measured"
            said.append(f"{variant.name} is {measurable[-1]} than {first} {where}.")
    return said


_SIGNS = {1: "faster", -1: "slower", 0: ""}


def times_as_fast(ratio: Ratio | None) -> str:
    """A ratio with its interval, "2.01× (2.00 – 2.02)"; "" for none."""
    if ratio is None:
        return ""
    return f"{ratio.value:.2f}×" + ("" if ratio.low is None else f" ({ratio.low:.2f} – {ratio.high:.2f})")


def measured_crossovers(profile: Profile, variant: str) -> tuple[float, ...]:
    """Where the variant's latency crosses the first's; none if it is not measurably faster here and slower there."""
    both = {"faster", "slower"} <= set(_signs(profile, variant))
    return crossovers(profile, profile.variants[0].name, variant) if both else ()


def _signs(profile: Profile, variant: str) -> list[str]:
    """By growing size, whether the variant is "faster" or "slower" than the first; "" if the interval holds both."""
    axis = sweep_axis(profile)
    places = zip(axis[1], profile.points, strict=True) if axis else ()
    ratios = [(size, ratio) for size, point in places if (ratio := point.of(variant).ratio)]
    ratios.sort(key=lambda pair: pair[0])
    return [_SIGNS[ratio.sign] for _, ratio in ratios]


def spread(latency: Latency) -> str:
    """The middle half of the runs: "5.62 – 5.71"."""
    digits = 3 if latency.median_ms < 1 else 2
    return f"{latency.q1_ms:.{digits}f} – {latency.q3_ms:.{digits}f}"


def casts(variant: Variant) -> str:
    """Casts in the file, and in ONNX Runtime's own optimised graph where that was looked at."""
    return str(variant.casts_exported) + (f" → {variant.casts_optimized}" if variant.ops_optimized else "")
