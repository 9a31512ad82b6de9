"""FedEx-LoRA: nothing is lost, every base is the same, and the result is a plain LoRA adapter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

import fedtune
from fedtune.adapters.layout import BASE
from fedtune.apps.held import base_of
from fedtune.apps.store import FileStore, MemoryStore
from fedtune.errors import ScenarioError
from fedtune.grids.arrays import records, to_tensors
from fedtune.participation import Participation
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from fedtune.tasks.library import Library
from strategies import FedExLoRA
from tests.runs.kit import adapter_bytes, lines, small
from tests.strategies.kit import Federation

A, B = "m.layer.lora_A.weight", "m.layer.lora_B.weight"
W = "m.layer" + BASE
ROWS, COLUMNS, RANK = 70, 50, 2
SIZES = [30, 10, 20, 40, 5]


def model():
    draw = np.random.default_rng(0)
    return {
        A: torch.from_numpy(draw.normal(size=(RANK, COLUMNS))),
        B: torch.from_numpy(draw.normal(size=(ROWS, RANK))),
    }


class Clients:
    """Clients that keep their base, each in a store of its own, and draw their updates."""

    def __init__(self, stores=None):
        self.stores = stores or {k: MemoryStore() for k in range(len(SIZES))}
        self.bases, self.sent, self.numbers = {}, {}, {}

    def into(self, made):
        self.made = made
        made.clients.answer = self
        return made

    def __call__(self, client, came):
        message = dict(self.made.clients.received)[client]
        arrays = {n: t for one in records(message.content, type(message.content["arrays"]))
                  for n, t in to_tensors(one).items()}  # fmt: skip
        extra = {n: t for n, t in arrays.items() if n not in (A, B)}
        self.numbers[client] = sum(t.numel() for t in extra.values())
        zero = {W: torch.zeros(ROWS, COLUMNS, dtype=torch.float64)}
        config = message.content["config"]
        self.bases[client] = base_of(self.stores[client], extra, config, zero)
        draw = np.random.default_rng(100 * self.made.round + client)
        self.sent[client] = {
            n: came[n] + torch.from_numpy(draw.normal(size=tuple(came[n].shape))) for n in (A, B)
        }
        return self.sent[client]


def federation(strategy, clients, count=3):
    return clients.into(Federation(strategy, model(), None, count, SIZES))


def effective(found):
    return found[B] @ found[A] + found.get(W, 0.0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_after_every_round_the_whole_is_the_mean_of_the_wholes(count):
    """W' + B̄Ā = W + Σ p_k B_k A_k, over rounds, with unequal weights, for K = 1, 2, 5."""
    clients = Clients()
    made = federation(FedExLoRA(), clients, count)
    p = np.asarray(SIZES[:count]) / sum(SIZES[:count])
    for _ in range(4):
        base = made.model.get(W, torch.zeros(ROWS, COLUMNS, dtype=torch.float64))
        new = made.go()
        wanted = base + sum(
            w * one[B] @ one[A] for w, one in zip(p, clients.sent.values(), strict=False)
        )
        torch.testing.assert_close(effective(new), wanted, atol=1e-10, rtol=1e-10)


def test_every_clients_base_is_the_servers_to_the_bit_also_after_missed_rounds():
    trace = {1: (0, 1, 2), 2: (0, 1), 3: (1, 2), 4: (0, 2), 5: (0, 1, 2), 6: (2,), 7: (0, 1, 2)}
    strategy = FedExLoRA(clients_remember=True, participation=Participation("trace", trace=trace))
    clients = Clients()
    made = federation(strategy, clients)
    for number in trace:
        before = made.model.get(W)
        made.go()
        for client in trace[number]:
            if before is not None:
                assert torch.equal(clients.bases[client][W], before), (number, client)


def test_traffic_is_the_cards_formula_and_never_more_than_the_dense_change():
    strategy = FedExLoRA(clients_remember=True)
    clients = Clients()
    made = federation(strategy, clients)
    for number in range(12):
        made.go()
        expected = (len(clients.sent) - 1) * RANK * (ROWS + COLUMNS) if number else 0
        assert set(clients.numbers.values()) == {expected}
    late = FedExLoRA()  # clients that remember nothing need the whole way, or the whole
    clients = Clients({k: _Forgetting() for k in range(3)})
    made = federation(late, clients)
    for number in range(12):
        made.go()
        assert set(clients.numbers.values()) == {
            min(number * 2 * RANK * (ROWS + COLUMNS), ROWS * COLUMNS)
        }
        if number:
            assert torch.equal(clients.bases[0][W], clients.bases[2][W])


class _Forgetting(MemoryStore):
    def recall(self, group, digest):
        return None


def test_a_restarted_server_and_clients_with_files_go_on_to_the_bit(tmp_path):
    def stores(name):
        return {k: FileStore(tmp_path / name / str(k), 1) for k in range(3)}

    whole = federation(FedExLoRA(clients_remember=True), Clients(stores("a")))
    for _ in range(3):
        whole.go()
    again = FedExLoRA(clients_remember=True)
    again.load_state_dict(whole.strategy.state_dict())
    clients = Clients(stores("a"))
    taken = federation(again, clients)
    taken.model, taken.round = whole.model, whole.round
    taken.go()
    assert set(clients.numbers.values()) == {2 * RANK * (ROWS + COLUMNS)}
    whole.go()
    for name in whole.model:
        assert torch.equal(whole.model[name], taken.model[name])


