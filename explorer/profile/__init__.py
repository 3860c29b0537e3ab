"""How fast models run, what runs them, and why: measured in the worker process.

values       what a measurement is: Profile and its parts; trace: what a traced run is; codec: both to and from JSON
client       the parent's side: `profile(worker, subjects, points) -> Profile`
measure      the worker's side: timed runs, interleaved
inspection   the worker's side: traced runs, of one variant; answers: how both sides' results travel
recorder     runs a model with everything recorded (recording), with cupti on a GPU
attribution  whose time it was, of the nodes in ort_graph and of their blocks
dispatch     which attention kernels ran, also by the names of their kernels
statistics   medians, quantiles, bootstrap intervals, and when a warm-up is over
sweep        profiles over several shapes: how those are written, where two variants cross
compare      what changed between two profiles
remarks      what the numbers do not show; words, tables: what they do, for people; perfetto: for ui.perfetto.dev
"""

from explorer.profile.client import Subject, profile
from explorer.profile.compare import Change, Comparison, Difference, OpChange, compare
from explorer.profile.sweep import crossovers, parse_shapes, sweep_axis
from explorer.profile.trace import Copies, Kernel, NodeTime, OpTime, RegionTime, Slice, Trace
from explorer.profile.values import Dispatch, Latency, Measurement, Placement, Point, Profile, Ratio, Region, Variant

__all__ = [
    "Change",
    "Comparison",
    "Copies",
    "Difference",
    "Dispatch",
    "Kernel",
    "Latency",
    "Measurement",
    "NodeTime",
    "OpChange",
    "OpTime",
    "Placement",
    "Point",
    "Profile",
    "Ratio",
    "Region",
    "RegionTime",
    "Slice",
    "Subject",
    "Trace",
    "Variant",
    "compare",
    "crossovers",
    "parse_shapes",
    "profile",
    "sweep_axis",
]
