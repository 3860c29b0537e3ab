"""Choose a target operator for a block, and say in words why this one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from explorer.attention import Block, Obstacle
from explorer.errors import BlockError
from explorer.fusion.plan import Provider, Settings
from explorer.fusion.targets import OPERATORS, TARGETS, Cost, Kernel, Target
from explorer.model import Model

_KERNEL_WORDS: dict[Kernel, str] = {
    "cudnn": "cuDNN's flash kernel",
    "flash": "Flash Attention 2",
    "memory-efficient": "the memory-efficient kernel",
    "math": "MATH, which keeps the logits in memory",
    "cpu": "the CPU's kernel",
    "cpu-float16": "the CPU's kernel, which computes in float16",
}
_RANK = {kernel: rank for rank, kernel in enumerate(get_args(Kernel))}
_DEFAULT = Settings()


@dataclass(frozen=True, slots=True)
class Choice:
    """A target for a block: its name, words that explain it, and its cost; or "" and the obstacles in its way."""

    target: str
    obstacles: tuple[Obstacle, ...] = ()
    words: str = ""
    cost: Cost | None = None

    @property
    def exact(self) -> str:
        """The target of one layout that this comes to: "mha/bsd" for "mha"; the target itself if it has but one."""
        named = "" if self.cost is None else f"{self.target.partition('/')[0]}/{self.cost.layout}"
        return named if named in TARGETS else self.target


def choose(model: Model, block: Block, wish: str, settings: Settings = _DEFAULT) -> Choice:
    """The target for a block: `wish`, or for "auto" the one that is fastest on the provider of `settings`.

    Its obstacles say why there is none. BlockError if `wish` is no target at all.
    """
    if wish != "auto" and wish not in TARGETS:
        known = ", ".join(("auto", *TARGETS))
        raise BlockError(f"expected a target among {known}, found {wish!r}: choose one of these")
    if block.fused_as:
        already = Obstacle("fused", block.anchor, "attention in parts", f"the operator {block.fused_as}")
        return Choice("", (already,))
    if block.obstacles:
        return Choice("", block.obstacles)
    if wish == "auto":
        return _fastest(model, block, settings.provider)
    target = TARGETS[wish]
    obstacles = tuple(item for item in target.obstacles(model, block) if item.code != "repeat")
    return Choice("", obstacles) if obstacles else _choice(model, block, target, settings.provider)


def choices(model: Model, block: Block, settings: Settings = _DEFAULT) -> tuple[Choice, ...]:
    """What each operator by itself comes to, in the order of OPERATORS."""
    return tuple(choose(model, block, name, settings) for name in OPERATORS)


def _choice(model: Model, block: Block, target: Target, provider: Provider) -> Choice:
    cost = target.cost(model, block, provider)
    words = f"{target.words(model, block)}; {_where(provider)} {_kernel_words(cost, provider)} computes it"
    return Choice(target.name, (), words, cost)


def _fastest(model: Model, block: Block, provider: Provider) -> Choice:
    """Of the targets that can express the block, the one with the best kernel, then the fewest layout nodes.

    One for which the whole model must be raised to another opset is only asked when no other can.
    """
    refused: dict[Target, tuple[Obstacle, ...]] = {}
    found: dict[Target, Cost] = {}
    unasked: list[Target] = []
    for target in sorted(OPERATORS.values(), key=lambda target: model.opset < target.min_opset):
        if found and model.opset < target.min_opset:
            unasked.append(target)
        elif obstacles := target.obstacles(model, block):
            refused[target] = obstacles
        else:
            cost = target.cost(model, block, provider)
            if _runs_there(cost, provider):
                found[target] = cost
            else:
                refused[target] = (_no_kernel(block, target, cost, provider),)
    if not found:
        return Choice("", tuple(dict.fromkeys(item for obstacles in refused.values() for item in obstacles)))
    best = min(found, key=lambda target: _order(found[target]))
    others = [
        *(f"{target.name}: {_kernel_words(cost, provider)}, {cost.layout_nodes} layout nodes"
          for target, cost in found.items() if target is not best),
        *(f"{target.name}: {obstacles[0]}" for target, obstacles in refused.items()),
        *(f"{target.name}: the model would have to be raised to opset {target.min_opset}" for target in unasked),
    ]  # fmt: skip
    choice = _choice(model, block, best, provider)
    return replace(choice, words=f"{choice.words}. Rather than {'; '.join(others)}")


def _order(cost: Cost) -> tuple[int, int, int]:
    return _RANK[cost.kernels[0]], cost.transposes, cost.layout_nodes


def _runs_there(cost: Cost, provider: Provider) -> bool:
    """True if the provider itself can compute it."""
    return bool(cost.kernels) and cost.kernels[0].startswith("cpu") == (provider == "cpu")


def _no_kernel(block: Block, target: Target, cost: Cost, provider: Provider) -> Obstacle:
    expected = f"a kernel for {target.name} in {block.dtype} {_where(provider)}"
    return Obstacle("kernel", block.anchor, expected, _kernel_words(cost, provider))


def _where(provider: Provider) -> str:
    return "on CUDA (sm 90)" if provider == "cuda" else "on the CPU"


def _kernel_words(cost: Cost, provider: Provider) -> str:
    if not cost.kernels:
        return "no kernel at all"
    elsewhere = " (CUDA has none)" if not _runs_there(cost, provider) else ""
    return _KERNEL_WORDS[cost.kernels[0]] + elsewhere
