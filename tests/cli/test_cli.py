"""The command line: exit codes, one line for mistakes, JSON on standard output."""

from __future__ import annotations

import json
import sys
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from fedtune import RunDirectory, __version__
from fedtune.cli.app import main
from fedtune.scenario.trouble import AttackSection
from tests.runs.kit import small
from tests.runs.test_resume import toml

TINY = [x for key, value in small().items() for x in ("--set", f"{key}={toml(value)}")]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `fedtune ...`; gives (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedtune", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize(
    "what", ["strategies", "adapters", "rules", "attacks", "tasks", "scenarios"]
)
def test_every_list_names_things_with_a_line_each(command, what):
    code, out, _ = command("list", what, "--json")
    found = json.loads(out)
    assert code == 0
    assert found
    assert all(found.values())
    assert set(found) == {line.split()[0] for line in command("list", what)[1].splitlines()}


def test_lists_name_what_exists(command):
    assert set(json.loads(command("list", "strategies", "--json")[1])) >= {
        "fedavg", "ffa-lora", "frl", "rerce"
    }  # fmt: skip
    attacks = AttackSection.model_fields["kind"].annotation
    assert set(json.loads(command("list", "attacks", "--json")[1])) == set(get_args(attacks))
    assert "quickstart" in json.loads(command("list", "scenarios", "--json")[1])


def test_schema_doctor_and_version(command):
    assert "run" in json.loads(command("schema")[1])["properties"]
    found = json.loads(command("doctor", "--json")[1])
    assert found["versions"]["fedtune"] == __version__
    assert "cores" in found["devices"]["cpu"]
    assert command("doctor")[0] == 0
    assert command("--version")[1].strip() == f"fedtune {__version__}"


def test_a_run_its_json_and_its_export(command, tmp_path):
    out = tmp_path / "run[bold]"
    code, printed, err = command("run", "quickstart", *TINY, "--out", out)
    assert code == 0
    assert "accuracy" in printed
    assert str(out / "adapter") in printed
    assert "round 2/2" in err
    assert "\x1b" not in err
    code, printed, err = command("run", "--resume", out, "--set", "run.rounds=3", "--json")
    assert code == 0
    assert json.loads(printed)["rounds"] == len(RunDirectory(out).metrics) == 3
    assert err == ""
    code, printed, _ = command("export", out, "--json")
    assert code == 0
    assert set(json.loads(printed)) == {"adapter", "merged"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "nowhere"),
        ("run", "quickstart", "--set", "run.rounds=ten"),
        ("run", "quickstart", "--set", "adapter.rank=0"),
        ("run", "quickstart", "--set", "adapter.targets=['nothing']"),
        ("run", "quickstart", "--set", "clients.count=5000"),
        ("run", "quickstart", "--set", "engine.device=cuda:7"),
        ("run", "quickstart", "--set", "strategy.name=nothing"),
        ("run", "quickstart", "--set", "strategy.beta=0.5"),
        ("run", "quickstart", "--set", "engine.threads=99999999999"),
        ("run", "quickstart", "--out", "x" * 300),
        ("run", "quickstart", "--set", "strategy.name=ffa-lora", "--set", "adapter.kind=lora"),
        ("run", "quickstart", "--set", "task.data=./nowhere"),
        ("run",),
        ("nothing",),
        ("run", "--nothing"),
        ("run", "quickstart", "--resume", "somewhere"),
        ("run", "--resume", "nowhere"),
        ("export", "nowhere"),
        ("list", "everything"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_line(command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    said = [line for line in err.splitlines() if not line.startswith("preparing ")]
    assert len(said) == 1
    assert said[0].startswith("fedtune: ")
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_says_how_to_go_on(command, tmp_path, monkeypatch):
    from fedtune.apps.clients import CohortClients

    def interrupted(self, client):
        raise KeyboardInterrupt

    monkeypatch.setattr(CohortClients, "training_rows", interrupted)
    code, _, err = command("run", "quickstart", *TINY, "--out", tmp_path / "run")
    assert code == 130
    assert f"fedtune run --resume {tmp_path / 'run'}" in err
    assert "Traceback" not in err


def test_a_full_disk_is_a_line_and_a_way_on(command, tmp_path, monkeypatch):
    from fedtune.runs import directory

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "append_line", full)
    code, _, err = command("run", "quickstart", *TINY, "--out", tmp_path / "run")
    assert code == 1
    assert "No space left on device" in err
    assert "--resume" in err


def test_without_arguments_there_is_help(command):
    code, out, _ = command()
    assert code == 0
    assert "export" in out


def test_a_failed_run_is_exit_code_1_and_can_be_resumed(command, tmp_path, monkeypatch):
    from fedtune.apps.clients import CohortClients

    out, real = tmp_path / "run", CohortClients.training_rows
    calls = []

    def broken(self, client):
        calls.append(client)
        if len(calls) > 4:
            raise OSError("disk gone")
        return real(self, client)

    with monkeypatch.context() as patch:
        patch.setattr(CohortClients, "training_rows", broken)
        code, _, err = command("run", "quickstart", *TINY, "--out", out)
    assert code == 1
    assert "failed in data: OSError: disk gone" in err
    assert "Traceback" not in err
    assert len(RunDirectory(out).metrics) == 1
    assert command("run", "--resume", out)[0] == 0


@pytest.mark.parametrize("kind", ["truncated", "trailing"])
def test_data_that_cannot_be_read_are_a_line_and_no_run(command, tmp_path, kind):
    data = tmp_path / "x.csv"
    if kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
        data.write_text("image,label\na.png,x\nb.png,y\n")
        more, where = [], ("row 1 ", "b.png", "of class y")
    else:
        data.write_text("text,label\na card,card\nthe card is lost,card,\n")
        more = ["--set", "task.kind='text-classification'", "--set",
                "task.base='builtin:bert-words'"]  # fmt: skip
        where = ("x.csv, line 3: 3 fields",)
    out = tmp_path / "run"
    code, told, error = command("run", "quickstart", *more, "--set", f"task.data={str(data)!r}",
                                "--set", f"task.test={str(data)!r}", "--out", out)  # fmt: skip
    assert code == 2
    assert not told
    assert [line.split()[0] for line in error.splitlines()] == ["preparing", "fedtune:"]
    assert all(part in error for part in where)
    assert "finished rounds" not in error
    assert not out.exists()
