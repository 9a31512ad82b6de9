"""Arrays that are made once."""

from __future__ import annotations

import os
import time

import datasets
import numpy as np
import pytest

from fedtune.tasks.cache import FORGOTTEN, MAKING, made_once


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "fedtune-numbers"


def make(made, beside):
    np.save(made / "x.npy", np.arange(3))
    (beside / "scratch").write_text("thrown away")


def test_equal_keys_are_made_once_and_nothing_else_stays(home):
    def refuse(made, beside):
        raise AssertionError("made again")

    assert made_once("numbers", ("a", 1), make)["x"].tolist() == [0, 1, 2]
    assert made_once("numbers", ("a", 1), refuse)["x"].tolist() == [0, 1, 2]
    with pytest.raises(AssertionError):
        made_once("numbers", ("a", 2), refuse)
    (kept,) = home.iterdir()
    assert [file.name for file in kept.iterdir()] == ["x.npy"]


def test_what_killed_processes_left_long_ago_is_removed(home):
    old, new = home / f"{MAKING}old", home / f"{MAKING}new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    before = time.time() - FORGOTTEN - 60
    os.utime(old, (before, before))
    made_once("numbers", ("a", 1), make)
    assert not old.exists()
    assert new.exists()
