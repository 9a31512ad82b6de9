"""The round loop, once: sample, train, aggregate, evaluate, write, checkpoint.

Flower's `Strategy.start` knows no first round but 1; this loop calls the same hooks in the same
order and can take up a run at any round.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from flwr.app import ConfigRecord, MessageType
from torch import Tensor

from fedtune.apps.budget import Budget
from fedtune.apps.opening import OPENING, REVEALED
from fedtune.apps.user_budget import UserBudget
from fedtune.cohort.plan import out_of_patience, planned_steps
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.grids.replies import RoundReport
from fedtune.runs.build import Federation
from fedtune.runs.checkpoints import Checkpoint, save_checkpoint
from fedtune.runs.directory import RunDirectory
from fedtune.runs.evaluating import evaluate
from fedtune.runs.observing import Line, Observer, Started


@dataclass
class ServerState:
    """What goes from round to round on the server.

    Attributes:
        round: the last finished one.
        arrays: the global tensors that are sent.
        initial: the evaluation before round 1.
    """

    round: int
    arrays: dict[str, Tensor]
    initial: dict[str, float] | None = None


def start_state(federation: Federation, found: Checkpoint | None) -> ServerState:
    """The state before round 1, or that of a checkpoint."""
    setting = federation.engine.setting
    if found is None:
        arrays = {
            s.name: federation.adapted.initial[s.name].to(setting.device, setting.master)
            for s in setting.layout.received
        }
        return ServerState(0, arrays)
    federation.strategy.load_state_dict(found.groups["strategy"])
    federation.store.load_state_dict(found.groups["clients"])
    if federation.faults is not None:
        federation.faults.load_state_dict(found.groups["faults"])
    stored = found.groups["server"]  # in the order of names; rules know that of the layout
    arrays = {s.name: stored[s.name].to(setting.device) for s in setting.layout.received}
    return ServerState(found.round, arrays, found.initial)


def run_rounds(
    federation: Federation, state: ServerState, directory: RunDirectory, observer: Observer
) -> ServerState:
    """Run the rounds that are left; each is on disk before the next begins."""
    section = federation.scenario.run
    with federation.serving.serving():
        if state.initial is None:
            open_run(federation, state, directory)
            state.initial = evaluate(federation, state.arrays, 0)
        observer.started(to_started(federation, state))
        if stops_early(federation, directory):
            return state
        for server_round in range(state.round + 1, section.rounds + 1):
            line = one_round(federation, state, server_round)
            directory.add_metrics(line)
            last = server_round == section.rounds or stops_early(federation, directory)
            if last or server_round % section.checkpoint_every == 0:
                save_checkpoint(directory.checkpoints, to_checkpoint(federation, state))
            observer.finished_round(line)
            if last:
                break
    return state


def open_run(federation: Federation, state: ServerState, directory: RunDirectory) -> None:
    """What comes before round 1, its bytes and what it told of clients written down."""
    strategy, grid = federation.strategy, federation.grid
    if strategy.opening is None:
        return
    started = time.perf_counter()
    state.arrays = to_tensors(strategy.prepare(to_record(state.arrays), grid))
    down, up = grid.take(OPENING)
    noised = federation.clients.budget is not None and strategy.opening.gradient is None
    directory.write_opening(
        {
            "source": strategy.opening.source,
            "revealed": REVEALED[strategy.opening.source]
            + (", with noise, from the ledger" if noised else ""),
            "clients": strategy.opening.clients,
            "answered": strategy.opening.answered,
            "examples": strategy.opening.examples,
            "step": strategy.opening.size,
            "bytes_down": down.payload,
            "bytes_up": up.payload,
            "framing_down": down.framing,
            "framing_up": up.framing,
            "seconds": time.perf_counter() - started,
        }
    )


def to_started(federation: Federation, state: ServerState) -> Started:
    """What is known of a run before its first round."""
    scenario, resolved = federation.scenario, federation.engine.resolved
    return Started(
        strategy=federation.strategy.name,
        adapter=scenario.adapter.kind,
        clients=len(federation.task.clients.eligible),
        parameters=federation.adapted.layout.width,
        engine=engine_name(federation),
        device=resolved.device,
        notes=federation.notes,
        rounds=scenario.run.rounds,
        first_round=state.round + 1,
        initial=dict(state.initial or {}),
    )


def engine_name(federation: Federation) -> str:
    """`flower`, or the backend that trains in this process."""
    kind = federation.scenario.engine.kind
    return kind if kind == "flower" else federation.engine.resolved.backend


def one_round(federation: Federation, state: ServerState, server_round: int) -> Line:
    """Train, aggregate and evaluate; gives the round's line of metrics.jsonl."""
    started = time.perf_counter()
    strategy, grid, section = federation.strategy, federation.grid, federation.scenario.run
    budget = federation.budget
    if isinstance(budget, UserBudget):
        budget.reserve(server_round)
    messages = strategy.configure_train(server_round, to_record(state.arrays), ConfigRecord(), grid)
    messages = list(messages)
    sent = time.perf_counter()
    replies = list(grid.send_and_receive(messages))
    received = time.perf_counter()
    arrays, train = strategy.aggregate_train(server_round, replies)
    trained = time.perf_counter() - started
    if arrays is not None:
        state.arrays = to_tensors(arrays)
    state.round = server_round
    look = server_round % section.eval_every == 0 or server_round == section.rounds
    found = evaluate(federation, state.arrays, server_round) if look else None
    down, up = grid.take(MessageType.TRAIN)
    report = strategy.report
    problems = [("failed", report.failed), ("rejected", report.rejected)]
    line = {
        "round": server_round,
        "eval": found,
        "train": dict(train) if train and report.used else {},
        "clients": len(report.used),
        "client_ids": report.used,
        "malicious": len(set(report.used) & set(federation.adversary.malicious)),
        "coefficients": report.coefficients,
        "rule": report.notes,
        **report.counts,
        "problems": [
            {"client": client, "kind": kind, "reason": reason}
            for kind, members in problems
            for client, reason in sorted(members.items())
        ],
        "bytes_down": down.payload,
        "bytes_up": up.payload,
        "framing_down": down.framing,
        "framing_up": up.framing,
        "seconds": time.perf_counter() - started,
        "seconds_train": trained,
        "seconds_clients": received - sent,
        "seconds_server": trained - (received - sent),
        "client_steps": _steps_of(federation, report),
    }
    return line if budget is None else _private_line(line, budget)


