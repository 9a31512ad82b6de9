"""Example-level privacy in whole runs: what leaves a client, what it spends, when it stops."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord

import fedtune
from fedtune.apps.opening import engine_gradients, private_gradients
from fedtune.apps.rounds import Gradient
from fedtune.errors import ClientFailure, ScenarioError
from fedtune.grids.arrays import records, to_tensors
from fedtune.privacy.accounting import Spent, epsilon
from fedtune.privacy.example import ExampleNoise
from fedtune.privacy.ledger import Ledger
from fedtune.privacy.streams import Streams
from fedtune.runs.build import build
from fedtune.runs.evaluating import ask_clients
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from fedtune.scenario.privacy import PrivacySection
from tests.runs.kit import adapter_bytes, lines, small

PRIVATE = {"privacy": {"mechanism": "example", "noise_multiplier": 1.0, "clip": 0.5,
                       "deterministic_randomness": True}}  # fmt: skip
SECRET = {"privacy": {"mechanism": "example", "noise_multiplier": 1.0, "clip": 0.5}}


def built(**changes):
    return build(settle_paths(load_scenario("quickstart", small(**changes))))


@pytest.mark.parametrize("strategy", ["fedavg", "ffa-lora", "fed-sb", "fedsvd", "fedex-lora",
                                      "rolora", "fedstale", "fedprox"])  # fmt: skip
def test_nothing_but_noised_tensors_leaves_a_client(strategy):
    """Every field of every reply, and every trained tensor moved by noise in the first step."""
    federation = built(**SECRET, strategy__name=strategy, clients__participation__value=1.0,
                       local__steps=1, local__optimizer="sgd", local__lr=1.0)  # fmt: skip
    layout = federation.adapted.layout
    replies = []
    send = federation.grid.send_and_receive
    federation.grid.send_and_receive = lambda m: [replies.append(r) or r for r in send(m)]
    with federation.serving.serving():
        state = start_state(federation, None)
        before = {s.name: state.arrays[s.name].clone() for s in layout.sent}
        line = one_round(federation, state, 1)
    assert len(replies) == len(federation.task.clients.eligible)
    for reply in replies:
        assert not reply.has_error()
        assert sorted(reply.content) == ["arrays", "metrics"]
        assert dict(records(reply.content, MetricRecord)[0]) == {"num-examples": 1}
        came = to_tensors(records(reply.content, ArrayRecord)[0])
        idle = ".lora_A." if strategy == "rolora" else "none"  # factors take turns
        assert set(came) == {spec.name for spec in layout.sent if idle not in spec.name}
        assert not [name for name, tensor in came.items() if torch.equal(tensor, before[name])]
    assert line["train"] == {}
    assert set(line["epsilon"]) == {str(c) for c in federation.task.clients.eligible}


def test_noise_on_the_wire_has_the_variance_that_is_charged():
    """One SGD step of rate 1: the reply less the clipped mean is noise of z·C / expected batch."""
    changes = {"local__steps": 1, "local__optimizer": "sgd", "local__lr": 1.0,
               "clients__participation__value": 1.0}  # fmt: skip
    privacy = {"mechanism": "example", "noise_multiplier": 50.0, "clip": 1e-3}
    federation = built(**changes, privacy=privacy)
    clients, budget = federation.clients, federation.clients.budget
    state = start_state(federation, None)
    start = federation.adapted.layout.flatten(state.arrays)
    drawn = {}
    for again in range(2):
        works = clients.works(federation.task.clients.eligible, 1 + again, state.arrays)
        for client, result in federation.engine.train(works, 1).items():
            terms = budget.terms(client, len(clients.training_rows(client)))
            expected = len(clients.training_rows(client)) * terms.sample_rate
            change = federation.adapted.layout.flatten(result.tensors) - start
            drawn[client, again] = change.double() * expected / (50.0 * 1e-3)
    for values in drawn.values():
        n = len(values)
        assert abs(float(values.std()) - 1.0) < 5 / math.sqrt(2 * n) + 1 / 50  # data: 1/z at most
    rows = torch.stack(list(drawn.values()))
    off = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(off.abs().max()) < 5 / math.sqrt(rows.shape[1]) + 1 / 50


def test_the_ledger_is_the_single_history_also_over_a_resume_and_a_new_run(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    privacy = {**PRIVATE["privacy"], "ledger": str(ledger), "delta": 1e-4}
    changes = small(privacy=privacy, run__rounds=3)
    fedtune.run("quickstart", changes, tmp_path / "first")
    again = fedtune.resume(tmp_path / "first", {"run.rounds": 5})
    other = {**changes, "run.seed": 7, "clients.partition": {"kind": "iid"}}
    second = fedtune.run("quickstart", other, tmp_path / "second")
    data = again.scenario.task.data
    for client, spent in second.summary["privacy"]["clients"].items():
        entries = Ledger(ledger).entries(int(client), data)
        history = [e.spent for e in entries]
        assert spent["epsilon"] == pytest.approx(epsilon(history, 1e-4), rel=1e-12)
        rounds = [e.round for e in entries]
        taken = sum(int(client) in line["client_ids"] for line in again.metrics + second.metrics)
        assert len(rounds) == taken
    spent = [line["epsilon"] for line in again.metrics]
    for client in spent[0]:
        values = [one[client] for one in spent]
        assert values == sorted(values)
    assert all(entry.steps == 2 for entry in Ledger(ledger).entries(0, data))


def test_a_round_that_is_repeated_is_charged_again(tmp_path):
    federation = built(**PRIVATE, clients__participation__value=1.0)
    with federation.serving.serving():
        for _ in range(2):
            one_round(federation, start_state(federation, None), 1)
    budget = federation.clients.budget
    assert [e.round for e in budget.ledger.entries(0, budget.data)] == [1, 1]


def test_the_charge_is_on_disk_before_the_reply_leaves(tmp_path):
    federation = build(settle_paths(load_scenario("quickstart", small(**PRIVATE))), folder=tmp_path)
    seen = []
    clients, reply = federation.clients, federation.clients.reply
    clients.reply = lambda *given: (
        seen.append((tmp_path / "ledger.jsonl").read_text()) or reply(*given)
    )
    with federation.serving.serving():
        one_round(federation, start_state(federation, None), 1)
    assert len(seen) == 3
    assert all(len(text.splitlines()) == 3 for text in seen)


def test_a_client_without_budget_takes_no_part_and_the_run_goes_on(tmp_path):
    changes = small(privacy={"mechanism": "example", "epsilon": 4.0, "delta": 1e-4,
                             "max_participations": 2, "deterministic_randomness": True},
                    clients__participation__value=1.0, run__rounds=4)  # fmt: skip
    run = fedtune.run("quickstart", changes, tmp_path / "run")
    assert [line["clients"] for line in run.metrics] == [6, 6, 0, 0]
    assert [line["failures"] for line in run.metrics] == [0, 0, 6, 6]
    assert all("its privacy budget is spent" in problem["reason"]
               for line in run.metrics[2:] for problem in line["problems"])  # fmt: skip
    assert all(3.9 < spent <= 4.0 for spent in run.metrics[-1]["epsilon"].values())
    assert run.metrics[1]["eval"] == run.metrics[3]["eval"]
    counted = small(**SECRET, clients__participation__value=1.0)
    counted["privacy"] = {**SECRET["privacy"], "max_participations": 1}
    other = fedtune.run("quickstart", counted, tmp_path / "counted")
    assert [line["clients"] for line in other.metrics] == [6, 0]


def test_epsilon_is_reached_by_the_participations_that_plan_shows(tmp_path):
    changes = small(privacy={"mechanism": "example", "epsilon": 3.0}, run__rounds=40)
    found = fedtune.plan("quickstart", changes).privacy
    assert found["participations"] == [30.0, 30.0]  # 20 expected, 3 · sqrt(40 / 4) more
    assert 2.99 < found["epsilon"][0] <= found["epsilon"][1] <= 3.0
    assert found["delta"] == [1e-5]
    federation = built(privacy={"mechanism": "example", "epsilon": 3.0}, run__rounds=40)
    budget, clients = federation.clients.budget, federation.clients
    terms = budget.terms(0, len(clients.training_rows(0)))
    whole = Spent(terms.noise_multiplier, terms.sample_rate, terms.steps * 30)
    assert epsilon([whole], 1e-5) <= 3.0


def test_equal_seeds_give_equal_runs_only_where_randomness_is_deterministic(tmp_path):
    runs = [fedtune.run("quickstart", small(**PRIVATE), tmp_path / name) for name in "ab"]
    assert lines(runs[0]) == lines(runs[1])
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])
    secret = [fedtune.run("quickstart", small(**SECRET), tmp_path / name) for name in "cd"]
    assert adapter_bytes(secret[0]) != adapter_bytes(secret[1])
    assert secret[0].summary["privacy"]["secret"]
    assert not runs[0].summary["privacy"]["secret"]


def test_a_resumed_private_run_goes_on_bit_for_bit(tmp_path):
    changes = small(**PRIVATE, run__rounds=3)
    whole = fedtune.run("quickstart", changes, tmp_path / "whole")
    fedtune.run("quickstart", {**changes, "run.rounds": 2}, tmp_path / "part")
    again = fedtune.resume(tmp_path / "part", {"run.rounds": 3})
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert [line["epsilon"] for line in again.metrics] == [
        line["epsilon"] for line in whole.metrics
    ]


def test_engines_agree(tmp_path):
    changes = small(**PRIVATE, engine__precision="float64")
    losses = []
    for kind in ("cohort", "sequential"):
        run = fedtune.run("quickstart", {**changes, "engine.kind": kind}, tmp_path / kind)
        losses.append([line["eval"]["loss"] for line in run.metrics])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_an_error_quotes_no_data(monkeypatch):
    federation = built(**SECRET)

    def broken(data, rows):
        raise ValueError("label 'Jane Doe' of row 7")

    monkeypatch.setattr(type(federation.engine.setting.data), "gather", broken)
    with federation.serving.serving(), pytest.raises(ClientFailure) as caught:
        one_round(federation, start_state(federation, None), 1)
    assert "Jane" not in str(caught.value)
    assert "ValueError" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)  # stays with the client
    budget = federation.clients.budget
    assert len(budget.ledger.clients(budget.data)) == 3  # that it failed is told, and charged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy__epsilon": 3.0}, "needs epsilon or noise_multiplier, and not both"),
        ({"privacy__noise_multiplier": -1.0}, "privacy.noise_multiplier = -1"),
        ({"privacy__delta": 0.02}, r"privacy.delta = 0.02: client \d+ holds"),
        ({"strategy__name": "rerce"}, "gradients without noise"),
        ({"strategy__name": "scaffold"}, "gradients without noise"),
        ({"strategy__name": "frl"}, "a vote is no sum"),
        ({"task__head": "local"}, "task.head = 'local'"),
        ({"local__clip": 1.0}, "local.clip = 1.0"),
        ({"local__early_stopping": {}}, "watches the data"),
        ({"local__group_by_length": True}, "Poisson samples"),
        ({"clients__weights": "reported"}, "numbers of examples are private"),
        ({"strategy__name": "fed-sb", "adapter__init": "pooled"}, "adapter.init"),
        ({"privacy__clip": math.inf}, "clip = inf"),
    ],
)
def test_what_noise_does_not_cover_is_refused_in_a_line(tmp_path, changes, message):
    privacy = {
        "privacy.mechanism": "example",
        "privacy.noise_multiplier": 1.0,
        "privacy.delta": 1e-4,
    }
    given = {**small(**changes)}
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", {**privacy, **given}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scaffold_with_plain_sgd_and_adaptive_server_parts_stay_allowed(tmp_path):
    changes = small(**SECRET, strategy__name="scaffold", local__optimizer="sgd", local__lr=0.1)
    assert len(fedtune.run("quickstart", changes, tmp_path / "a").metrics) == 2
    robust = small(**SECRET, strategy__rule="median", strategy__server_optimizer="momentum")
    assert len(fedtune.run("quickstart", robust, tmp_path / "b").metrics) == 2


def test_public_counts_are_reported_and_weigh(tmp_path):
    changes = small(**SECRET)
    changes["privacy"] = {**SECRET["privacy"], "public_counts": True}
    federation = build(settle_paths(load_scenario("quickstart", changes)))
    with federation.serving.serving():
        one_round(federation, start_state(federation, None), 1)
    found = federation.strategy.report
    sizes = [len(federation.clients.training_rows(c)) for c in found.used]
    assert list(found.examples.values()) == sizes
    assert found.coefficients == pytest.approx([size / sum(sizes) for size in sizes])


@pytest.mark.parametrize("init", ["client-sketch", "client-dense"])
def test_what_fed_sb_asks_before_round_1_is_noised_and_charged_once(tmp_path, init):
    privacy = {"mechanism": "example", "epsilon": 3.0, "delta": 1e-4, "opening_share": 0.3}
    changes = small(privacy=privacy, strategy__name="fed-sb", adapter__init=init,
                    adapter__init_examples=30, clients__participation__value=1.0)  # fmt: skip
    run = fedtune.run("quickstart", changes, tmp_path / "run")
    ledger, data = Ledger(run.path / "ledger.jsonl"), run.scenario.task.data
    for client in ledger.clients(data):
        first, *rounds = ledger.entries(client, data)
        assert (first.round, first.steps) == (0, 1)
        assert [entry.round for entry in rounds] == [1, 2]
        assert 0.85 < epsilon([first.spent], 1e-4) <= 0.9
        total = epsilon([entry.spent for entry in [first, *rounds]], 1e-4)
        assert total == pytest.approx(run.metrics[-1]["epsilon"][str(client)], rel=1e-12)
        assert 2.97 < total <= 3.0
    assert "with noise" in run.summary["opening"]["revealed"]


def test_the_private_first_gradient_is_clipped_by_example():
    federation = built(strategy__name="fed-sb", adapter__init="client-dense",
                       engine__precision="float64")  # fmt: skip
    engine, rows = federation.engine, federation.clients.training_rows(0)[:9]
    whole = ExampleNoise(math.inf, 0.0, 1.0, len(rows), Streams(0), (0, 0))
    mean, found = engine_gradients(engine, rows), private_gradients(engine, rows, whole)
    for name, gradient in mean.items():
        assert torch.allclose(found[name], gradient, rtol=1e-10, atol=1e-14)
    bound = ExampleNoise(1e-3, 0.0, 1.0, 1.0, Streams(0), (0, 0))
    for count in (1, 4):
        few = private_gradients(engine, rows[:count], bound)
        norm = torch.stack([g.norm() for g in few.values()]).norm()
        assert float(norm) <= count * 1e-3 * (1 + 1e-9)
    noise = ExampleNoise(1e-3, 1e6, 1.0, 1.0, Streams(0), (0, 0))
    noisy = torch.cat([g.reshape(-1) for g in private_gradients(engine, rows[:2], noise).values()])
    assert float(noisy.std()) == pytest.approx(1e3, rel=0.02)


def test_a_private_client_tells_no_metric_and_no_gradient_whoever_asks():
    federation = built(**SECRET)
    strategy, state = federation.strategy, start_state(federation, None)
    strategy.fraction_evaluate = 1.0
    with federation.serving.serving(), pytest.raises(ClientFailure, match="failed on private data"):
        ask_clients(federation, state.arrays, 1)
    with pytest.raises(PermissionError, match="no gradient without noise"):
        federation.clients._work(0, 1, Gradient(state.arrays))


def test_a_run_without_privacy_says_nothing_of_it():
    """So that cells of comparisons that were trained before are found again."""
    assert settle_paths(load_scenario("quickstart")).privacy == PrivacySection()
    lengthened = settle_paths(load_scenario("quickstart", small(**SECRET)))
    assert lengthened.privacy.rounds == 2


def test_plan_says_how_many_clients_have_nothing_left(tmp_path):
    privacy = {"mechanism": "example", "epsilon": 4.0, "delta": 1e-4, "max_participations": 2}
    changes = small(privacy={**privacy, "ledger": str(tmp_path / "ledger.jsonl")},
                    clients__participation__value=1.0)  # fmt: skip
    fedtune.run("quickstart", changes, tmp_path / "run")
    notes = fedtune.plan("quickstart", changes).notes
    assert "privacy: 6 clients have no budget left for a round on this data" in notes


def test_two_runs_on_one_ledger_cannot_both_spend_the_last_round(tmp_path):
    privacy = {"mechanism": "example", "epsilon": 4.0, "delta": 1e-4, "max_participations": 1,
               "ledger": str(tmp_path / "ledger.jsonl")}  # fmt: skip
    changes = small(privacy=privacy, clients__participation__value=1.0)
    one, other = (build(settle_paths(load_scenario("quickstart", changes))) for _ in range(2))
    asked = [(c, len(one.clients.training_rows(c)), 1) for c in one.task.clients.eligible]
    found = [[], []]
    threads = [
        threading.Thread(target=lambda b=b, f=f: f.append(b.clients.budget.reserve(asked)))
        for b, f in zip((one, other), found, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(f[0]) for f in found) == [0, 6]
