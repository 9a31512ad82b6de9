"""Messages of a strategy, and evaluation on the clients' own data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from fedtune.adapters.layout import BASE
from fedtune.grids.arrays import records, to_tensors
from fedtune.grids.directory import Directory, directory_of
from fedtune.grids.form import metrics_fault
from fedtune.participation import Participation
from fedtune.randomness import key_of
from fedtune.server.downlink import Downlink
from fedtune.server.hooks import Hooks

ALSO = "also"


class Messenger(Hooks, FlowerFedAvg):
    """The part of a strategy that makes messages and has clients evaluate."""

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
        good = [
            (self._directory.client(m.metadata.src_node_id), m)
            for m in replies
            if not m.has_error()
            and len(records(m.content, MetricRecord)) == 1
            and metrics_fault(metrics_of(m.content), self.weighted_by_key) is None
        ]
        used = [
            message
            for _, message in sorted(good, key=lambda pair: pair[0])
            if float(metrics_of(message.content)[self.weighted_by_key]) > 0  # type: ignore[arg-type]
        ]
        return super().aggregate_evaluate(server_round, used)

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


def mean_metrics(contents: Sequence[RecordDict], weight_key: str) -> MetricRecord:
    """Flower's `aggregate_metricrecords` for replies that were checked, without its copies.

    Args:
        contents: of replies, each with one MetricRecord of the same keys and of single numbers.
        weight_key: the metric that they are weighted by; it is left out.
    """
    told = [metrics_of(content) for content in contents]
    total = sum(metrics[weight_key] for metrics in told)  # type: ignore[misc]
    means = dict.fromkeys((key for key in told[0] if key != weight_key), 0.0)
    for metrics in told:
        weight = metrics[weight_key] / total  # type: ignore[operator]
        for key in means:
            means[key] += metrics[key] * weight  # type: ignore[operator]
    return MetricRecord(dict(means))