def _steps_of(federation: Federation, report: RoundReport) -> int:
    """Optimiser steps of a round's clients: those that they tell, else those that were planned.

    Private clients do not say what they hold, and do what was planned.
    """
    local, clients, told = federation.scenario.local, federation.clients, report.steps
    if clients.budget is not None:
        return sum(planned_steps(len(clients.training_rows(c)), local) for c in report.examples)
    return sum(told.get(c, planned_steps(int(n), local)) for c, n in report.examples.items())


def _private_line(line: Line, budget: Budget | UserBudget) -> Line:
    """A round's line with ε so far; under user-level privacy without what tells of single clients.

    The mean of the clients' losses and the numbers of a rule are of their data, and got no noise.
    """
    if isinstance(budget, Budget):
        return {**line, "epsilon": {str(c): e for c, e in budget.spent().items()}}
    hidden = {"client_ids", "coefficients", "train", "client_steps"}
    told = {name: value for name, value in line.items() if name not in hidden}
    problems = [{**problem, "client": None, "reason": ""} for problem in line["problems"]]
    return {**told, "train": {}, "problems": problems, "epsilon": budget.spent()}


def stops_early(federation: Federation, directory: RunDirectory) -> bool:
    """Whether the evaluation loss has run out of patience."""
    rule = federation.scenario.run.early_stopping
    if rule is None:
        return False
    losses = [math.inf if (loss := e["loss"]) is None else loss for _, e in directory.looks]
    return out_of_patience(losses, rule)


def to_checkpoint(federation: Federation, state: ServerState) -> Checkpoint:
    """The state as a checkpoint."""
    groups = {
        "server": state.arrays,
        "strategy": federation.strategy.state_dict(),
        "clients": federation.store.state_dict(),
        "faults": federation.faults.state_dict() if federation.faults else {},
    }
    return Checkpoint(state.round, groups, state.initial)
