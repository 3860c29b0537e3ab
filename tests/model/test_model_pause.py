"""The collector rests while a model is loaded, and is as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from explorer.errors import ModelError
from explorer.model import load
from explorer.model.pause import collector_paused

NEG = "g (float[N, 4] x) => (float[N, 4] y) { a = Neg (x) y = Abs (a) }"


@pytest.fixture(autouse=True)
def collecting():
    """Tests start with the collector on, and leave it on."""
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_it_goes_on_afterwards():
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_one_that_was_off_stays_off():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_it_goes_on_after_an_error(tmp_path):
    with pytest.raises(ModelError):
        load(tmp_path / "absent.onnx")
    assert gc.isenabled()


def test_two_at_once_in_any_order():
    """Loads in threads: whoever began ends it, the other changes nothing."""
    first, second = collector_paused(), collector_paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_what_was_made_is_old():
    """So that the next young collection does not walk over all of it."""
    with collector_paused():
        made = [[] for _ in range(1000)]
    old = {id(item) for item in gc.get_objects(generation=2)}
    assert all(id(item) in old for item in made)


def test_what_somebody_froze_stays_frozen():
    """A few of the frozen may die meanwhile; had they been thawed, none would be left."""
    gc.freeze()
    frozen = gc.get_freeze_count()
    with collector_paused():
        pass
    assert gc.get_freeze_count() > frozen // 2 > 0


def test_a_load_makes_no_collection(write):
    chain = " ".join(f"v{i + 1} = Neg (v{i})" for i in range(500))
    path = write(f"g (float[N] v0) => (float[N] v500) {{ {chain} }}")
    load(path)  # imports and caches come with the first
    collections: list[int] = []
    gc.collect()
    gc.callbacks.append(lambda phase, info: collections.append(info["generation"]))
    try:
        model = load(path)
    finally:
        gc.callbacks.pop()
    assert len(model.nodes) == 500
    assert collections == []
