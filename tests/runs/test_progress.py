"""What the terminal shows of a round."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedtune.runs.progress import ConsoleObserver

LINE = {"round": 3, "clients": 0, "seconds_train": 1.0, "eval": None, "problems": [],
        "failures": 0, "rejected": 0, "lost": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({"rejected": 2, "lost": 1}, True),
        ({"failures": 1}, True),
        ({"lost": 5}, True),
        ({"lost": 5, "clients": 1}, False),
        ({}, False),  # nobody was drawn
    ],
)
def test_a_round_of_which_no_reply_can_be_used_is_said(changes, warns):
    observer, shown = ConsoleObserver(), io.StringIO()
    observer.console = Console(file=shown, highlight=False, markup=False, soft_wrap=True)
    observer.finished_round({**LINE, **changes})
    assert ("round 3: warning: no reply can be used: " in shown.getvalue()) == warns
