"""FRL in whole runs: votes, malformed votes, resume, export, other engines, and its attackers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import fedtune
from fedtune.adapters import ranked
from fedtune.adversaries.ranks import RankAttackGrid, ReverseRanks, Vulnerable
from fedtune.errors import ScenarioError
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.runs.build import build
from fedtune.runs.checkpoints import load_checkpoint
from fedtune.runs.export import load_model
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from tests.runs.kit import adapter_bytes, lines, small

FRL = {"strategy__name": "frl", "local__lr": 0.05}
WIDE = {"clients__count": 10, "clients__participation__value": 1.0}


def federation(**changes):
    return build(settle_paths(load_scenario("quickstart", small(**FRL, **changes))))


def test_a_round_is_the_vote_of_what_clients_send():
    made = federation(**WIDE)
    state, seen = start_state(made, None), []
    combine = made.strategy.combine
    made.strategy.combine = lambda replies: seen.extend(replies) or combine(replies)
    before = {name: t.clone() for name, t in state.arrays.items()}
    with made.serving.serving():
        one_round(made, state, 1)
    ranked_names = [s.name for s in made.adapted.layout.sent if s.ternary is not None]
    assert ranked_names
    for name in ranked_names:
        size = before[name].numel()
        sums = np.zeros(size, dtype=np.int64)
        for reply in seen:
            ranking = ranked.unpack(reply[name], size, ranked.bits_of(size)).numpy()
            position = np.empty(size, dtype=np.int64)
            position[ranking] = np.arange(size)
            sums += position
        expected = np.argsort(sums, kind="stable")
        np.testing.assert_array_equal(ranked.ranking_of(state.arrays[name]).numpy(), expected)
        assert torch.equal(
            state.arrays[name].flatten().sort().values, before[name].flatten().sort().values
        )


def test_a_run_goes_on_bit_for_bit_and_its_result_is_a_plain_adapter(tmp_path):
    whole = fedtune.run("quickstart", small(**FRL, run__rounds=4), tmp_path / "whole")
    fedtune.run("quickstart", small(**FRL), tmp_path / "half")
    again = fedtune.resume(tmp_path / "half", {"run.rounds": 4})
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)
    tensors = load_file(whole.adapter / "adapter_model.safetensors")
    scenario = whole.scenario
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            values = set(tensor.unique().tolist())
            constant = float(np.float32(scenario.adapter.constant))
            assert values <= {-constant, 0.0, constant}
            assert tensor.dim() == 2
    model = load_model(whole)
    made = build(scenario)
    batch = made.task.test.gather(torch.arange(64))
    with torch.no_grad():
        right = model(**batch.inputs).logits.argmax(-1) == batch.labels
    found = made.engine
    assert found.resolved.backend == "cohort"
    assert 0 <= float(right.float().mean()) <= 1


def test_bytes_are_those_of_packed_rankings_as_planned(tmp_path):
    done = fedtune.run("quickstart", small(**FRL, task__head="frozen"), tmp_path / "run")
    made = federation(task__head="frozen")
    one = sum(-(-s.size * ranked.bits_of(s.size) // 8) for s in made.adapted.layout.sent)
    for line in done.metrics:
        assert line["bytes_up"] == line["bytes_down"] == one * line["clients"]
    planned = fedtune.plan("quickstart", small(**FRL, task__head="frozen"))
    assert planned.run_bytes_up == sum(line["bytes_up"] for line in done.metrics)
    assert planned.bytes_up == done.metrics[0]["bytes_up"]
    assert planned.framing_up == done.metrics[0]["framing_up"]


@pytest.mark.parametrize(
    "options",
    [
        {"adapter__form": "signed"},
        {"adapter__by_magnitude": True},
        {"strategy__upload": 0.25},
        {"adapter__form": "signed", "strategy__upload": 0.1, "attack__kind": "vem"},
    ],
    ids=["signed", "by_magnitude", "sparse", "sparse attacked"],
)
def test_variants_run_as_planned_and_start_from_the_base(tmp_path, options):
    done = fedtune.run("quickstart", small(**FRL, **options), tmp_path / "run")
    plain = fedtune.run("quickstart", small(), tmp_path / "plain")
    assert done.summary["initial"] == pytest.approx(plain.summary["initial"])
    assert [line["rejected"] for line in done.metrics] == [0, 0]
    planned = fedtune.plan("quickstart", small(**FRL, **options))
    assert planned.run_bytes_up == sum(line["bytes_up"] for line in done.metrics)
    assert planned.run_bytes_down == sum(line["bytes_down"] for line in done.metrics)
    less = options.get("strategy__upload", 1.0) < 1.0
    assert (done.metrics[0]["bytes_up"] < done.metrics[0]["bytes_down"]) == less
    model, batch = load_model(done), build(done.scenario).task.test.gather(torch.arange(64))
    with torch.no_grad():
        logits = model(**batch.inputs).logits
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("break_it", ["twice", "beyond", "short"])
def test_a_vote_that_is_no_permutation_is_set_aside(break_it):
    made = federation(**WIDE)
    strategy, state = made.strategy, start_state(made, None)
    with made.serving.serving():
        messages = list(
            strategy.configure_train(1, to_record(state.arrays), ConfigRecord(), made.grid)
        )
        replies = list(made.grid.send_and_receive(messages))
        name = next(s.name for s in made.adapted.layout.sent if s.ternary is not None)
        tensors = to_tensors(next(iter(replies[2].content.array_records.values())))
        size = state.arrays[name].numel()
        ranking = ranked.unpack(tensors[name], size, ranked.bits_of(size))
        if break_it == "twice":
            ranking[0] = ranking[1]
        packed = ranked.pack(ranking, ranked.bits_of(size))
        if break_it == "beyond":
            packed = torch.full_like(packed, 255)
        if break_it == "short":
            packed = packed[:-1]
        replies[2].content["arrays"] = ArrayRecord(
            {n: _array(t) for n, t in {**tensors, name: packed}.items()}
        )
        strategy.aggregate_train(1, replies)
    (reason,) = strategy.report.rejected.values()
    assert name in reason
    assert {"twice": "permutation", "beyond": "permutation", "short": "shape"}[break_it] in reason
    assert len(strategy.report.used) == 9


def _array(tensor):
    return next(iter(to_record({"x": tensor}).values()))


def rows(seed, n=9, d=40, agreement=3.0):
    """Rankings of clients that agree more or less."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(size=d)
    return torch.from_numpy(
        np.stack([np.argsort(agreement * shared + draw.normal(size=d)) for _ in range(n)])
    )


