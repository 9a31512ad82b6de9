"""FLTrust in a run: the server's own update is that of a client with the server's rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedtune
from fedtune.apps.rounds import Train
from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.scenario import load_scenario
from tests.runs.kit import adapter_bytes, lines, small

OWN = {"strategy__rule": "fltrust", "task__server_examples": 60}


def test_the_servers_rows_are_of_no_client_and_the_same_share_of_all():
    federation = build(load_scenario("quickstart", small(task__server_examples=200)))
    task = federation.task
    held = np.concatenate([task.clients.rows(c) for c in task.clients.eligible])
    assert len(task.server_rows) == 200
    assert not set(task.server_rows) & set(held)
    assert len(set(task.server_rows) | set(held)) == len(task.train)
    plain = build(load_scenario("quickstart", small()))
    for client in task.clients.eligible:
        before, after = (len(f.task.clients.rows(client)) for f in (plain, federation))
        assert after == pytest.approx(before * (1 - 200 / len(task.train)), abs=25)


def test_the_update_is_fltrusts_formula_over_the_replies():
    federation = build(load_scenario("quickstart", small(**OWN, engine__precision="float64")))
    strategy, seen = federation.strategy, {}
    strategy.collect = lambda updates: seen.setdefault("updates", updates)
    state = start_state(federation, None)
    before = {name: t.clone() for name, t in state.arrays.items()}
    with federation.serving.serving():
        one_round(federation, state, 1)
    rows, root = seen["updates"].replies, seen["updates"].trusted
    cosine = torch.nn.functional.cosine_similarity(rows, root[None]).clamp_min(0)
    scaled = rows * (root.norm() / rows.norm(dim=1))[:, None]
    expected = (cosine[:, None] * scaled).sum(0) / cosine.sum()
    moved = torch.cat([(state.arrays[n] - before[n]).reshape(-1) for n in before])
    assert torch.allclose(moved, expected, rtol=1e-9, atol=1e-12)
    # the server's update is that of a client who holds its rows
    clients = federation.clients
    clients.rows = type("Own", (), {"rows": lambda self, client: federation.task.server_rows})()
    work = clients._work(-1, 1, Train(before))
    result = federation.engine.train([work], 1)[-1]
    alone = torch.cat([(result.tensors[n] - before[n]).reshape(-1) for n in before])
    assert torch.allclose(root, alone, rtol=1e-9, atol=1e-12)


def test_it_survives_what_the_mean_does_not_and_goes_on_bit_for_bit(tmp_path):
    """40 % of the clients send tenfold reversed updates; half of the run resumed."""
    changes = small(
        clients__count=10, clients__participation__value=1.0, run__rounds=6, local__lr=1e-2,
        attack__kind="sign-flip", attack__fraction=0.4, task__server_examples=100,
        local__steps=4, local__batch_size=8,
    )  # fmt: skip
    trusting = fedtune.run("quickstart", {**changes, "strategy.rule": "mean"}, tmp_path / "mean")
    changes["strategy.rule"] = "fltrust"
    whole = fedtune.run("quickstart", changes, tmp_path / "fltrust")
    final = [d.summary["final"]["accuracy"] for d in (trusting, whole)]
    assert final[1] > final[0] + 0.1
    for line in whole.metrics:
        assert line["malicious"] == 4
    fedtune.run("quickstart", {**changes, "run.rounds": 3}, tmp_path / "half")
    again = fedtune.resume(tmp_path / "half", {"run.rounds": 6})
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)


def test_an_adaptive_attacker_can_look_at_it(tmp_path):
    changes = small(**OWN, attack__kind="adaptive", attack__fraction=0.34, run__rounds=1)
    done = fedtune.run("quickstart", changes, tmp_path / "run")
    assert done.metrics[0]["clients"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task__server_examples": 0}, "set task.server_examples, e.g. to 100"),
        ({"task__server_examples": 5000}, "clients need some"),
        ({"task__head": "local"}, "no head like a client's own"),
        ({"task__data": "builtin:synthetic"}, "gives the server none"),
    ],
)
def test_what_it_needs(tmp_path, change, message):
    changes = {**OWN, "clients__partition": {"kind": "iid"}, **change}
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_search_with_local_heads_sees_no_row_of_the_final_test():
    changes = small(task__server_examples=60, task__head="local")
    final = build(load_scenario("quickstart", changes))
    search = build(load_scenario("quickstart", {**changes, "task.validation": 0.2}))
    tested = {int(r) for c in final.task.clients.eligible for r in final.clients.held_rows(c)}
    seen = {int(r) for c in search.task.clients.eligible for r in search.task.clients.rows(c)}
    assert tested
    assert not tested & seen
