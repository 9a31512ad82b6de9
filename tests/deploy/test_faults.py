"""What goes wrong with real processes: each is survived, and no finished round is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

import fedtune
from fedtune.deploy import processes
from fedtune.deploy.certificates import make_certificates, make_client_keys
from fedtune.deploy.processes import Place, supernode_command
from fedtune.runs.processes import Child, flower_environment
from fedtune.runs.superlink import SuperLink
from tests.deploy.real import Running, kill_tree, server_app
from tests.deploy.test_deployment import adapter_of, apart
from tests.deploy.test_end_to_end import arguments, processes_of
from tests.runs.kit import small

pytestmark = pytest.mark.long
DOUBLE = {"engine__precision": "float64"}


def test_a_supernode_is_killed_in_a_round_comes_back_and_another_joins_late(tmp_path):
    late = {"deploy__join_timeout": 2.0, "deploy__round_timeout": 30.0, "run__rounds": 30}
    with Running(tmp_path, 3, started=[0, 1], **late) as run:
        run.submit()
        run.until_round(1)
        assert run.directory.metrics[0]["client_ids"] == [0, 1]
        run.federation.start_client(2)
        time.sleep(2.0)  # round 2 is on its way
        kill_tree(run.federation.clients[1].supernode.child.process.pid)
        run.until_round(2)
        assert 1 not in run.directory.metrics[1]["client_ids"]
        run.until(lambda: any(ids == [0, 2] for _, ids in run.lines()))
        run.until(lambda: run.lines()[-1][1] == [0, 1, 2])


def test_a_trainer_that_dies_is_started_again(tmp_path):
    with Running(tmp_path, 2, run__rounds=4, deploy__round_timeout=60.0) as run:
        run.submit()
        run.until_round(1)
        kill_tree(run.federation.clients[1].trainer.child.process.pid)
        run.until_end()
        assert run.directory.metrics[-1]["client_ids"] == [0, 1], run.lines()


def test_a_killed_server_app_is_run_again_and_the_result_is_an_undisturbed_runs(tmp_path):
    changes = {"run__rounds": 4, "strategy__name": "fedex-lora", **DOUBLE}
    with Running(tmp_path, 2, **changes) as run:
        run.submit()
        run.until_round(2)
        server_app(run.federation.link.process.pid).kill()
        time.sleep(2.0)
        done = len(run.directory.metrics)
        kept = run.directory.metrics
        run.submit(resume=True)
        run.until_end()
        assert 2 <= done < 4
        assert run.directory.metrics[: done - 1] == kept[: done - 1]
    whole = small(clients__count=2, clients__participation__value=1.0, **changes)
    simulated = fedtune.run("quickstart", whole, tmp_path / "simulated")
    assert apart(adapter_of(run.directory), adapter_of(simulated)) <= 1e-6


def test_a_superlink_restarted_on_its_database_knows_its_clients(tmp_path):
    with Running(tmp_path, 2, run__rounds=3, **DOUBLE) as run:
        run.submit()
        run.until_round(1)
        link = run.federation.link
        kill_tree(link.process.pid)
        link.process.wait()
        keys = run.federation.home / "keys"
        run.federation.link = SuperLink(
            link.home, run.federation.options, keys / "ca.crt", link.port
        )
        run.federation.link.wait()
        run.submit(resume=True)
        run.until_end()
        assert [ids for _, ids in run.lines()] == [[0, 1]] * 3
    whole = small(clients__count=2, clients__participation__value=1.0, run__rounds=3, **DOUBLE)
    simulated = fedtune.run("quickstart", whole, tmp_path / "simulated")
    assert apart(adapter_of(run.directory), adapter_of(simulated)) <= 1e-6


def test_garbage_is_set_aside_by_name_and_silence_ends_in_time(tmp_path, monkeypatch):
    plain = processes.Child

    def child(name, command, log, environment):
        if name == "the trainer of client 1":
            socket = str(log.parent.parent / "1.sock")
            command = [sys.executable, "-m", "tests.deploy.garbage", socket]
        return plain(name, command, log, environment)

    monkeypatch.setattr(processes, "Child", child)
    with Running(tmp_path, 3, run__rounds=5, deploy__round_timeout=25.0) as run:
        run.submit()
        run.until_end(300.0)
        lines = run.directory.metrics
        assert [line["client_ids"] for line in lines] == [[0, 2]] * 5
        said = [line["problems"][0]["reason"] for line in lines[:4]]
        assert "has shape (1,)" in said[0]
        assert "NaN or Inf" in said[1]
        assert "misses" in said[2]
        assert "has shape (30000000,)" in said[3]
        assert lines[4]["lost"] == 1


def test_a_supernode_without_an_admitted_key_or_with_another_authority_stays_outside(tmp_path):
    with Running(tmp_path, 1, run__rounds=1) as run:
        other = tmp_path / "other"
        make_certificates(other, ["127.0.0.1"])
        make_client_keys(other, ["stranger"])
        keys = run.federation.home / "keys"
        server = f"127.0.0.1:{run.federation.link.port}"
        strangers = {
            "key": Place(server, keys / "ca.crt", other / "stranger"),
            "authority": Place(server, other / "ca.crt", keys / "0"),
            "nothing": Place(server, keys / "ca.crt", None),
        }
        for name, place in strangers.items():
            home = tmp_path / f"home-{name}"
            home.mkdir()
            command = supernode_command(place, 0, str(tmp_path / "none.sock"))
            child = Child(name, command, home / "log", flower_environment(home))
            deadline = time.monotonic() + 20.0
            while child.alive and time.monotonic() < deadline:
                time.sleep(0.2)
            child.stop()
            assert "SuperNode ID" not in (home / "log").read_text(), name
        run.submit()
        run.until_end()
        told = (run.directory.path / "events.jsonl").read_text()
        assert run.directory.metrics[0]["client_ids"] == [0], told


def test_ctrl_c_ends_everything_and_the_run_goes_on_later(tmp_path):
    out = tmp_path / "run"
    changes = small(run__rounds=4, clients__participation__value=1.0)
    command = [sys.executable, "-m", "fedtune", "deploy", "up"]
    first = subprocess.Popen(
        [*command, "quickstart", "--clients", "2", "--out", str(out), *arguments(changes)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    directory = fedtune.RunDirectory(out)
    deadline = time.monotonic() + 150.0
    while not directory.metrics and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    assert f"go on with: fedtune deploy up --resume {out}" in said
    assert processes_of(out) == []
    again = [*command, "--resume", str(out)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert [line["round"] for line in directory.metrics] == [1, 2, 3, 4]
    assert processes_of(out) == []


def test_killing_the_command_itself_leaves_no_process(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedtune", "deploy", "up", "quickstart", "--clients", "1"]
    first = psutil.Popen([*command, "--out", str(out), *arguments(small(run__rounds=50))])
    deadline = time.monotonic() + 120.0
    while not fedtune.RunDirectory(out).metrics and time.monotonic() < deadline:
        time.sleep(0.2)
    first.kill()
    first.wait()
    while processes_of(out) and time.monotonic() < deadline + 60.0:
        time.sleep(0.5)
    assert processes_of(out) == []


def test_a_supernode_with_trusted_entities_refuses_the_unsigned_bundle(tmp_path, monkeypatch):
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    form, encoding = serialization.PublicFormat.OpenSSH, serialization.Encoding.OpenSSH
    trusted = tmp_path / "trusted.yaml"
    trusted.write_text(f"fpk_someone: '{key.public_bytes(encoding, form).decode()}'\n")
    plain = processes.Child

    def child(name, command, log, environment):
        if name == "the SuperNode of client 1":
            command = [*command, "--trusted-entities", str(trusted)]
        return plain(name, command, log, environment)

    monkeypatch.setattr(processes, "Child", child)
    with Running(tmp_path, 2, run__rounds=1, deploy__round_timeout=60.0) as run:
        run.submit()
        run.until_end()
        line = run.directory.metrics[0]
        assert line["client_ids"] == [0]
        assert [(p["client"], p["kind"]) for p in line["problems"]] == [(1, "failed")]
        log = (run.federation.clients[1].home / "supernode.log").read_text()
        assert "could not be verified" in log
        assert "flwr-clientapp" not in log
