"""A deployment gives a simulation's result; clients refuse, come late, come back."""

from __future__ import annotations

import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import fedtune
from fedtune.deploy.ledger import OWNER, OwnLedger
from fedtune.deploy.runs import KEPT, opened
from fedtune.errors import RunError, ScenarioError
from fedtune.files import write_json
from fedtune.grids.compat import content_from_bytes, message_from_bytes
from fedtune.grids.deployed_grid import DeployedGrid
from fedtune.grids.directory import Directory
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.ledger import Entry, Ledger
from fedtune.scenario.deploy import DeploySection
from tests.deploy.kit import deployment
from tests.runs.kit import small

DOUBLE = {"engine__precision": "float64"}


def adapter_of(directory) -> dict[str, torch.Tensor]:
    """The tensors of a run's result: an adapter, or a whole model."""
    file = directory.adapter / "adapter_model.safetensors"
    return load_file(file if file.exists() else directory.model / "model.safetensors")


def apart(one, other) -> float:
    """Relative distance of all tensors of two adapters together."""
    a, b = (torch.cat([t.double().flatten() for t in found.values()]) for found in (one, other))
    return float((a - b).norm() / b.norm())


def simulated_run(tmp_path, **changes):
    """The same on the cohort engine."""
    given = small(**{"clients__count": 3, "clients__participation__value": 1.0, **changes})
    return fedtune.run("quickstart", given, tmp_path / "simulated", pictures=False)


@pytest.mark.parametrize(
    "method",
    [
        {"strategy__name": "fedavg", "run__rounds": 3},
        {"strategy__name": "fed-sb", "run__rounds": 2, "adapter__init_examples": 4},
        {"strategy__name": "fedex-lora", "run__rounds": 3},
        {"strategy__name": "scaffold", "run__rounds": 3, "task__train_examples": 240},
    ],
    ids=lambda method: method["strategy__name"],
)
def test_the_same_partitions_give_the_cohort_engines_result(tmp_path, method):
    deployed = deployment(tmp_path, **method, **DOUBLE).run(tmp_path / "deployed")
    simulated = simulated_run(tmp_path, **method, **DOUBLE)
    assert apart(adapter_of(deployed), adapter_of(simulated)) <= 1e-6
    for one, other in zip(deployed.metrics, simulated.metrics, strict=True):
        assert one["client_ids"] == other["client_ids"]
        assert one["eval"]["loss"] == pytest.approx(other["eval"]["loss"], rel=1e-9)
        assert (one["bytes_up"], one["bytes_down"]) == (other["bytes_up"], other["bytes_down"])


def test_a_client_that_is_away_is_lost_for_the_round_and_comes_back(tmp_path):
    everyone = {"run__rounds": 4, "deploy__join_timeout": 0.0}
    made = deployment(
        tmp_path, strategy__name="fed-sb", adapter__init="random", **everyone, **DOUBLE
    )
    plain, sent = made.inner.push_messages, []

    def push(messages):
        pushed = list(messages)
        rounds = {int(str(m.content["config"]["server-round"])) for m in pushed}
        sent.append((rounds, len(pushed)))
        made.inner.away = frozenset({made.nodes[2]} if rounds & {1, 2} else {})
        return plain(pushed)

    made.inner.push_messages = push
    made.inner.away = frozenset({made.nodes[2]})  # joins late: in round 3, once it is seen
    run = made.run(tmp_path / "run")
    assert [line["clients"] for line in run.metrics] == [2, 2, 2, 3]
    assert [line["lost"] for line in run.metrics] == [1, 1, 1, 0]
    told = [facts for event, facts in made.events if event == "connected"]
    assert told[0]["clients"] == [0, 1]
    assert told[-1]["came"] == [2]


def test_a_returning_client_without_its_store_is_sent_everything_again(tmp_path):
    everyone = {"run__rounds": 4}
    made = deployment(tmp_path, strategy__name="fedex-lora", **everyone, **DOUBLE)
    trainer = made.clients.trainers[1]
    plain = trainer.answer

    def answer(header, body):
        message = message_from_bytes(body)
        if int(str(message.content["config"]["server-round"])) == 3:
            shutil.rmtree(trainer.settings.store, ignore_errors=True)
        return plain(header, body)

    trainer.answer = answer
    run = made.run(tmp_path / "run")
    kinds = [[(p["client"], p["kind"]) for p in line["problems"]] for line in run.metrics]
    assert kinds == [[], [], [(1, "failed")], []]
    assert run.metrics[3]["clients"] == 3


def test_with_too_few_clients_the_server_waits_and_says_so(tmp_path, monkeypatch):
    everyone = {"run__rounds": 1}
    made = deployment(tmp_path, deploy__min_clients=3, deploy__join_timeout=0.0, **everyone)
    made.inner.away = frozenset({made.nodes[0]})
    plain = made.tell

    def tell(event, **facts):
        plain(event, **facts)
        if event == "waiting":
            made.inner.away = frozenset()

    made.tell = tell
    run = made.run(tmp_path / "run")
    assert ("waiting", {"connected": [1, 2], "needed": 3}) in made.events
    assert run.metrics[0]["clients"] == 3


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_the_first_round_waits_as_long_as_it_may(seconds):
    """For all clients; then it goes on with those that came."""
    inner = SimpleNamespace(get_node_ids=lambda: [70])
    section = DeploySection(join_timeout=seconds)
    grid = DeployedGrid(inner, {0: 70, 1: 71}, section, lambda *said, **facts: None)
    started = time.monotonic()
    assert grid.directory.clients == [0, 1]
    waited = time.monotonic() - started
    assert seconds <= waited < seconds + 1.0
    inner.get_node_ids = lambda: [70, 71]
    started = time.monotonic()
    assert DeployedGrid(inner, {0: 70, 1: 71}, section, grid.tell).directory.clients == [0, 1]
    assert time.monotonic() - started < 0.5


