"""Messages of a strategy, and evaluation on the clients' own data."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from fedtune.adapters.layout import BASE
from fedtune.apps.rounds import STEPS
from fedtune.grids.arrays import records, to_tensors
from fedtune.grids.directory import Directory, directory_of
from fedtune.grids.form import metrics_fault
from fedtune.grids.replies import RoundReport, in_words, reason_of
from fedtune.participation import Participation
from fedtune.randomness import key_of
from fedtune.server.downlink import Downlink
from fedtune.server.hooks import Hooks

ALSO = "also"
LOGGER = logging.getLogger("strategies")


class Messenger(Hooks, FlowerFedAvg):
    """The part of a strategy that makes messages and has clients evaluate.

    Attributes:
        warns: whether replies that cannot be used are logged, as well as in `report`.
    """

    warns: bool = True
    participation: Participation
    downlink: Downlink
    _directory: Directory

    _sent: dict[str, Tensor]
    _model: dict[str, Tensor]

    def lost_touch(self, clients: list[int]) -> None:
        """What these clients, which failed, hold is not known any more."""
        self.downlink.forget(clients)

    def _send(self, tensors: dict[str, Tensor]) -> None:
        """Settle what messages hold."""
        self._sent = tensors
        self.downlink.offer(tensors, self.framed or self.keeps_sent)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to `fraction_evaluate` of the clients, drawn by (seed, round)."""
        if self.fraction_evaluate == 0.0:
            return []
        self._directory = self._wait_for_clients(grid)
        seed = key_of("evaluate", self.participation.seed)
        share = Participation("fraction", self.fraction_evaluate, seed)
        clients = share.draw(self._directory.clients, server_round)
        self._model = to_tensors(arrays)
        self._send({n: t for n, t in self._model.items() if BASE not in n})
        about = self._about(config, server_round)
        return [self._message(client, about, MessageType.EVALUATE) for client in clients]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Means over the clients that evaluated on at least one example, in the order of ids."""
        good: dict[int, RecordDict] = {}
        came = list(replies)
        for message in came:
            node = message.metadata.src_node_id
            client = self._directory.client(node) if self._directory.knows(node) else node
            if fault := evaluation_fault(message, self.weighted_by_key):
                self._warn("evaluation of client %d: %s", client, fault)
            elif float(metrics_of(message.content)[self.weighted_by_key]) > 0:  # type: ignore[arg-type]
                good[client] = message.content
        contents = alike([good[client] for client in sorted(good)])
        if came and not contents:
            self._warn("no evaluation of round %d can be used", server_round)
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    def _train_metrics(self, contents: list[RecordDict]) -> MetricRecord:
        """Means of the metrics that every reply holds in one form."""
        return self.train_metrics_aggr_fn(alike(contents), self.weighted_by_key)

    def _nothing_used(self, server_round: int, report: RoundReport) -> MetricRecord:
        """Say of a round that none of its replies can be used; what became of them."""
        found = {"clients": 0, **report.counts}
        if report.sampled:
            self._warn("no reply of round %d can be used: %s", server_round, in_words(found))
        return MetricRecord(dict(found))

    def _warn(self, text: str, *values: object) -> None:
        """Log it, unless who runs the strategy tells of it."""
        if self.warns:
            LOGGER.warning(f"%s: {text}", self.name, *values)

    def _wait_for_clients(self, grid: Grid) -> Directory:
        while len((directory := directory_of(grid)).clients) < self.min_available_nodes:
            time.sleep(1)
        return directory

    def _about(self, config: ConfigRecord, server_round: int) -> ConfigRecord:
        return ConfigRecord({**config, **self.client_config(), "server-round": server_round})

    def _message(self, client: int, about: ConfigRecord, kind: str) -> Message:
        arrays, versions = self.downlink.record(client)
        more, said = self.also(client)
        own = about.copy()
        if versions or said:
            own.update({**versions, **said, "server-round": about["server-round"]})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
        if more is not None:
            content[ALSO] = more
        return Message(content, self._directory.node(client), kind)


def metrics_of(content: RecordDict) -> MetricRecord:
    """The metrics of a reply."""
    return records(content, MetricRecord)[0]


def steps_told(contents: Mapping[int, RecordDict]) -> dict[int, int]:
    """Optimiser steps by client, of replies that say them."""
    told = {client: metrics_of(content).get(STEPS) for client, content in contents.items()}
    return {client: max(0, int(n)) for client, n in told.items() if isinstance(n, int | float)}


def evaluation_fault(reply: Message, weight_key: str) -> str | None:
    """Why a reply to an evaluation cannot be used, or None."""
    if reply.has_error():
        return reason_of(reply)
    if len(records(reply.content, MetricRecord)) != 1:
        return "must hold exactly one MetricRecord"
    return metrics_fault(metrics_of(reply.content), weight_key)


def alike(contents: list[RecordDict]) -> list[RecordDict]:
    """Contents of replies with the metrics that all hold, as a number or as lists of one length.

    Steps are left out: they have a sum and no mean.
    """
    forms = [
        {k: len(v) if isinstance(v, list) else None for k, v in metrics_of(content).items()}
        for content in contents
    ]
    shared = [set(form.items()) for form in forms]
    common = dict(set.intersection(*shared)) if shared else {}
    common.pop(STEPS, None)
    if all(form == common for form in forms):
        return contents
    return [
        RecordDict({"metrics": MetricRecord({k: metrics_of(c)[k] for k in sorted(common)})})
        for c in contents
    ]


def mean_metrics(contents: Sequence[RecordDict], weight_key: str) -> MetricRecord:
    """Flower's `aggregate_metricrecords` for replies that were checked, without its copies.

    Args:
        contents: of replies, each with one MetricRecord of the same keys, of numbers or of lists of
            one length.
        weight_key: the metric that they are weighted by; it is left out.
    """
    told = [metrics_of(content) for content in contents]
    total = sum(metrics[weight_key] for metrics in told)  # type: ignore[misc]
    first = {key: value for key, value in told[0].items() if key != weight_key}
    means: dict[str, Any] = {
        k: [0.0] * len(v) if isinstance(v, list) else 0.0 for k, v in first.items()
    }
    for metrics in told:
        weight = metrics[weight_key] / total  # type: ignore[operator]
        for key, mean in means.items():
            value: Any = metrics[key]
            if isinstance(value, list):
                means[key] = [m + v * weight for m, v in zip(mean, value, strict=True)]
            else:
                means[key] = mean + value * weight
    return MetricRecord(means)
