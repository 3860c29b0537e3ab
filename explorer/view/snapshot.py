"""What the view reads off a workspace, as values. Pure: it changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from explorer.attention.block import Block
from explorer.model.describe import describe
from explorer.profile.words import ROLES
from explorer.view import theme, words
from explorer.view.scene import LAYOUT, Region, Scene, scene
from explorer.workspace import Workspace


def scene_of(workspace: Workspace) -> Scene:
    """The current model with its blocks, placed."""
    return scene(describe(workspace.current), [_region(workspace, block) for block in workspace.blocks])


def _region(workspace: Workspace, block: Block) -> Region:
    nodes = workspace.nodes_of(block.id)
    roles = {node.name: ROLES[node.role] for node in block.region}
    for key in nodes:
        # What replaced a block: the operator itself, and the nodes that bring its operands into shape.
        if key not in roles:
            fused = theme.category(workspace.current.node(key).op_type) == "Attention"
            roles[key] = ROLES["fused"] if fused else LAYOUT
    return Region(block.id, block.label, workspace.status(block.id), nodes, roles)


def casts_left(shown: Scene) -> dict[str, int]:
    """By block id, how many Casts its nodes are in the current model."""
    casts = {node.key for node in shown.info.nodes if node.op_type == "Cast"}
    return {halo.region.id: len(casts.intersection(halo.region.nodes)) for halo in shown.halos}


def block_rows(workspace: Workspace, casts: dict[str, int]) -> list[tuple[Block, str, int]]:
    """(block, status, Casts left), in the order of the graph. In the body of a node nothing is drawn or counted."""
    rows: list[tuple[Block, str, int]] = []
    for block in workspace.blocks:
        status = workspace.status(block.id)
        rows.append((block, status, casts.get(block.id, 0 if status == "fused" else len(block.casts))))
    return rows


def fusable_alike(workspace: Workspace | None, selected: str) -> int:
    """How many blocks of the selected one's family can be fused now; 0 if none is selected."""
    if workspace is None or all(block.id != selected for block in workspace.blocks):
        return 0
    return sum(workspace.status(member) == "fusable" for member in workspace.family(selected).blocks)


def unavailable(workspace: Workspace | None, selected: str) -> dict[str, str]:
    """For each action that cannot be taken now, the reason."""
    if workspace is None:
        names = ("Fuse", "Fuse all", "Undo", "Redo", "Verify", "Profile", "Tune", "Export model", "Export plan")
        return dict.fromkeys(names, "No model is open.")
    reasons: dict[str, str] = {}
    if why := _not_fusable(workspace, selected):
        reasons["Fuse"] = why
    if not any(workspace.status(block.id) == "fusable" for block in workspace.blocks):
        reasons["Fuse all"] = "No block is left to fuse." if workspace.blocks else "This model has no attention block."
    planned = workspace.plan.blocks
    if not any(block.id in planned or workspace.status(block.id) == "fusable" for block in workspace.blocks):
        reasons["Tune"] = "There is no block that can be fused."
    if not workspace.can_undo:
        reasons["Undo"] = "Nothing was done yet."
    if not workspace.can_redo:
        reasons["Redo"] = "Nothing was undone."
    if not workspace.plan.fusions:
        nothing = "Nothing is fused: there is nothing to {}."
        reasons["Verify"] = nothing.format("compare")
        reasons["Export model"] = reasons["Export plan"] = nothing.format("export")
    return reasons


def _not_fusable(workspace: Workspace, selected: str) -> str:
    block = next((item for item in workspace.blocks if item.id == selected), None)
    if block is None:
        return "Select a block first." if workspace.blocks else "This model has no attention block."
    status = workspace.status(block.id)
    if status == "blocked":
        return f"{block.label}: {'; '.join(words.obstacle(item) for item in workspace.obstacles(block.id))}"
    if status == "fused" and not workspace.plan.target(block.id):
        return f"{block.label} was fused when the model was opened."
    return ""


def short_path(path: Path) -> str:
    """The path as one would type it here: relative to the working folder where that is shorter."""
    try:
        return min(os.fspath(path), os.path.relpath(path), key=len)
    except ValueError:  # on another drive
        return os.fspath(path)
