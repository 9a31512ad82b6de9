"""The ledger: nothing is lost, nothing is read wrongly."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from fedtune.errors import RunError
from fedtune.privacy.ledger import Entry, Ledger

ONE = Entry(3, "data", "a", 1, 1.5, 0.25, 4)
TWO = Entry(3, "data", "b", 7, 0.5, 1.0, 1, "fixed")


@pytest.mark.parametrize("kept", [True, False], ids=["on disk", "in memory"])
def test_what_is_charged_is_found_again_by_client_and_data(tmp_path, kept):
    ledger = Ledger(tmp_path / "a" / "ledger.jsonl" if kept else None)
    assert ledger.entries(3, "data") == []
    ledger.charge([ONE, TWO])
    ledger.charge([Entry(4, "other", "a", 1, 1.0, 1.0, 1)])
    assert ledger.entries(3, "data") == [ONE, TWO]
    assert ledger.entries(4, "data") == []
    assert ledger.clients("data") == [3]
    again = Ledger(ledger.path)
    assert again.entries(3, "data") == ([ONE, TWO] if kept else [])


def test_processes_see_what_others_add(tmp_path):
    one, other = (Ledger(tmp_path / "ledger.jsonl") for _ in range(2))
    one.charge([ONE])
    assert other.entries(3, "data") == [ONE]
    other.charge([TWO])
    assert one.entries(3, "data") == [ONE, TWO]


def test_a_line_that_a_kill_cut_off_is_dropped_and_the_next_is_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).charge([ONE])
    with path.open("ab") as file:
        file.write(json.dumps(asdict(TWO)).encode()[:20])
    ledger = Ledger(path)
    assert ledger.entries(3, "data") == [ONE]
    ledger.charge([TWO])
    assert Ledger(path).entries(3, "data") == [ONE, TWO]


def test_a_whole_line_that_cannot_be_read_stops_everything(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).charge([ONE])
    with path.open("ab") as file:
        file.write(b'{"client": 3, "later": true}\n')
    with pytest.raises(RunError, match="what was spent is not known"):
        Ledger(path).entries(3, "data")
