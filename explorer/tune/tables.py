"""Tunings as tables and sentences, for a terminal and for the view. Pure.

They may quote names from a model: whoever shows them escapes.
"""

from __future__ import annotations

from collections import Counter
from math import inf

from explorer.profile.tables import Table
from explorer.profile.words import SDPA_KERNELS, ms, shapes, spread, times_as_fast, us
from explorer.tune.values import Trial, Tuning

_COLUMNS = (
    *("trial", "target", "sdpa_kernel", "kernel that ran"),
    *("median", "middle half", "times as fast", "device works", "layout nodes"),
)


def headline(tuning: Tuning) -> list[str]:
    """What wins, where it was measured, and what "auto" makes of it, in sentences."""
    where = f"{tuning.device or 'unknown device'}, ONNX Runtime {tuning.onnxruntime or '?'}, {shapes(tuning.shapes)}"
    said = [_winner(tuning), f"Measured on {where}; {tuning.runs} timed rounds in turns."]
    if tuning.sdpa_kernel:
        name = _allowed(tuning.sdpa_kernel)
        said.append(f"It is faster still with the session option sdpa_kernel={tuning.sdpa_kernel} ({name}).")
    if tuning.provider == "cpu":
        where = 'fuse --fastest-on cpu, or explorer.open(path, provider="cpu")'
        said.append(f'"auto" goes by this only where it is to be the fastest on the CPU: {where}.')
    return said


def _winner(tuning: Tuning) -> str:
    targets = Counter(fusion.target for fusion in tuning.plan.fusions)
    if not targets:
        fused = any(trial.latency is not None and not trial.refusal for trial in tuning.trials if not trial.is_unfused)
        return (
            "Nothing is faster here than the model as it is." if fused else "Nothing that was fused ran and was right."
        )
    plan = ", ".join(f"{count} block{'' if count == 1 else 's'} as {target}" for target, count in targets.items())
    winner, ratio = tuning.winner, tuning.winner.ratio
    took = "" if winner.latency is None else f": {ms(winner.latency.median_ms)}"
    if ratio is None:
        return f"Best: {plan}{took}."
    noise = "" if ratio.sign else ", no measurable difference"
    interval = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"Best: {plan}{took}, {ratio.value:.2f}× as fast as unfused{interval}{noise}."


def trials(tuning: Tuning) -> list[Table]:
    """The whole model, then a block of each family by itself: every trial, the fastest first."""
    return [
        _table("The whole model (of what is level within the noise, fewest layout nodes win)", tuning.trials),
        *(_table(f"{family.label}, one cut out: {family.words}", family.trials) for family in tuning.families),
    ]


def refusals(tuning: Tuning) -> list[str]:
    """Why trials must not win, each reason once."""
    found: dict[str, dict[str, None]] = {}
    for trial in (*tuning.trials, *(trial for family in tuning.families for trial in family.trials)):
        if trial.refusal:
            found.setdefault(trial.refusal, {})[trial.name] = None
    return [f"{', '.join(names)}: {why}" for why, names in found.items()]


def _table(title: str, of: tuple[Trial, ...]) -> Table:
    ordered = sorted(of, key=lambda trial: trial.latency.median_ms if trial.latency else inf)
    return Table.of(title, _COLUMNS, map(_row, ordered))


def _row(trial: Trial) -> tuple[str, ...]:
    latency, ratio = trial.latency, trial.ratio
    took = "not measured" if latency is None else ms(latency.median_ms)
    return (
        trial.name,
        ", ".join(dict.fromkeys(target or "unfused" for target in trial.targets)),
        ", ".join(map(_allowed, (trial.sdpa_kernel, *trial.merged))),
        trial.kernel,
        f"{took}, refused" if trial.refusal else took,
        "" if latency is None else spread(latency),
        times_as_fast(ratio),
        "" if trial.device_us is None else us(trial.device_us),
        "" if trial.is_unfused else str(trial.layout_nodes),
    )


def _allowed(sdpa_kernel: int) -> str:
    return SDPA_KERNELS.get(sdpa_kernel, str(sdpa_kernel))
