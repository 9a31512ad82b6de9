"""Killed at any moment and resumed, a run ends with the same bytes as one never killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import fedtune
from fedtune import files
from fedtune.errors import ScenarioError
from fedtune.runs import checkpoints, directory
from fedtune.runs.directory import RunDirectory
from tests.conftest import drawing
from tests.runs.kit import adapter_bytes, lines, small

ROUNDS = 3


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenario") / "blank.toml"
    path.write_text("[run]\n")
    return path


def options(**changes):
    return small(run__rounds=ROUNDS, task__head="local", engine__cohort_size="auto", **changes)


@pytest.fixture(scope="module")
def whole(blank, tmp_path_factory):
    """The run that is never killed; local heads, so that clients have state too."""
    return fedtune.run(blank, options(), tmp_path_factory.mktemp("whole") / "run")


def same(a: RunDirectory, b: RunDirectory) -> bool:
    heads = [{p.name: p.read_bytes() for p in (d.path / "clients").iterdir()} for d in (a, b)]
    times = ("seconds", "client_updates_per_second", "peak_memory_bytes")
    summaries = [{k: v for k, v in d.summary.items() if not k.startswith(times)} for d in (a, b)]
    return (
        lines(a) == lines(b)
        and adapter_bytes(a) == adapter_bytes(b)
        and heads[0] == heads[1]
        and summaries[0] == summaries[1]
    )


class Killer:
    """Dies at the n-th disk operation, before or in the middle of it."""

    def __init__(self, monkeypatch, at: int, half: bool) -> None:
        self.left, self.half, self.patch = at, half, monkeypatch

        def count(real, broken):
            def operation(path, value):
                self.left -= 1
                if self.left == 0:
                    if self.half:
                        broken(path, value)
                    raise Killed
                return real(path, value)

            return operation

        def half_written(path, data):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.partial").write_bytes(data[: len(data) // 2])

        def half_line(path, value):
            with path.open("a") as file:
                file.write('{"round": 1, "ev')

        write = count(files.write_atomically, half_written)
        append = count(files.append_line, half_line)
        monkeypatch.setattr(files, "write_atomically", write)
        for module in (checkpoints, directory):
            monkeypatch.setattr(module, "write_atomically", write)
        monkeypatch.setattr(directory, "append_line", append)


@pytest.mark.parametrize("half", [False, True], ids=["before", "within"])
@pytest.mark.parametrize("at", [2, 4, 5, 6, 7, 9, 12])
def test_killed_at_any_disk_operation(blank, whole, tmp_path, monkeypatch, at, half):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        killer = Killer(patch, at, half)
        with pytest.raises(Killed):
            fedtune.run(blank, options(), out)
        assert killer.left == 0
    assert same(fedtune.resume(out), whole)


def test_killed_by_the_system_while_it_trains(blank, whole, tmp_path):
    out = tmp_path / "run"
    sets = [x for k, v in options().items() for x in ("--set", f"{k}={toml(v)}")]
    command = [sys.executable, "-m", "fedtune", "run", str(blank), "--out", str(out), *sets]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 240
    while not (out / "metrics.jsonl").exists() and time.time() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = RunDirectory.open(out)
    assert not killed.summary
    assert same(fedtune.resume(out), whole)


def toml(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("damage", ["truncated", "changed", "no note", "torn note"])
def test_a_damaged_checkpoint_is_passed_over(blank, whole, tmp_path, damage):
    out = tmp_path / "run"
    fedtune.run(blank, options() | {"run.rounds": 2}, out)
    newest = out / "checkpoints" / "round-000002.safetensors"
    data = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        newest.write_bytes(data[:-4] + bytes(b ^ 1 for b in data[-4:]))
    elif damage == "no note":
        newest.with_suffix(".json").unlink()
    else:
        note = newest.with_suffix(".json")
        note.write_bytes(note.read_bytes()[:20])
    found = checkpoints.load_checkpoint(out / "checkpoints")
    assert found is not None
    assert found.round == 1
    resumed = fedtune.resume(out, {"run.rounds": ROUNDS})
    assert same(resumed, whole)


def test_a_finished_run_can_be_lengthened(blank, whole, tmp_path):
    out = tmp_path / "run"
    fedtune.run(blank, options() | {"run.rounds": 1}, out)
    assert same(fedtune.resume(out, ["run.rounds=3"]), whole)
    assert RunDirectory.open(out).scenario.run.rounds == ROUNDS


def test_a_run_that_stopped_early_does_not_go_on(blank, tmp_path):
    rule = {"patience": 1, "min_delta": 10.0}
    done = fedtune.run(blank, small(run__rounds=6, run__early_stopping=rule), tmp_path / "run")
    before = lines(done), adapter_bytes(done)
    assert len(before[0]) == 2
    again = fedtune.resume(tmp_path / "run")
    assert (lines(again), adapter_bytes(again)) == before


def test_rounds_that_are_done_cannot_be_taken_back(whole):
    with pytest.raises(ScenarioError, match=r"run.rounds = 1: 3 rounds are done"):
        fedtune.resume(whole.path, ["run.rounds=1"])


@pytest.mark.parametrize("damage", ["absent", "half", "not text", "not a record"])
def test_metrics_that_miss_rounds_are_said_in_a_line(blank, tmp_path, damage):
    out = tmp_path / "run"
    fedtune.run(blank, options() | {"run.rounds": 2}, out)
    file = out / "metrics.jsonl"
    if damage == "absent":
        file.unlink()
    elif damage == "half":
        file.write_text(file.read_text().splitlines()[0] + "\n")
    else:
        file.write_bytes(b"\xff\xfe\x00" if damage == "not text" else b"1\n")
    with pytest.raises(ScenarioError, match=r"metrics\.jsonl misses rounds"):
        fedtune.resume(out)


@pytest.mark.parametrize("name", ["partition.npz", "partition.png", "engine.json"])
def test_files_that_can_be_made_again_are(blank, whole, tmp_path, name):
    out = tmp_path / "run"
    with drawing():
        fedtune.run(blank, options() | {"run.rounds": 1}, out)
        if name == "partition.png":
            (out / name).unlink()
        else:
            (out / name).write_bytes((out / name).read_bytes()[:10])
        assert same(fedtune.resume(out, {"run.rounds": ROUNDS}), whole)
    assert (out / name).stat().st_size > 10


def test_what_is_settled_cannot_be_changed(whole, tmp_path):
    with pytest.raises(ScenarioError, match=r"can change: run.rounds"):
        fedtune.resume(whole.path, ["local.lr=0.5"])
    with pytest.raises(ScenarioError, match="not a run directory"):
        fedtune.resume(tmp_path)


def test_only_the_last_two_checkpoints_are_kept(whole):
    names = sorted(p.name for p in whole.checkpoints.glob("*.json"))
    assert names == ["round-000002.json", "round-000003.json"]


def test_two_processes_cannot_run_one_run(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    with (
        fedtune.RunDirectory(path).locked(),
        pytest.raises(ScenarioError, match="another process is running it now"),
    ):
        fedtune.resume(path, {"run.rounds": 9})
    assert fedtune.resume(path, {"run.rounds": whole.summary["rounds"] + 1}).summary
