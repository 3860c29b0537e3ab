"""A tuning made by hand."""

from __future__ import annotations

from typing import Any

from explorer.fusion import Fusion, Plan
from explorer.profile import Latency, Ratio
from explorer.tune import FamilyTuning, Trial, Tuning

SLOW, FAST = (4.0, 4.1, 4.0) * 2, (1.0, 1.1, 1.0) * 2
WRONG = "it computes something else: 2.0e-01 from the truth, where 1.0e-03 is allowed"


def trial(name: str, runs_ms: tuple[float, ...] | None, target: str = "", **changes: Any) -> Trial:
    """A way that took so long; None is one that was not measured."""
    latency = None if runs_ms is None else Latency(runs_ms)
    ratio = None if latency is None or not target else Ratio.of(Latency(SLOW), latency, 0)
    values: dict[str, Any] = {
        "name": name, "targets": (target,), "sdpa_kernel": 0, "merged": (), "kernel": "", "layout_nodes": 2,
        "latency": latency, "ratio": ratio, "device_us": None, "refusal": "",
    }  # fmt: skip
    return Trial(**{**values, **changes})


def tuning(source: str = "0", block: str = "b0", **changes: Any) -> Tuning:
    """One block, fastest as mha/bsd by cuDNN's kernel; attention/bnsh computes something else."""
    alone = (
        trial("unfused", SLOW),
        trial("mha/bsd", FAST, "mha/bsd", kernel="CUDNN_FLASH_ATTENTION", merged=(8,), device_us=800.0),
        trial("attention/bnsh", SLOW, "attention/bnsh", refusal=WRONG),
    )
    values: dict[str, Any] = {
        "source": source, "file": source, "provider": "cuda",
        "environment": (("gpu", "NVIDIA H200"), ("onnxruntime", "1.2.3")),
        "shapes": (("x", (2, 938, 100)),), "runs": 6, "seed": 0,
        "families": (FamilyTuning("attn0", (block,), block, "2 heads of 64", alone),),
        "trials": (trial("unfused", SLOW), trial("the best of each family", FAST, "mha/bsd")),
        "plan": Plan(source, (Fusion(block, "mha/bsd"),)), "sdpa_kernel": 0, "notes": ("a note",),
    }  # fmt: skip
    return Tuning(**{**values, **changes})
