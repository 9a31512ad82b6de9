"""What the strategies share: seeded sampling, a check of every reply, one rule on differences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedtune.adapters.layout import R
from fedtune.grids.arrays import read, records, to_record, to_tensors
from fedtune.grids.directory import Directory
from fedtune.grids.replies import RoundReport, sift
from fedtune.participation import Participation
from fedtune.privacy.user import UserMechanism
from fedtune.rules import (
    Aggregate,
    PreAggregator,
    Rule,
    ServerOptimizer,
    Updates,
    aggregated,
    make_pre,
    make_rule,
    make_server_optimizer,
)
from fedtune.rules.flat import applied, are_finite, difference, differences
from fedtune.rules.mean import Mean
from fedtune.rules.weights import policy_weights
from fedtune.server.downlink import Downlink
from fedtune.server.frame import Opening
from fedtune.server.messages import Messenger, mean_metrics, metrics_of, steps_told
from fedtune.server.state import restore, state_of

PARTS = ("rule", "server_optimizer", "downlink", "mechanism")
ALSO = "also"


class AdapterStrategy(Messenger):
    """FedAvg on differences, with clients drawn from (seed, round) and malformed replies set aside.

    Takes every argument of Flower's FedAvg by keyword, and:

    Args:
        participation: who takes part; by default `fraction_train` of the clients under `seed`.
        seed: of the sampling.
        rule: the aggregation rule, or its name.
        pre: what is done to the updates before it, in this order; objects or names.
        server_optimizer: what is made of the aggregated update, or its name.
        f: malicious clients of a round that rules and pre-aggregators given by name expect.
        weights: `uniform`, `reported` (by `weighted_by_key`) or `capped`, heeded by the mean only;
            `auto` is the strategy's own.
        max_weight: the most that counts under `capped`.
        clients_remember: whether clients keep the factors that they are sent, as fedtune's do; an
            unchanged one is then left out of the messages to those that hold it.
    """

    def __init__(
        self,
        *,
        participation: Participation | None = None,
        seed: int = 0,
        rule: str | Rule = "mean",
        pre: Sequence[str | PreAggregator] = (),
        server_optimizer: str | ServerOptimizer | None = None,
        f: int = 0,
        weights: str = "auto",
        max_weight: float = 1000,
        clients_remember: bool = False,
        **flower: Any,
    ) -> None:
        super().__init__(**flower)
        if flower.get("train_metrics_aggr_fn") is None:
            self.train_metrics_aggr_fn = mean_metrics
        self.participation = participation or Participation("fraction", self.fraction_train, seed)
        self.rule = make_rule(rule, f) if isinstance(rule, str) else rule
        self.pre = [make_pre(part, f) if isinstance(part, str) else part for part in pre]
        self.server_optimizer = (
            make_server_optimizer(server_optimizer)
            if isinstance(server_optimizer, str)
            else server_optimizer
        )
        self.weights = self.auto_weights if weights == "auto" else weights
        self.max_weight = max_weight
        self.report = RoundReport()
        self._directory = Directory({})
        self._round = 0
        self._asked: dict[int, Message] = {}
        self.root: Callable[[dict[str, Tensor], int, frozenset[str]], dict[str, Tensor]] | None = (
            None
        )
        self._trusted: tuple[int, Tensor] | None = None
        self.downlink = Downlink(clients_remember)
        self.opening: Opening | None = None
        self.mechanism: UserMechanism | None = None
        self._model: dict[str, Tensor] = {}
        self._sent: dict[str, Tensor] = {}
        self._averaged: dict[str, Tensor] = {}
        self._expected: dict[str, Tensor] = {}

    @property
    def policy(self) -> str:
        """What the model moves by: `weights` where the mean alone heeds them, else `uniform`."""
        heeded = isinstance(self.rule, Mean) and not self.pre and self.mechanism is None
        return self.weights if heeded else "uniform"

    def prepare(self, arrays: ArrayRecord, grid: Grid) -> ArrayRecord:
        """What comes before round 1: the frame of LoRA-SB, where one is to be found."""
        if self.opening is None:
            return arrays
        if self.opening.gradient is None:
            self.opening.choose(self._wait_for_clients(grid).clients, self.participation)
        return to_record(self.opening.settle(to_tensors(arrays), grid))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the round's participants; each has its own records over shared arrays."""
        if self.fraction_train == 0.0:
            return []
        self._directory = self._wait_for_clients(grid)
        clients = self.participation.draw(self._directory.clients, server_round)
        self.report = RoundReport(sampled=clients)
        self._round = server_round
        self._model = to_tensors(arrays)
        self.framed = any(R in name for name in self._model)
        self._send(self.broadcast(self._model))
        self._averaged = {n: t for n, t in self._sent.items() if self.averages(n)}
        self._expected = self.expected(self._sent)
        about = self._about(config, server_round)
        self._asked = {c: self._message(c, about, MessageType.TRAIN) for c in clients}
        return list(self._asked.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Global model plus the rule's update, and means of metrics.

        Where no reply can be used: what the method makes of that, by default None, and as metrics
        how many replies failed, were set aside or got lost.
        """
        good = self._sift(replies)
        self.report.used = [client for client, _ in good]
        self.heard(self.report.used)
        self.downlink.arrived(self.report.used)
        self.lost_touch(list(self.report.failed))
        if not good:
            return self._without_replies(), self._nothing_used(server_round, self.report)
        contents = [content for _, content in good]
        examples = [float(metrics_of(c)[self.weighted_by_key]) for c in contents]  # type: ignore[arg-type]
        self.report.examples = dict(zip(self.report.used, examples, strict=True))
        weights = policy_weights(self.weights, examples, self.max_weight)
        self.report.steps = steps_told(dict(good))
        came = [read(records(content, ArrayRecord)[0]) for content in contents]
        before = self.state_dict()
        moved = self._moved(came, weights) if self._averaged else {}
        new = self._renewed({**moved, **self.combine(came)})
        if new is None:
            self.load_state_dict(before)
        return new, self._train_metrics(contents)

    def _renewed(self, changed: dict[str, Tensor]) -> ArrayRecord | None:
        """The new global model, or None (the old one stays) if an entry left its range.

        Or one of the server optimiser's memory: its squares do long before the model.
        """
        model = {name: changed.get(name, tensor) for name, tensor in self._model.items()}
        if are_finite([*model.values(), *state_of(self, ("server_optimizer",)).values()]):
            return to_record(self.reparametrised(model))
        self.report.notes["overflow"] = 1.0
        self._warn("the aggregate is not finite; the model stays as it was")
        return None

    def _without_replies(self) -> ArrayRecord | None:
        update = self.alone() if self.mechanism is None else self._protected([])
        return None if update is None else self._renewed(self._applied(update))

    def _moved(self, replies: Sequence[Mapping[str, Tensor]], weights: Tensor) -> dict[str, Tensor]:
        """The tensors that the rule is for, moved by what it makes of the replies."""
        if self.mechanism is not None:
            return self._applied(self._protected(replies))
        rows = differences(replies, self._averaged)
        updates = self._updates(rows, weights, self.report.used)
        return self._applied(self._aggregate(self.collect(updates)).update)

    def _protected(self, replies: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """What user-level privacy makes of the replies, if there are any."""
        assert self.mechanism is not None
        self.report.notes = {"clip": self.mechanism.clip}
        return self.mechanism(differences(replies, self._averaged), self._round)

    def _applied(self, update: Tensor) -> dict[str, Tensor]:
        if self.server_optimizer is not None:
            update = self.server_optimizer(update, self._round)
        return applied(update, self._averaged)

    def _updates(self, replies: Tensor, weights: Tensor, clients: Sequence[int]) -> Updates:
        """The round as rules see it, with the update from the server's own data if it has any."""
        trusted = None
        if self.root is not None:
            if self._trusted is None or self._trusted[0] != self._round:
                names = frozenset(self._averaged)
                own = difference(self.root(self._sent, self._round, names), self._averaged)
                self._trusted = (self._round, own)
            trusted = self._trusted[1]
        seed = self.participation.seed
        return Updates(replies, weights, clients, self._round, seed, trusted=trusted)

    def _aggregate(self, updates: Updates) -> Aggregate:
        """Pre-aggregators, then the rule; what it says goes into the report."""
        found = aggregated(updates, self.pre, self.rule)
        if found.coefficients is not None and len(found.coefficients) == len(self.report.used):
            self.report.coefficients = found.coefficients.tolist()
        self.report.notes.update(found.notes)
        return found

    def preview(self, replies: Tensor) -> Tensor:
        """What the rule would make of updates, (n, d) to (d,), with nothing remembered of it."""
        weights = torch.full((len(replies),), 1.0 / len(replies), dtype=torch.float64)
        updates = self._updates(replies, weights, range(len(replies)))
        return aggregated(updates, self.pre, copy.deepcopy(self.rule)).update

    def state_dict(self) -> dict[str, Tensor]:
        """What the strategy remembers over rounds, of its parts and its own."""
        return state_of(self, (*PARTS, *self.remembers))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        restore(self, (*PARTS, *self.remembers), state)

    def expected(self, sent: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as a reply must hold them: names, shapes and kinds of numbers."""
        return {name: tensor for name, tensor in sent.items() if self.expects(name)}

    def _sift(self, replies: Iterable[Message]) -> list[tuple[int, RecordDict]]:
        key = self.weighted_by_key
        found = sift(replies, self._asked, self._directory, self._expected, key, self.fault)
        report = self.report
        report.failed, report.rejected, report.lost = found.failed, found.rejected, found.lost
        for client, reason in {**found.failed, **found.rejected}.items():
            self._warn("reply of client %d set aside: %s", client, reason)
        return found.good
