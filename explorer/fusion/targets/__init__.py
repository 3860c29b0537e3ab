"""Target operators, one a file. Each says in code what it can express and builds itself in a graph."""

from explorer.fusion.targets.mha import MultiHeadAttention
from explorer.fusion.targets.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (MultiHeadAttention(),)}
"""All target operators by the name used in plans and on the command line, the preferred first."""

__all__ = ["TARGETS", "Target"]
