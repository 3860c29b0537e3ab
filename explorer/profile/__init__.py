"""How fast models run, what runs them, and why: measured in the worker process.

values      what a measurement is: Profile and its parts, to and from JSON
client      the parent's side: `profile(worker, variants, feeds) -> Profile`
measure     the worker's side: timed runs, interleaved
inspection  the worker's side: what ONNX Runtime made of a model, in runs that are not timed
dispatch    reads which attention kernels ran from ONNX Runtime's debug lines
statistics  medians, quantiles, bootstrap intervals, and when a warm-up is over
"""

from explorer.profile.client import VariantSpec, profile, profile_models
from explorer.profile.values import KernelDispatch, Latency, OpTime, Placement, Profile, Ratio, Variant

__all__ = [
    "KernelDispatch",
    "Latency",
    "OpTime",
    "Placement",
    "Profile",
    "Ratio",
    "Variant",
    "VariantSpec",
    "profile",
    "profile_models",
]