def chosen(rankings, keep=10):
    return set(ranked.vote(rankings)[-keep:].tolist())


@pytest.mark.parametrize("attack", [ReverseRanks(), Vulnerable()])
def test_attacks_send_permutations(attack):
    sent = attack(rows(0), 10, 3)
    assert ranked.is_permutation(sent)


def test_reversal_is_the_vote_backwards():
    known = rows(1)
    assert torch.equal(ReverseRanks()(known, 10, 2).flip(0), ranked.vote(known))


def test_where_clients_agree_the_border_is_what_two_of_nine_can_move():
    """Reversal spends itself on edges that are out of reach; the vulnerable ones change sides."""
    moved = {"vem": 0, "reverse": 0}
    for seed in range(20):
        honest = rows(seed, agreement=2.0)
        before = chosen(honest)
        for name, attack in (("vem", Vulnerable()), ("reverse", ReverseRanks())):
            sent = attack(honest, 10, 2)
            after = chosen(torch.cat([honest, sent.expand(2, -1)]))
            moved[name] += len(before - after)
    assert moved["vem"] > 1.5 * max(moved["reverse"], 1)


@pytest.mark.parametrize("kind", ["reverse-ranks", "vem"])
@pytest.mark.parametrize("knowledge", ["all", "own"])
def test_an_attacked_run_counts_its_malicious_voters(tmp_path, kind, knowledge):
    attack = {"attack__kind": kind, "attack__fraction": 0.3, "attack__knowledge": knowledge}
    done = fedtune.run("quickstart", small(**FRL, **WIDE, **attack), tmp_path / "run")
    calm = fedtune.run("quickstart", small(**FRL, **WIDE), tmp_path / "calm")
    assert [line["malicious"] for line in done.metrics] == [3, 3]
    assert [line["rejected"] for line in done.metrics] == [0, 0]
    assert adapter_bytes(done) != adapter_bytes(calm)


