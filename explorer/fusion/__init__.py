"""Plan fusions and apply them: (model, blocks, plan) → new model. The source model is never changed."""

from explorer.fusion.apply import apply
from explorer.fusion.choose import Choice, choices, choose
from explorer.fusion.plan import Change, Fusion, Plan, Settings
from explorer.fusion.provenance import PROVENANCE
from explorer.fusion.targets import OPERATORS, TARGETS

__all__ = [
    "OPERATORS",
    "PROVENANCE",
    "TARGETS",
    "Change",
    "Choice",
    "Fusion",
    "Plan",
    "Settings",
    "apply",
    "choices",
    "choose",
]
