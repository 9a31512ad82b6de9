"""What is shown while something long is under way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.errors import LiveError
from rich.progress import Progress, TextColumn
from typer.testing import CliRunner

from fedtune import console
from fedtune.cli.app import app
from fedtune.console import counting, show_bars


@pytest.fixture
def terminal(monkeypatch):
    """A terminal that can be read."""
    shown = io.StringIO()
    made = Console(file=shown, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    monkeypatch.setattr(console, "STDERR", made)
    show_bars(True)
    yield shown
    show_bars(False)


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


def test_without_a_command_line_nothing_is_shown(terminal):
    show_bars(False)
    with counting("images", 300) as done:
        done(300)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("options", "shown"), [([], True), (["--json"], False)])
def test_commands_show_bars_unless_json_is_asked_for(options, shown):
    found = CliRunner().invoke(app, ["report", "nowhere", *options])
    assert "nowhere" in str(found.exception) or "nowhere" in found.output
    assert console._shown.get() == shown


def test_where_only_one_bar_can_be_work_goes_on_without(terminal, monkeypatch):
    def full(bar):
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(Progress, "start", full)
    with counting("images", 3) as done:
        done(3)
    assert terminal.getvalue() == ""


def test_beside_another_bar_both_are_shown(terminal):
    with Progress(TextColumn("rounds"), console=console.STDERR) as rounds:
        rounds.add_task("")
        with counting("images", 3) as done:
            done(3)
    assert "rounds" in terminal.getvalue()


def test_an_error_takes_the_bar_down(terminal):
    with pytest.raises(ValueError, match="broken"), counting("images", 3):
        raise ValueError("broken")
    shows_the_cursor_again = "\x1b[?25h"
    assert shows_the_cursor_again in terminal.getvalue().split("images")[-1]
