"""Participation in whole runs: what the scenario says is who trains."""

from __future__ import annotations

import pytest

import fedtune
from fedtune.errors import ScenarioError
from tests.runs.kit import small


def ids(done):
    return [line["client_ids"] for line in done.metrics]


def part(**process):
    changes = small(
        run__rounds=3, clients__participation=process, clients__partition={"kind": "iid"}
    )
    del changes["clients.participation.value"]
    return changes


def test_a_trace_file_is_followed_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "trace.csv").write_text("round,client\n1,0\n1,5\n2,3\n")
    monkeypatch.chdir(tmp_path)
    done = fedtune.run("quickstart", part(kind="trace", file="trace.csv"), tmp_path / "run")
    assert ids(done) == [[0, 5], [3], [0, 5]]
    monkeypatch.chdir("/")
    again = fedtune.resume(done.path, {"run.rounds": 4})
    assert ids(again)[3] == [3]


def test_groups_and_clocks_run(tmp_path):
    groups = [{"share": 0.5, "probability": 1.0}, {"share": 0.5, "probability": 0.0}]
    done = fedtune.run("quickstart", part(kind="groups", groups=groups), tmp_path / "g")
    assert len(ids(done)[0]) == 3
    assert ids(done)[0] == ids(done)[1] == ids(done)[2]
    done = fedtune.run("quickstart", part(kind="clock", spread=0.0), tmp_path / "c")
    assert ids(done) == [list(range(6))] * 3


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"kind": "trace"}, "kind 'trace' and file go together"),
        ({"kind": "trace", "file": "absent.csv"}, "must be a csv of whole numbers"),
        ({"kind": "groups", "groups": [{"share": 0.5, "probability": 1.0}]}, "must sum to 1"),
    ],
)
def test_processes_that_cannot_be(tmp_path, process, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", part(**process), tmp_path / "run")
