"""What a method of its own may declare and change; all else is in `AdapterStrategy`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from flwr.app import ArrayRecord
from pydantic import Field
from torch import Tensor

from fedtune.apps.rounds import RoundFunction, plain_round
from fedtune.rules import Updates

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Hooks:
    """The defaults of FedAvg.

    A subclass names its `adapter` kind and those it `accepts`, what fedtune's clients do in a round
    (`client_round`), whether they keep something for the next (`clients_keep`), which weights
    `auto` is (`auto_weights`), whether it sums updates over probabilities to take part
    (`weighs_by_probability`), and whether clients send points of an iteration of its own instead of
    steps (`sends_iterates`); both leave less to choose.
    """

    name: ClassVar[str]
    adapter: ClassVar[str]
    accepts: ClassVar[frozenset[str]]
    client_round: ClassVar[RoundFunction] = staticmethod(plain_round)
    clients_keep: ClassVar[bool] = False
    auto_weights: ClassVar[str] = "reported"
    weighs_by_probability: ClassVar[bool] = False
    sends_iterates: ClassVar[bool] = False

    def broadcast(self, arrays: ArrayRecord) -> ArrayRecord:
        """What clients are sent for the global model; by default that itself."""
        return arrays

    def client_config(self) -> dict[str, bool | float | str]:
        """What each training message says besides the round; by default nothing."""
        return {}

    def heard(self, clients: list[int]) -> None:
        """Called once a round with the clients whose replies can be used, if there are any."""

    def collect(self, updates: Updates) -> Updates:
        """What the rule sees for a round's replies; by default these themselves."""
        return updates

    def averages(self, name: str) -> bool:
        """Whether the rule is for the tensor of that name."""
        return True

    def expects(self, name: str) -> bool:
        """Whether replies must hold the tensor of that name, and may not otherwise."""
        return self.averages(name)

    def fault(self, tensors: dict[str, Tensor]) -> str | None:
        """What else is wrong with a reply whose tensors can be read; by default nothing."""
        return None

    def combine(self, replies: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """New values of tensors that the rule is not for; by default none."""
        return {}


def under(start: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
