"""Tunings kept in the user's cache: found again where they fit, and never in anybody's way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tuning_values import ENVIRONMENT, tuning

from explorer.errors import ExportError, WorkerDied
from explorer.runtime import Worker
from explorer.tune import store
from explorer.tune.store import Found

SOURCE = tuning().source


class Asked:
    """In place of a worker: what there is to run on, and how often that was asked for."""

    def __init__(self, **environment: str) -> None:
        self.environment = {**dict(ENVIRONMENT), **environment}
        self.times = 0

    def call(self, function: str) -> dict[str, str]:
        self.times += 1
        return self.environment


def found(worker: object, source: str = SOURCE, provider: str = "cuda") -> Found:
    return store.find(worker, source, provider)  # type: ignore[arg-type]


def test_what_is_saved_is_found(cache: Path) -> None:
    path = store.save(tuning())
    assert path.parent == cache
    assert found(Asked()) == Found(tuning())
    store.save(tuning(notes=("later",)))
    assert found(Asked()) == Found(tuning(notes=("later",)))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("asked", [Asked(gpu="NVIDIA L4"), Asked(onnxruntime="1.32.0")])
def test_another_device_or_onnxruntime_has_others(cache: Path, asked: Asked) -> None:
    store.save(tuning())
    assert found(asked) == Found(None)


def test_each_model_and_provider_has_its_own(cache: Path) -> None:
    store.save(tuning())
    store.save(tuning(provider="cpu"))
    assert found(Asked(), provider="cpu") == Found(tuning(provider="cpu"))
    assert found(Asked(gpu="another"), provider="cpu") == Found(tuning(provider="cpu"))
    assert found(Asked(), source="6" * 64) == Found(None)


def test_nobody_is_asked_where_nothing_is_kept(cache: Path) -> None:
    asked = Asked()
    assert found(asked) == Found(None)
    assert asked.times == 0


def test_the_real_worker_says_what_this_machine_is(cache: Path, worker: Worker) -> None:
    environment = tuple(worker.call("explorer.runtime.environment:environment").items())
    mine = tuning(provider="cpu", environment=environment)
    store.save(mine)
    assert mine.device
    assert store.find(worker, SOURCE, "cpu") == Found(mine)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1}', "\0"])
def test_a_damaged_file_is_told_and_ignored(cache: Path, text: str) -> None:
    path = store.save(tuning())
    path.write_text(text)
    tuned, (note,) = found(Asked()).tuning, found(Asked()).notes
    assert tuned is None
    assert note.startswith("A kept tuning was ignored: expected a")
    store.save(tuning())
    assert found(Asked()).tuning == tuning()


def test_a_folder_in_its_place_is_ignored(cache: Path) -> None:
    path = store.save(tuning())
    path.unlink()
    path.mkdir()
    assert found(Asked()) == Found(None)


def test_a_worker_that_dies_hides_what_is_kept(cache: Path) -> None:
    class Dead:
        def call(self, function: str) -> None:
            raise WorkerDied("it ended.")

    store.save(tuning())
    nothing = found(Dead())
    assert nothing.tuning is None
    assert nothing.notes == ("The kept tunings were not looked at, since the worker does not run: it ended.",)


def test_a_cache_that_cannot_be_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(store.VARIABLE, str(file))
    with pytest.raises(ExportError, match=r"expected a folder .* for tunings, found that it cannot be made"):
        store.save(tuning())
    assert found(Asked()) == Found(None)


def test_without_the_variable_it_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(store.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.name == "posix":
        assert store.folder() == tmp_path / "onnx-explorer" / "tunings"
