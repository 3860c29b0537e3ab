"""Find the fastest target for each family of attention blocks on this device, by measuring them all.

values      what a tuning is: Trial, FamilyTuning, Tuning, to and from JSON
candidates  the ways in which a family can be computed, cut out of the model and checked
tuner       measures them, alone and in the model: `tune(worker, model, blocks, families, feeds) -> Tuning`
trials      what measurements make of trials, and trials of what is tried next
choose      `fusion.choose`, that knows what was measured
store       tunings kept in the user's cache
"""

from explorer.tune.choose import choose
from explorer.tune.tuner import tune
from explorer.tune.values import UNFUSED, FamilyTuning, Trial, Tuning

__all__ = ["UNFUSED", "FamilyTuning", "Trial", "Tuning", "choose", "tune"]
