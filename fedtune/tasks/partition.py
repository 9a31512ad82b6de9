"""Dealing examples to clients with the partitioners of flwr-datasets."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
from datasets import Dataset
from flwr_datasets import partitioner as flwr_partitioners
from numpy.typing import NDArray

from fedtune.errors import ScenarioError
from fedtune.randomness import generator
from fedtune.scenario.clients import PartitionSection
from fedtune.tasks.base import Rows
from fedtune.tasks.examples import NO_ID, TEXTS

CLASSES = {
    "iid": flwr_partitioners.IidPartitioner,
    "dirichlet": flwr_partitioners.DirichletPartitioner,
    "pathological": flwr_partitioners.PathologicalPartitioner,
    "shard": flwr_partitioners.ShardPartitioner,
    "linear": flwr_partitioners.LinearPartitioner,
    "square": flwr_partitioners.SquarePartitioner,
}
_SET = {"self", "num_partitions", "partition_by", "seed", "shuffle"}


def check_keys(section: PartitionSection) -> None:
    """Refuse keys that a kind of partition does not have.

    Raises:
        ScenarioError: for the first of them.
    """
    own = partition_keys(section.kind)
    allowed = ["kind", "by", "pattern", *own] if section.kind == "natural" else ["kind", *own]
    for key in section.parameters():
        if key not in own:
            raise ScenarioError(
                f"clients.partition.{key}: unknown key; allowed: {', '.join(allowed)}"
            )


def partition_keys(kind: str) -> list[str]:
    """The parameters of a kind of partition: those of the flwr-datasets class."""
    if kind == "natural":
        return []
    return [key for key in inspect.signature(CLASSES[kind].__init__).parameters if key not in _SET]


def partition(
    by: NDArray[Any],
    section: PartitionSection,
    count: int,
    seed: int,
) -> list[Rows]:
    """The rows of each client, sorted; a client may be left empty.

    Args:
        by: every row's class, or what else it is dealt by, (n,).
        section: the scenario's `clients.partition`.
        count: number of clients.
        seed: of the run.

    Raises:
        ScenarioError: if the setting is unknown to the partitioner or cannot be met.
    """
    check_keys(section)
    if count > len(by):
        raise ScenarioError(
            f"clients.count = {count}: more clients than the {len(by)} training examples"
        )
    if section.kind == "natural":
        return _natural(by, section, count)
    draw = generator("partition", seed)
    order = draw.permutation(len(by))
    maker = _partitioner(section, count, int(draw.integers(2**31)))
    maker.dataset = Dataset.from_dict({"by": by[order], "row": order})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if maker.num_partitions < count:
                raise ValueError(f"it yields {maker.num_partitions} clients")
            parts = [_rows(maker, client) for client in range(count)]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ScenarioError(
            f"clients.partition = {section.model_dump()} cannot be met for clients.count = "
            f"{count} and {len(by)} examples: {reason}"
        ) from None
    return parts


def _natural(by: NDArray[Any], section: PartitionSection, count: int) -> list[Rows]:
    """Each value but `NO_ID` is a client; of more than clients, those with the most rows.

    flwr-datasets' NaturalIdPartitioner filters the data once a client: minutes for 500 writers.
    """
    known = np.arange(len(by)) if by.dtype.kind not in TEXTS else np.flatnonzero(by != NO_ID)
    _, place, sizes = np.unique(by[known], return_inverse=True, return_counts=True)
    if count > len(sizes):
        raise ScenarioError(
            f"clients.count = {count}: {section.by!r} has {len(sizes)} different values"
        )
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:count])
    order = known[np.argsort(place, kind="stable")]
    rows = np.split(order, np.cumsum(sizes)[:-1])
    return [np.sort(rows[client]) for client in chosen]


def _partitioner(section: PartitionSection, count: int, seed: int) -> Any:
    cls = CLASSES[section.kind]
    known = inspect.signature(cls.__init__).parameters
    given = section.parameters()
    given.update({"num_partitions": count, "partition_by": "by", "seed": seed})
    if section.kind == "dirichlet":
        given.setdefault("min_partition_size", 0)
    try:
        return cls(**{key: value for key, value in given.items() if key in known})
    except (TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0].split("__init__() ", 1)[-1]
        raise ScenarioError(f"clients.partition = {section.model_dump()}: {reason}") from None


def _rows(maker: Any, client: int) -> Rows:
    part = maker.load_partition(client)
    return np.sort(np.asarray(part["row"], dtype=np.int64))
