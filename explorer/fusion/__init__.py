"""Plan fusions and apply them: (model, blocks, plan) → new model. The source model is never changed."""

from explorer.fusion.apply import apply, choose
from explorer.fusion.plan import Fusion, Plan
from explorer.fusion.targets import TARGETS

__all__ = ["TARGETS", "Fusion", "Plan", "apply", "choose"]
