"""What comes before round 1, from a scenario."""

from __future__ import annotations

import numpy as np

from fedtune.adapters.layout import Tensors
from fedtune.apps.clients import CohortClients
from fedtune.apps.opening import engine_gradients, some_rows
from fedtune.apps.server_data import SERVER
from fedtune.cohort.base_gradient import base_shapes
from fedtune.cohort.plan import planned_steps
from fedtune.errors import Incompatible
from fedtune.participation import Participation
from fedtune.runs.participations import scheduled_rounds, shares_of_rounds
from fedtune.runs.strategies import finds_frame
from fedtune.scenario import Scenario
from fedtune.server.frame import Opening
from fedtune.tasks.load import Task

WARMUP_SHARE, LOOKED_AT = 0.02, 100


def make_opening(
    scenario: Scenario,
    clients: CohortClients,
    task: Task,
    in_process: bool,
    taking_part: Participation,
) -> Opening | None:
    """How the frame of kind `lora-sb` is found; None where there is nothing to find.

    Args:
        in_process: whether the clients are in this process, so that their data can be pooled.
        taking_part: who takes part in the rounds.

    Raises:
        ScenarioError: if the source needs what is not there.
    """
    section, seed = scenario.adapter, scenario.run.seed
    if not finds_frame(scenario):
        return None
    if section.init == "public" and not len(task.server_rows):
        raise Incompatible(
            "adapter.init = 'public': needs data of the server's own; set task.server_examples, "
            "e.g. to 100"
        )
    if section.init == "pooled" and not in_process:
        raise Incompatible(
            "adapter.init = 'pooled': pools the clients' data, which a simulation in one process "
            "can; allowed: client-sketch, client-dense, public, random"
        )
    opening = Opening(
        section.init,
        base_shapes(clients.engine.setting.adapted.model),
        _step(scenario, clients, taking_part)
        if section.init_step == "auto"
        else float(section.init_step),
        section.init_examples,
        seed,
    )
    if section.init == "public":
        opening.gradient = lambda: engine_gradients(clients.engine, task.server_rows)
        opening.examples = len(task.server_rows)
    elif section.init == "pooled":
        opening.gradient = lambda: _pooled(scenario, clients, task)
        opening.clients = list(task.clients.eligible)
    return opening


def _pooled(scenario: Scenario, clients: CohortClients, task: Task) -> Tensors:
    eligible = task.clients.eligible
    rows = np.concatenate([clients.training_rows(client) for client in eligible])
    most = scenario.adapter.init_examples * len(eligible)
    return engine_gradients(clients.engine, some_rows(rows, most, scenario.run.seed, SERVER))


def _step(scenario: Scenario, clients: CohortClients, taking_part: Participation) -> float:
    """The learning rate of the first step, if 2 % of all of a client's steps were a warm-up.

    Of the rounds, those count in which it takes part; clients that never do are left out.
    """
    local, rounds, eligible = scenario.local, scheduled_rounds(scenario), clients.rows.eligible
    share = shares_of_rounds(taking_part, eligible, rounds)
    some = [client for client in eligible if share[client] > 0][:LOOKED_AT]
    steps = [share[c] * planned_steps(len(clients.training_rows(c)), local) for c in some]
    return local.lr / max(1.0, WARMUP_SHARE * rounds * float(np.mean(steps or [0.0])))
