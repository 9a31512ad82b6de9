"""What is shown while something long is under way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from fedtune import console
from fedtune.console import counting


@pytest.fixture
def terminal(monkeypatch):
    """A terminal that can be read."""
    shown = io.StringIO()
    made = Console(file=shown, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    monkeypatch.setattr(console, "STDERR", made)
    return shown


def test_a_terminal_shows_how_many_are_done(terminal):
    with counting("images", 300) as done:
        done(100)
        done(64)
    assert "images" in terminal.getvalue()
    assert "164/300" in terminal.getvalue()


def test_elsewhere_nothing_is_shown(capsys):
    with counting("images", 300) as done:
        done(300)
    assert capsys.readouterr() == ("", "")


def test_beside_another_bar_work_goes_on(terminal):
    with Progress(console=console.STDERR), counting("images", 3) as done:
        done(3)


def test_an_error_takes_the_bar_down(terminal):
    with pytest.raises(ValueError, match="broken"), counting("images", 3):
        raise ValueError("broken")
    shows_the_cursor_again = "\x1b[?25h"
    assert shows_the_cursor_again in terminal.getvalue().split("images")[-1]
