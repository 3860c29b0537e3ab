"""What "auto" takes where something was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
from tune_graphs import network
from tuning_values import family, trial, tuning

from explorer import fusion
from explorer.attention import Block, recognise
from explorer.fusion import Plan
from explorer.fusion.plan import Settings
from explorer.model import Model
from explorer.tune import Tuning, choose

CUDA, CPU = Settings("cuda"), Settings("cpu")


@pytest.fixture
def model(opened: Callable[[onnx.ModelProto], Model]) -> Model:
    return opened(network(0.3))


@pytest.fixture
def block(model: Model) -> Block:
    (block,) = recognise(model)
    return block


def tuned(model: Model, block: Block, target: str) -> Tuning:
    """`target` wins, and "" leaves the block as it is."""
    plan = Plan(model.digest, settings=CUDA)
    return tuning(
        source=model.digest,
        file=model.file_digest,
        families=(family(trial(ms=1), trial(target, 1 if target else None), block=block.id),),
        plan=plan.with_fusion(block, target) if target else plan,
        trials=(trial(ms=5), trial(target, 4)) if target else (trial(ms=5),),
    )


def test_auto_takes_what_was_the_fastest(model: Model, block: Block) -> None:
    assert fusion.choose(model, block, "auto", CUDA).target == "mha"
    choice = choose(model, block, "auto", CUDA, tuned(model, block, "attention/bnsh"))
    assert choice.target == choice.exact == "attention/bnsh"
    assert choice.words.startswith("measured on NVIDIA H200 at x 2×938×100: unfused 1 ms, attention/bnsh 1 ms; in the")
    assert ": ai.onnx Attention, all in BNSH, with" in choice.words


def test_what_was_faster_as_it_is_stays(model: Model, block: Block) -> None:
    choice = choose(model, block, "auto", CUDA, tuned(model, block, ""))
    assert choice.target == ""
    (obstacle,) = choice.obstacles
    assert obstacle.code == "slower"
    assert str(obstacle) == (
        "expected an operator that is faster, found none: measured on NVIDIA H200 at x 2×938×100: unfused 1 ms; in the "
        "model unfused 5 ms; choose a target by name to fuse it all the same"
    )


def test_a_wish_is_a_wish(model: Model, block: Block) -> None:
    found = choose(model, block, "mha", CUDA, tuned(model, block, ""))
    assert found == fusion.choose(model, block, "mha", CUDA)


@pytest.mark.parametrize("other", [{"file": "6" * 64}, {"provider": "cpu"}, {"families": (family(trial()),)}])
def test_what_was_measured_of_something_else_says_nothing(model: Model, block: Block, other: dict[str, object]) -> None:
    measured = replace(tuned(model, block, "attention/bnsh"), **other)
    assert choose(model, block, "auto", CUDA, measured) == fusion.choose(model, block, "auto", CUDA)


def test_nothing_was_measured(model: Model, block: Block) -> None:
    assert choose(model, block, "auto", CPU) == fusion.choose(model, block, "auto", CPU)


def test_what_this_model_cannot_be_is_not_taken(model: Model, block: Block) -> None:
    """The tuning may be of the model with other shapes given."""
    found = choose(model, block, "auto", CUDA, tuned(model, block, "gqa"))
    assert found == fusion.choose(model, block, "auto", CUDA)
