"""Load what fusing made in a session, in the worker, before anyone sees it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from explorer.attention import Block
from explorer.errors import ModelError, SessionError
from explorer.fusion import TARGETS, Plan
from explorer.model import Model
from explorer.model.cut import cut
from explorer.model.external import stored_tensors
from explorer.model.save import data_folder, serialize
from explorer.runtime import Worker
from explorer.verify.blocks import Site, sites_of

_SHARE_OF_MEMORY = 4
"""Weights that are more than memory divided by this are not loaded: a session holds them more than once for a while."""


class Loading:
    """Loads the fused forms of one model, each kind of block and each plan once."""

    def __init__(self, worker: Worker, original: Model, blocks: Sequence[Block]) -> None:
        self._worker = worker
        self._original = original
        self._blocks = {block.id: block for block in blocks}
        self._kinds: dict[tuple[int, str, str], str] = {}
        self._plans: set[Plan] = set()

    def blocks(self, plan: Plan, fused: Model) -> tuple[str, ...]:
        """Load one block of each kind that `plan` fuses, cut out of `fused`, so that the model may be of any size.

        Blocks that are alike and become the same operator are of one kind. Returns sentences on those of which a
        session here says nothing: ONNX Runtime has no kernel for them on this machine, or does not take the original's
        block either. SessionError if it refuses one that it takes in the original.
        """
        opset = max((TARGETS[fusion.target].min_opset for fusion in plan.fusions), default=0)
        kinds = {(opset, fusion.family, fusion.target): fusion.block for fusion in reversed(plan.fusions)}
        for kind, block in kinds.items():
            if kind not in self._kinds:
                self._kinds[kind] = self._load_block(fused, self._blocks[block])
        return tuple(dict.fromkeys(note for kind in kinds if (note := self._kinds[kind])))

    def model(self, plan: Plan, fused: Model) -> None:
        """Load the whole of `fused`, if its weights leave room in memory and it was not loaded before.

        SessionError if ONNX Runtime refuses it and takes the original.
        """
        if plan in self._plans or _weights_bytes(fused) * _SHARE_OF_MEMORY > _memory_bytes():
            return
        refusal = _refusal(self._worker, fused)
        if refusal and not _refusal(self._worker, self._original):
            raise SessionError(f"expected a fused model that ONNX Runtime loads as it does the original: {refusal}")
        self.loaded(plan)

    def loaded(self, plan: Plan) -> None:
        """Note that a session was made of the model that `plan` leads to."""
        self._plans.add(plan)

    def _load_block(self, fused: Model, block: Block) -> str:
        """A sentence on why nothing is known of the block; "" if a session takes it."""
        for site in sites_of(self._original, fused, [block]):
            refusal = self._refusal_of(fused, site, site.fused)
            if not refusal:
                return ""
            if before := self._refusal_of(self._original, site, site.original):
                return f"{block.label}: no session was made of it here, where the original has none either: {before}"
            if "Could not find an implementation" in refusal:
                return f"{block.label}: no session was made of it here: {refusal}"
            raise SessionError(f"{block.label} stays as it is, since its fused form cannot be loaded: {refusal}")
        return ""

    def _refusal_of(self, model: Model, site: Site, inputs: Sequence[str]) -> str:
        try:
            part = cut(model, inputs, [site.output])
        except ModelError as error:
            return str(error)
        return _refusal(self._worker, part)


def _refusal(worker: Worker, model: Model) -> str:
    """Why no session can be made of `model`; "" if one can."""
    with tempfile.TemporaryDirectory(prefix="onnx-explorer-") as folder:
        path = Path(folder, model.path.name)
        path.write_bytes(serialize(model.ir))
        data = data_folder(model.ir)
        arguments = {
            "model": str(path),
            "data_folder": None if data is None else str(data),
            "optimization": "best",
        }
        try:
            worker.call("explorer.runtime.sessions:load", arguments)
        except SessionError as error:
            return str(error)
    return ""


def _weights_bytes(model: Model) -> int:
    return sum(tensor.nbytes for tensor in stored_tensors(model.ir))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