def test_the_attack_grid_changes_malicious_rankings_only():
    made = federation(**WIDE, attack__kind="reverse-ranks", attack__fraction=0.2)
    assert isinstance(made.grid.inner, RankAttackGrid)
    state, seen = start_state(made, None), []
    combine = made.strategy.combine
    made.strategy.combine = lambda replies: seen.extend(replies) or combine(replies)
    plain = federation(**WIDE)
    other, honest = start_state(plain, None), []
    vote = plain.strategy.combine
    plain.strategy.combine = lambda replies: honest.extend(replies) or vote(replies)
    for one, where in ((made, state), (plain, other)):
        with one.serving.serving():
            one_round(one, where, 1)
    changed = [
        k for k in range(10) if any(not torch.equal(seen[k][n], honest[k][n]) for n in seen[k])
    ]
    assert changed == made.adversary.malicious


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attack__kind": "sign-flip"},
            "allowed: label-flip, cat-map, backdoor, reverse-ranks, vem",
        ),
        ({"strategy__name": "fedavg", "attack__kind": "vem"}, "acts on rankings"),
        ({"strategy__name": "fedavg", "strategy__rule": "vote"}, "counts rankings"),
        ({"strategy__rule": "fltrust", "task__server_examples": 50}, "sends votes"),
        ({"local__client_momentum": 0.5}, "which have no momentum"),
        ({"adapter__kind": "lora"}, "needs one of: rank"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, change, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", small(**{**FRL, **change}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


TRAINED = {"adapter.kind": "none", "adapter.form": "antithetic"}
SCRATCH = {"local.epochs": None, "local.steps": 4, "clients.count": 6, "engine.threads": 1}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """FRL from random weights, as its authors have it."""
    path = tmp_path_factory.mktemp("scratch") / "run"
    return fedtune.run("frl-from-scratch", {**SCRATCH, "run.rounds": 4}, path)


def test_from_random_weights_the_result_is_a_model_with_the_runs_own_logits(scratch):
    model = AutoModelForImageClassification.from_pretrained(scratch.path / "model").eval()
    made = build(scratch.scenario, scratch.read_partition())
    state = start_state(made, load_checkpoint(scratch.checkpoints))
    batch = made.task.test.gather(torch.arange(50))
    own = made.engine.backend.logits(state.arrays, batch.inputs)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch.inputs).logits, own, atol=1e-5, rtol=1e-5)
    assert not (scratch.path / "adapter").exists()
    assert isinstance(load_model(scratch), type(model))
    assert scratch.summary["final"]["accuracy"] > 1.5 * scratch.summary["initial"]["accuracy"]


def test_from_random_weights_half_of_each_layer_is_kept_and_no_weight_changes(scratch):
    saved = load_file(scratch.path / "model" / "model.safetensors")
    for name, weight in saved.items():
        constants = ranked.signed_constants(name, tuple(weight.shape), 0)
        kept = weight != 0
        assert int(kept.sum()) == weight.numel() // 2
        assert torch.equal(weight[kept], constants[kept])


def test_from_random_weights_a_resumed_run_is_the_same(scratch, tmp_path):
    shutil.copytree(scratch.path, tmp_path / "cut")
    for file in (tmp_path / "cut" / "checkpoints").glob("round-000004*"):
        file.unlink()
    again = fedtune.resume(tmp_path / "cut")
    assert lines(again) == lines(scratch)
    file = "model/model.safetensors"
    assert (again.path / file).read_bytes() == (scratch.path / file).read_bytes()


def test_the_same_network_is_trained_as_it_is_by_fedavg_from_the_same_weights(tmp_path):
    """One client, one step of SGD: every weight moves along its gradient."""
    changes = {**SCRATCH, **TRAINED, "strategy.name": "fedavg", "run.rounds": 1, "local.lr": 0.1,
               "clients.count": 1, "clients.participation.value": 1.0, "local.steps": 1,
               "local.batch_size": 2000, "local.schedule": "constant", "local.momentum": 0.0,
               "local.round_schedule": "constant", "local.weight_decay": 0.0}  # fmt: skip
    done = fedtune.run("frl-from-scratch", changes, tmp_path / "run")
    saved = load_file(done.path / "model" / "model.safetensors")
    made = build(done.scenario, done.read_partition())
    constants = {n: ranked.signed_constants(n, tuple(w.shape), 0) for n, w in saved.items()}
    batch = made.task.train.gather(torch.as_tensor(made.clients.training_rows(0)))
    model = type(load_model(done))(load_model(done).config)
    model.load_state_dict(constants)
    model.to(memory_format=torch.channels_last)  # equal numbers in a pool: the layout says which
    torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(saved[name], weight.data - 0.1 * weight.grad)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task.base": "builtin:vit-letters"}, "'mask': is for task.base"),
        ({"adapter.form": "signed"}, "has nothing to adapt; allowed: adapter.form = 'mask'"),
        ({"task.head": "local"}, "are voted on, or trained"),
        ({"strategy.name": "fedavg", **TRAINED, "adapter.keep": 0.3}, "adapter.keep = 0.3: of no"),
        ({"strategy.name": "fedavg", "adapter.kind": "rank"}, "needs one of"),
        ({"strategy.name": "fedavg"}, "is of kind 'rank', not 'lora'"),
    ],
)
def test_a_mask_of_anything_else_is_refused(changes, said):
    with pytest.raises(ScenarioError, match=said):
        fedtune.plan("frl-from-scratch", changes)


def test_clients_with_heads_of_their_own_vote_too(tmp_path):
    """Evaluation is on scores, not on ballots."""
    done = fedtune.run("quickstart", small(**FRL, task__head="local"), tmp_path / "run")
    assert all(line["failures"] == line["rejected"] == 0 for line in done.metrics)
    assert 0 < done.summary["final"]["accuracy"] <= 1
