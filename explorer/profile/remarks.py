"""What a profile's numbers do not show, in sentences: its notes. Pure. What they do show is told by `words`."""

from __future__ import annotations

from explorer.profile import words
from explorer.profile.values import Measurement, Profile

LAUNCH_BLOCKING = (
    "Traced in a process with CUDA_LAUNCH_BLOCKING=1 instead, by ONNX Runtime's node times, which then are the GPU's "
    "work and 5 to 10 µs for each launch."
)
NO_FLASH_ON_CPU = (
    "ONNX Runtime's CPU provider has no flash or cuDNN attention kernel: "
    "this shows the structure and the time on a CPU, not what a GPU gains."
)
CASTS_ON_CPU = (
    "ONNX Runtime's CPU provider puts Casts of its own around float16 nodes that it has no kernel for: "
    "its count of Casts is about this provider only."
)
NO_SDPA_KERNELS = "sdpa_kernel is an option of CUDA: on the CPU all of its settings are the same."
NO_GRAPHS = "CUDA graphs were asked for, but there are none on the CPU."
OVERLAP = 1.01
"""By so much the sum of nodes must exceed the GPU's busy time before work is said to overlap."""
_EXCESS = {
    "cupti": "work on several streams of the GPU overlaps",
    "launch-blocking": "each launch waits for the GPU and adds 5 to 10 µs",
    "node-timer": "they were taken in other runs, by a timer that adds some 10 µs to each node",
}


def remarks(profile: Profile) -> tuple[str, ...]:
    """Sentences about a profile that is complete but for these."""
    found = []
    if profile.provider == "cpu":
        found.append(NO_FLASH_ON_CPU)
        if any(variant.casts_optimized > variant.casts_exported for variant in profile.variants):
            found.append(CASTS_ON_CPU)
    excess: dict[str, list[str]] = {}
    for variant in profile.variants:
        if variant.cuda_graph:
            continue  # its trace is of runs without, which are other runs
        reasons = {point.shapes: reason for point in profile.points if (reason := _excess(point.of(variant.name)))}
        if reasons:
            everywhere = len(reasons) == len(profile.points)
            where = "" if everywhere else f" at {'; '.join(map(words.shapes, reasons))}"
            excess.setdefault(f"{where}: {next(iter(reasons.values()))}", []).append(variant.name)
    found += [
        f"The times of the nodes of {' and '.join(names)} add up to more than the timed runs took{where_and_why}. "
        "Compare them with each other, not their sum with the latency."
        for where_and_why, names in excess.items()
    ]
    return tuple(found)


def _excess(item: Measurement) -> str:
    """Why the times of the nodes add up to more than the median run took; "" if they do not."""
    trace = item.trace
    if trace is None or item.latency is None or trace.nodes_us <= 1000 * item.latency.median_ms:
        return ""
    # Without overlap the GPU merely was a little slower while it was traced
    return "" if trace.method == "cupti" and trace.nodes_us <= OVERLAP * trace.busy_us else _EXCESS[trace.method]
