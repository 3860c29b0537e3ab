"""Target operators, one a file. Each says in code what it can express and builds itself in a graph."""

from explorer.fusion.targets.attention import Attention
from explorer.fusion.targets.gqa import GroupQueryAttention
from explorer.fusion.targets.mha import MultiHeadAttention
from explorer.fusion.targets.target import Cost, Kernel, Target

OPERATORS: dict[str, Target] = {
    target.name: target for target in (MultiHeadAttention(), GroupQueryAttention(), Attention())
}
"""The targets that take the cheapest of their layouts, one for each operator; of equals the first is preferred."""

TARGETS: dict[str, Target] = OPERATORS | {
    target.name: target for kind in (MultiHeadAttention, Attention) for target in (kind("bsd"), kind("bnsh"))
}
"""All targets by the name used in plans and on the command line: also those of one layout, "mha/bsd"."""

__all__ = ["OPERATORS", "TARGETS", "Cost", "Kernel", "Target"]
