"""Target operators, one a file. Each says in code what it can express and builds itself in a graph."""

from explorer.fusion.targets.attention import Attention
from explorer.fusion.targets.gqa import GroupQueryAttention
from explorer.fusion.targets.mha import MultiHeadAttention
from explorer.fusion.targets.target import Cost, Kernel, Target

TARGETS: dict[str, Target] = {
    target.name: target for target in (MultiHeadAttention(), GroupQueryAttention(), Attention())
}
"""All target operators by the name used in plans and on the command line; of equals the first is preferred."""

__all__ = ["TARGETS", "Cost", "Kernel", "Target"]
