"""Choose a target for a block, by what was measured where something was."""

from __future__ import annotations

from dataclasses import replace

from explorer import fusion
from explorer.attention import Block, Obstacle
from explorer.fusion import Choice
from explorer.fusion.plan import Settings
from explorer.model import Model
from explorer.tune.values import UNFUSED, Tuning

_DEFAULT = Settings()


def choose(
    model: Model, block: Block, wish: str, settings: Settings = _DEFAULT, tuning: Tuning | None = None
) -> Choice:
    """What `fusion.choose` does, but "auto" takes what wins in `tuning` if that is of this model and provider.

    The words say what was measured. A block that was faster as it is has that for an obstacle, which stands in the way
    of "auto" alone.
    """
    fits = tuning is not None and (tuning.file, tuning.provider) == (model.file_digest, settings.provider)
    target = tuning.target(block.id) if tuning is not None and fits and wish == "auto" else None
    if tuning is None or target is None or block.fused_as:
        return fusion.choose(model, block, wish, settings)
    if target == UNFUSED:
        found = f"none: {tuning.words(block.id)}"
        by_name = "choose a target by name to fuse it all the same"
        return Choice("", (Obstacle("slower", block.anchor, "an operator that is faster", found, by_name),))
    choice = fusion.choose(model, block, target, settings)
    # The tuning may be of the model with other shapes given
    return (
        fusion.choose(model, block, wish, settings)
        if choice.obstacles
        else replace(choice, words=f"{tuning.words(block.id)}: {choice.words}")
    )