def test_a_client_that_never_answers_is_lost_when_time_is_up(tmp_path):
    made = deployment(tmp_path, run__rounds=1, deploy__round_timeout=0.5)
    plain = made.inner.pull_messages
    silent = made.nodes[1]
    made.inner.pull_messages = lambda ids: [
        reply for reply in plain(ids) if reply.metadata.src_node_id != silent
    ]
    run = made.run(tmp_path / "run")
    assert (run.metrics[0]["clients"], run.metrics[0]["lost"]) == (2, 1)
    assert ("lost", {"clients": [1], "silent": [1]}) in made.events


@pytest.mark.parametrize("method", ["fedavg", "fedex-lora"])
def test_a_run_taken_up_by_another_server_equals_an_undisturbed_one(tmp_path, method):
    rounds = {"strategy__name": method, **DOUBLE}
    whole = deployment(tmp_path / "a", run__rounds=4, **rounds).run(tmp_path / "a" / "run")
    first = deployment(tmp_path / "b", run__rounds=2, **rounds)
    first.run(tmp_path / "b" / "run")
    again = deployment(
        tmp_path / "b", run__rounds=2, **rounds
    )  # new nodes, the clients' own stores
    again.nodes = {client: node + 100 for client, node in again.nodes.items()}
    again.inner._directory = Directory(again.nodes)
    resumed = again.resume(tmp_path / "b" / "run", **{"run.rounds": 4})
    assert apart(adapter_of(resumed), adapter_of(whole)) == 0.0
    assert [line["round"] for line in resumed.metrics] == [1, 2, 3, 4]


def test_a_private_client_is_protected_alike_when_deployed(tmp_path):
    private = {"mechanism": "example", "noise_multiplier": 1.0, "delta": 1e-5,
               "deterministic_randomness": True}  # fmt: skip
    changes = {"privacy": private, "run__rounds": 2, **DOUBLE}
    made = deployment(tmp_path, **changes)
    deployed = made.run(tmp_path / "deployed")
    simulated = simulated_run(tmp_path, **changes)
    assert apart(adapter_of(deployed), adapter_of(simulated)) <= 1e-6
    for body in made.clients.bodies:  # a constant in place of a count, and the noised tensors
        content = content_from_bytes(body)
        assert set(content) == {"arrays", "metrics"}
        assert dict(content["metrics"]) == {"num-examples": 1}
    for client, spent in simulated.metrics[-1]["epsilon"].items():
        ledger = Ledger(tmp_path / f"store-{client}" / "ledger.jsonl")
        history = [entry.spent for entry in ledger.entries(OWNER, "builtin:digits")]
        assert epsilon(history, 1e-5) == pytest.approx(spent, rel=1e-12)


def test_all_ids_of_an_owner_spend_one_budget(tmp_path):
    for client in (3, 5):
        OwnLedger(tmp_path / "l").charge([Entry(client, "d", "run", 1, 1.0, 0.1, 2)])
    assert len(OwnLedger(tmp_path / "l").entries(7, "d")) == 2


def test_messages_end_with_their_round_and_a_list_that_flower_does_not_take_is_told(tmp_path):
    everyone = {"run__rounds": 2}
    made = deployment(tmp_path, deploy__round_timeout=77.0, **everyone)
    plain, seen = made.inner.push_messages, []

    def push(messages):
        pushed = list(messages)
        seen.append({message.metadata.ttl for message in pushed})
        return (
            [] if len(seen) == 1 else plain(pushed)
        )  # as Flower's grid does where one is too large

    made.inner.push_messages = push
    run = made.run(tmp_path / "run")
    assert seen == [{77.0}, {77.0}]
    assert [line["clients"] for line in run.metrics] == [0, 3]
    assert ("not taken", {"clients": [0, 1, 2]}) in made.events


def test_a_deployment_can_be_told_to_stop_at_the_first_failure(tmp_path):
    own = {2: {"accepts": {"adapters": ["ffa"]}}}
    made = deployment(tmp_path, own, faults__on_error="raise")
    made.clients.trainers[2]._built = None  # raises where it is called
    own[2].clear()
    made.clients.trainers[2].settings.accepts.adapters = None
    with pytest.raises(RunError, match="client 2 failed"):
        made.run(tmp_path / "run")


def test_a_length_that_cannot_be_changes_nothing(tmp_path):
    deployment(tmp_path, run__rounds=2).run(tmp_path / "run")
    write_json(tmp_path / "run" / "deployment" / KEPT, {"federation": "ab" * 16})
    before = (tmp_path / "run" / "scenario.toml").read_bytes()
    for change in ("run.rounds=1", "local.lr=0.5"):
        with pytest.raises(ScenarioError):
            opened(tmp_path / "run", [change])
    assert (tmp_path / "run" / "scenario.toml").read_bytes() == before
    assert opened(tmp_path / "run", ["run.rounds=4"])[0].scenario.run.rounds == 4
