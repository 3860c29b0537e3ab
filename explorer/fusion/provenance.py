"""What every node that is written here says of itself, in its `metadata_props`."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.version import __version__

PROVENANCE = "explorer."
"""Prefix of the names: replaces (keys of the nodes it stands for) and version (of this package) on every node written;
block, target and plan on those of a fusion, opset ("17 → 23") on those of a raised operator set."""


def provenance(replaces: Iterable[str], **facts: str) -> dict[str, str]:
    """The metadata of a node that stands for the nodes with the keys `replaces`."""
    said = {**facts, "replaces": ", ".join(replaces), "version": __version__}
    return {f"{PROVENANCE}{name}": text for name, text in said.items()}
