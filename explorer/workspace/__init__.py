"""The headless explorer: `open_workspace(path) -> Workspace`, with no widget and no Jupyter.

workspace   Workspace: states, undo and redo, proof and measurement
steps       the plan that grows, and what a fuse did
choices     which target each block can become, and the one that "auto" stands for
measure     profiles and tunings, kept for what they were made of
points      the inputs that a profile runs on
regions     where the attention blocks of a model are, so that their time can be told
exports     files that are written, never over the source
"""

from explorer.workspace.measure import OnProgress
from explorer.workspace.points import PROFILE_LENGTH, Shapes, points
from explorer.workspace.regions import plan_digest, regions
from explorer.workspace.steps import FuseReport
from explorer.workspace.workspace import Workspace, open_workspace

__all__ = [
    "PROFILE_LENGTH",
    "FuseReport",
    "OnProgress",
    "Shapes",
    "Workspace",
    "open_workspace",
    "plan_digest",
    "points",
    "regions",
]
