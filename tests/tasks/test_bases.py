"""Where a base comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedtune.tasks import bases
from fedtune.tasks.bases import CONFIG, VOCABULARIES, pretrained


class Loader:
    """Loads from folders that hold a configuration, and one name from the hub."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def from_pretrained(self, name: str, **given: Any) -> Any:
        self.asked.append(name)
        if name == "a/b" or (Path(name) / CONFIG).is_file():
            return given
        raise OSError(f"{name} is not to be had")


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine keeps `a/b`."""
    monkeypatch.setattr(bases, "cached_file", lambda *_, **__: str(tmp_path / CONFIG))
    return tmp_path


def test_the_hub_is_not_asked_for_what_is_on_this_machine(snapshot: Path) -> None:
    (snapshot / CONFIG).write_text("{}")
    loader = Loader()
    assert pretrained(loader, "a/b", x=1) == {"x": 1}
    assert loader.asked == [str(snapshot)]


def test_the_hub_is_asked_for_the_rest(snapshot: Path) -> None:
    loader = Loader()
    assert pretrained(loader, "a/b", x=1) == {"x": 1}
    assert loader.asked == [str(snapshot), "a/b"]
    with pytest.raises(OSError, match="not to be had"):
        pretrained(loader, "c/d")


def test_a_tokenizer_is_not_made_of_a_configuration_alone(snapshot: Path) -> None:
    """Transformers would, without a word in it."""
    (snapshot / CONFIG).write_text("{}")
    loader = Loader()
    pretrained(loader, "a/b", VOCABULARIES)
    assert loader.asked == ["a/b"]
    (snapshot / "vocab.txt").touch()
    pretrained(loader, "a/b", VOCABULARIES)
    assert loader.asked == ["a/b", str(snapshot)]
