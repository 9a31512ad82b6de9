"""RERCE-Fed on least squares, solved exactly: against ADMM with duals, and what stays constant."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import fedtune
from fedtune.apps.rounds import ClientView, Train
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.plan import ClientResult, full_work
from fedtune.cohort.together import CohortBackend
from fedtune.errors import ScenarioError
from fedtune.grids.arrays import to_tensors
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.participation import Participation
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.scenario import load_scenario
from strategies import ADMM, RERCE
from strategies.admm import admm_round
from strategies.rerce import rerce_round
from tests.cohort import kit
from tests.runs.kit import small

N, P, ROWS, RHO = 7, 5, 6, 0.8
LAYOUT = SimpleNamespace(
    trained=(SimpleNamespace(name="x"),), sent=(SimpleNamespace(name="x"),), kept=()
)


class LeastSquares:
    """Clients that solve their jobs exactly: f_k(x) = ½‖y_k - H_k x‖²."""

    def __init__(self, seed=0, method=rerce_round):
        self.method = method
        draw = np.random.default_rng(seed)
        self.h, self.y = draw.normal(size=(N, ROWS, P)), draw.normal(size=(N, ROWS))
        self.b = [np.linalg.inv(h.T @ h + RHO * np.eye(P)) for h in self.h]
        self.kept: dict[int, dict] = {k: {} for k in range(N)}
        self.solved = 0

    def do(self, k, job):
        x = job.state["x"].numpy()
        if not isinstance(job, Train):
            return {"x": torch.from_numpy(self.h[k].T @ (self.h[k] @ x - self.y[k]))}
        pull = job.pull
        linear = 0.0 if pull.linear is None else pull.linear["x"].numpy()
        right = self.h[k].T @ self.y[k] - linear + pull.strength * pull.anchor["x"].numpy()
        self.solved += 1
        return ClientResult(k, {"x": torch.from_numpy(self.b[k] @ right)}, 0.0, 1, ROWS)

    def round(self, k, number, s, config):
        zero = {"x": torch.zeros(P, dtype=torch.float64)}
        view = ClientView(k, number, {"x": s}, {}, self.kept[k], config, LAYOUT, zero, None)
        going, result = self.method(view), None
        while True:
            try:
                result = self.do(k, going.send(result))
            except StopIteration as end:
                return end.value.sent["x"]

    def handle(self, messages):
        replies = []
        for client, message in messages:
            config = message.content["config"]
            s = to_tensors(message.content["arrays"])["x"]
            sent = self.round(client, int(config["server-round"]), s, config)
            content = RecordDict(
                {"arrays": ArrayRecord({"x": sent}), "metrics": MetricRecord({"num-examples": 1})}
            )
            replies.append(Message(content, reply_to=message))
        return replies

    def iterates(self):
        return np.stack([self.kept[k]["rerce/x/x"].numpy() for k in range(N)])

    @property
    def best(self):
        return np.linalg.lstsq(self.h.reshape(-1, P), self.y.reshape(-1), rcond=None)[0]


def run(clients, rounds, fraction=1.0, strategy=RERCE, **parameters):
    """The global model and the broadcast of each round."""
    strategy = strategy(rho=RHO, participation=Participation("fraction", fraction, 3), **parameters)
    grid = CohortGrid(clients, range(N))
    model, models, broadcasts = torch.zeros(P, dtype=torch.float64), [], []
    for number in range(1, rounds + 1):
        with grid.serving():
            messages = strategy.configure_train(
                number, ArrayRecord({"x": model}), ConfigRecord(), grid
            )
            messages = list(messages)
            broadcasts.append(to_tensors(messages[0].content["arrays"])["x"].numpy())
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        model = to_tensors(arrays)["x"]
        models.append(model.numpy())
    return np.stack(models), np.stack(broadcasts), strategy


def admm(problem, rounds):
    """Consensus ADMM with duals: x, then the mean, then u; from x̄ = 0 and u = 0."""
    z, u = np.zeros(P), np.zeros((N, P))
    means = []
    for _ in range(rounds):
        right = np.einsum("krp,kr->kp", problem.h, problem.y) + RHO * (z - u)
        x = np.stack([b @ r for b, r in zip(problem.b, right, strict=True)])
        z = (x + u).mean(0)
        u = u + x - z
        means.append(x.mean(0))
    return np.stack(means), x


def test_without_noise_and_with_all_clients_it_is_admm_with_duals():
    clients = LeastSquares()
    models, _, _ = run(clients, 12)
    expected, iterates = admm(clients, 12)
    np.testing.assert_allclose(models, expected, atol=1e-12)
    np.testing.assert_allclose(clients.iterates(), iterates, atol=1e-12)


def test_strategy_admm_is_admm_with_duals():
    clients = LeastSquares(method=admm_round)
    models, _, _ = run(clients, 12, strategy=ADMM)
    expected, iterates = admm(clients, 12)
    np.testing.assert_allclose(models, expected, atol=1e-12)
    found = np.stack([clients.kept[k]["admm/x/x"].numpy() for k in range(N)])
    np.testing.assert_allclose(found, iterates, atol=1e-12)


def test_it_converges_to_the_solution_of_all_data():
    clients = LeastSquares()
    models, _, _ = run(clients, 800)
    np.testing.assert_allclose(models[-1], clients.best, atol=1e-9)


def test_what_stays_constant_without_noise():
    """Σ_k B_k⁻¹ x_k⁺ - N ρ x̄ = Σ_k H_kᵀ y_k in every round."""
    expected = np.einsum("krp,kr->p", LeastSquares().h, LeastSquares().y)
    for rounds in (1, 2, 5, 11):
        clients = LeastSquares()
        models, _, _ = run(clients, rounds)
        before = models[-2] if rounds > 1 else np.zeros(P)
        x = clients.iterates()
        found = sum(np.linalg.solve(b, x_k) for b, x_k in zip(clients.b, x, strict=True))
        np.testing.assert_allclose(found - N * RHO * before, expected, atol=1e-10)


def test_with_all_clients_continual_updates_change_nothing():
    base, continual = LeastSquares(), LeastSquares()
    _, broadcasts, _ = run(base, 10)
    _, others, _ = run(continual, 10, continual=True)
    np.testing.assert_allclose(others, broadcasts, atol=1e-12)
    np.testing.assert_allclose(continual.iterates(), base.iterates(), atol=1e-12)


def test_continual_updates_are_those_of_clients_that_iterate_every_round():
    """An independent program in which everyone iterates each round with what it holds."""
    clients = LeastSquares()
    _, broadcasts, strategy = run(clients, 9, fraction=0.4, continual=True)
    x = np.stack([b @ h.T @ y for b, h, y in zip(clients.b, clients.h, clients.y, strict=True)])
    held, sent, met = np.zeros((N, P)), np.zeros((N, P)), np.zeros(N, dtype=bool)
    for number in range(1, 10):
        np.testing.assert_allclose(broadcasts[number - 1], sent.mean(0), atol=1e-12)
        taking_part = strategy.participation.draw(range(N), number)
        held[taking_part], met[taking_part] = broadcasts[number - 1], True
        before = np.zeros((N, P)) if number == 1 else x.copy()
        if number > 1:
            moved = [
                x_k + RHO * b @ (s - x_k) for x_k, b, s in zip(x, clients.b, held, strict=True)
            ]
            x = np.where(met[:, None], np.stack(moved), x)
        sent[taking_part] = (2 * x - before)[taking_part]
    for k in strategy.participation.draw(range(N), 9):
        np.testing.assert_allclose(clients.iterates()[k], x[k], atol=1e-12)


def test_a_planted_bug_is_found(monkeypatch):
    """Broadcasting the mean alone, without the difference that stands for the duals."""
    monkeypatch.setattr(RERCE, "broadcast", lambda self, arrays: arrays)
    clients = LeastSquares()
    models, _, _ = run(clients, 12)
    assert not np.allclose(models, admm(clients, 12)[0], atol=1e-6)


@pytest.mark.parametrize("continual", [False, True])
def test_its_state_is_taken_up_again(continual):
    whole, _, _ = run(LeastSquares(), 8, 0.5, continual=continual)
    clients = LeastSquares()
    models, _, before = run(clients, 4, 0.5, continual=continual)
    strategy = RERCE(rho=RHO, continual=continual, participation=before.participation)
    strategy.load_state_dict({n: t.clone() for n, t in before.state_dict().items()})
    grid, model = CohortGrid(clients, range(N)), torch.from_numpy(models[-1])
    for number in range(5, 9):
        with grid.serving():
            arrays = ArrayRecord({"x": model})
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        model = to_tensors(arrays)["x"]
        np.testing.assert_array_equal(model.numpy(), whole[number - 1])


def test_a_round_of_nobody_is_survived_and_checkpointed(tmp_path):
    trace = tmp_path / "lost.csv"
    trace.write_text("round,client\n" + "".join(f"2,{client}\n" for client in range(6)))
    changes = small(strategy__name="rerce", run__rounds=3, faults__trace=str(trace))
    done = fedtune.run("quickstart", changes, tmp_path / "run")
    assert [line["clients"] for line in done.metrics] == [3, 0, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local__client_momentum": 0.5}, "local.client_momentum = 0.5: .*allowed: 0.0"),
        ({"local__weight_decay": 0.1}, "local.weight_decay = 0.1"),
        ({"strategy__server_optimizer": "adam"}, "strategy.server_optimizer = 'adam'"),
        ({"clients__weights": "reported"}, "allowed: auto, uniform"),
        ({"task__head": "local"}, "task.head = 'local': .*allowed: shared, frozen"),
        ({"strategy__rho": -1.0}, "strategy.rho = -1.0: input should be greater than 0"),
        ({"strategy__rho": "high"}, "strategy.rho = 'high': input should be a valid number"),
        ({"strategy__continual": "no"}, "strategy.continual = 'no': input should be a valid bool"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, change, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", small(strategy__name="rerce", **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clients_gradients_have_no_dropout():
    """The linear term is that of the loss itself, the same at each look."""
    setting = kit.setting(dropout=0.5)
    rows = np.arange(20)
    work = full_work(0, rows, kit.stirred(setting), 6)
    for backend in (CohortBackend(setting), SequentialBackend(kit.setting(dropout=0.5))):
        found = backend.gradient([work])
        plain = kit.setting(dropout=0.0)
        expected = SequentialBackend(plain).gradient([work])
        assert kit.distance(found, expected) < 1e-10


def test_a_longer_first_answer_is_nearer_to_its_minimum():
    """Of ½‖y - Hx‖² + (ρ/2)‖x - x⁰‖², by runs of ten gradient steps."""
    found = []
    for first in (1, 4, 40):
        made = build(
            load_scenario(
                "rerce",
                {"clients.count": 3, "clients.examples": 40, "task.features": 8, "local.steps": 10,
                 "local.lr": 0.1, "local.momentum": 0.0, "strategy.first": first,
                 "local.batch_size": 40, "faults.noise_up": 0.0, "faults.noise_down": 0.0,
                 "clients.participation.value": 0.34},
            )
        )  # fmt: skip
        state = start_state(made, None)
        with made.serving.serving():
            one_round(made, state, 1)
        (client,) = made.strategy.report.used
        rows = torch.from_numpy(made.clients.training_rows(client))
        h, y = made.task.train.inputs["x"][rows], made.task.train.targets[rows]
        best = torch.linalg.solve(h.T @ h / 40 + 0.3 * torch.eye(8).double(), h.T @ y / 40)
        (x,) = state.arrays.values()
        found.append(float((x[0] - best).norm()))
    assert found[0] > 10 * found[1] > 10 * found[2]
    assert found[2] < 1e-9
