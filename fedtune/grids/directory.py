"""Which client is behind a node: sampling, order and seeds use logical ids only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid


class Directory:
    """Logical client ids and Flower's node ids.

    Args:
        nodes: node id of each client id.
    """

    def __init__(self, nodes: Mapping[int, int]) -> None:
        self._nodes = dict(nodes)
        self._clients = {node: client for client, node in self._nodes.items()}
        self.clients: Sequence[int] = sorted(self._nodes)
        if len(self._clients) != len(self._nodes):
            raise ValueError("two clients have one node id")

    def node(self, client: int) -> int:
        """The node id of a client."""
        return self._nodes[client]

    def client(self, node: int) -> int:
        """The client id of a node."""
        return self._clients[node]

    def knows(self, node: int) -> bool:
        """Whether a node is a client's."""
        return node in self._clients


@runtime_checkable
class HasDirectory(Protocol):
    """A grid that knows its clients; a wrapper passes on what it wraps."""

    @property
    def directory(self) -> Directory:
        """The grid's clients."""
        ...


def directory_of(grid: Grid) -> Directory:
    """A grid's clients; on a grid that knows only nodes, node ids are the logical ids."""
    if isinstance(grid, HasDirectory):
        return grid.directory
    return Directory({node: node for node in grid.get_node_ids()})