def test_a_truncated_residual_says_what_it_leaves_out():
    made = federation(FedExLoRA(residual_rank=1), Clients())
    exact = federation(FedExLoRA(), Clients())
    new, wanted = made.go(), exact.go()
    error = float((new[W] - wanted[W]).norm() / wanted[W].norm())
    assert made.strategy.report.notes["residual_error"] == pytest.approx(error)
    assert torch.linalg.matrix_rank(new[W]) == 1


@pytest.mark.parametrize(
    "option",
    [
        {"strategy.rule": "median"},
        {"strategy.pre": ["nnm"]},
        {"strategy.server_optimizer": "adam"},
        {"adapter.kind": "ffa"},
        {"faults.noise_down": 0.1},
        {"engine.precision": "bfloat16"},
    ],
)
def test_what_does_not_go_with_a_residual_is_refused(option):
    with pytest.raises(ScenarioError):
        fedtune.plan("quickstart", small(strategy__name="fedex-lora", **option))


def test_a_run_with_one_client_is_fedit_with_one_client(tmp_path):
    options = {"clients__count": 1, "clients__partition": {"kind": "iid"}, "run__rounds": 3}
    runs = [
        fedtune.run("quickstart", small(strategy__name=name, **options), tmp_path / name)
        for name in ("fedex-lora", "fedavg")
    ]
    assert [x["eval"] for x in lines(runs[0])] == [x["eval"] for x in lines(runs[1])]
    a, b = (adapter_bytes(run)["adapter_model.safetensors"] for run in runs)
    assert a == b


def test_both_engines_and_a_resumed_run_agree(tmp_path):
    options = small(strategy__name="fedex-lora", engine__precision="float64", run__rounds=4)
    whole = fedtune.run("quickstart", options, tmp_path / "a")
    apart = fedtune.run("quickstart", {**options, "engine.kind": "sequential"}, tmp_path / "b")
    for a, b in zip(whole.metrics, apart.metrics, strict=True):
        assert abs(a["eval"]["loss"] - b["eval"]["loss"]) <= 1e-6
        assert a["bytes_down"] == b["bytes_down"]
    fedtune.run("quickstart", {**options, "run.rounds": 2}, tmp_path / "c")
    again = fedtune.resume(tmp_path / "c", {"run.rounds": 4})
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)


def test_a_moved_base_stays_with_its_run():
    """Runs of a process share the base's weights; another run must not find them moved."""
    library = Library()

    def made(name):
        options = small(strategy__name=name, run__rounds=2)
        return build(settle_paths(load_scenario("quickstart", options)), library=library)

    first = made("fedavg")
    rows = torch.arange(8)
    start = {n: t.clone() for n, t in first.adapted.initial.items()}
    before = first.engine.backend.logits(start, first.task.test.gather(rows).inputs)
    moving = made("fedex-lora")
    state = start_state(moving, None)
    with moving.serving.serving():
        for number in (1, 2):
            one_round(moving, state, number)
    moved = moving.engine.backend.logits(state.arrays, moving.task.test.gather(rows).inputs)
    assert not torch.equal(moved, before)
    after = made("fedavg")
    again = after.engine.backend.logits(start, after.task.test.gather(rows).inputs)
    assert torch.equal(again, before)


def test_evaluation_sends_the_base_of_now_to_whoever_was_absent():
    """Once the whole change is smaller than the residuals, also to clients that held an old one."""
    trace = dict.fromkeys(range(1, 40), (0, 1)) | {40: (0, 1, 2)}
    strategy = FedExLoRA(
        clients_remember=True, participation=Participation("trace", trace=trace),
        fraction_evaluate=1.0,
    )  # fmt: skip
    clients = Clients()
    made = federation(strategy, clients)
    for _ in range(39):
        made.go()
    assert strategy.residuals._whole
    with made.grid.serving():
        arrays = ArrayRecord(made.model)
        messages = list(strategy.configure_evaluate(39, arrays, ConfigRecord(), made.grid))
    zero = {W: torch.zeros(ROWS, COLUMNS, dtype=torch.float64)}
    for client, message in enumerate(messages):
        sent = {n: t for one in records(message.content, ArrayRecord)
                for n, t in to_tensors(one).items()}  # fmt: skip
        found = base_of(clients.stores[client], sent, message.content["config"], zero)
        assert torch.equal(found[W], made.model[W]), client
    before = made.model[W]
    made.go()
    assert torch.equal(clients.bases[2][W], before)


def test_a_client_that_failed_is_sent_everything_again():
    strategy = FedExLoRA(clients_remember=True)
    made = federation(strategy, Clients())
    for _ in range(3):
        made.go()
    assert len(strategy.residuals.record(1, made.model, True)[1]["base/versions"]) == 2
    strategy.lost_touch([1])
    assert len(strategy.residuals.record(1, made.model, True)[1]["base/versions"]) == 4
