"""What a method of its own may declare and change; all else is in `AdapterStrategy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from flwr.app import ArrayRecord
from pydantic import Field
from torch import Tensor

from fedtune.adapters.ballots import Ballot
from fedtune.adapters.layout import Layout, Tensors, TensorSpec
from fedtune.apps.held import group_of
from fedtune.apps.rounds import RoundFunction, plain_round
from fedtune.rules import Updates
from fedtune.scenario import Scenario

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NotNegativeCount = Annotated[int, Field(ge=0)]


class Hooks:
    """The defaults of FedAvg.

    A subclass names its `adapter` kind and those it `accepts`, what fedtune's clients do in a round
    (`client_round`), whether they keep something for the next (`clients_keep`), which weights
    `auto` is (`auto_weights`), whether it sums updates over probabilities to take part
    (`weighs_by_probability`), whether clients send points of an iteration of its own instead of
    steps (`sends_iterates`), and whether what an update's numbers mean changes from round to round
    (`changes_basis`), and whether it multiplies A and B (`multiplies`), and whether its clients use
    whole gradients (`takes_gradients`); each leaves less to choose. `own_rule` is what rule `auto`
    is, `tells` are the attributes of which each training message says what they are; `delivers` are
    the roles of frozen tensors that the server changes and sends, `keeps_sent` whether clients keep
    A and B as they were sent, so that an unchanged factor is not sent again. `ballots` are the
    forms of what clients vote on, by tensor. `remembers` are the attributes that are its state.
    """

    framed: bool = False
    ballots: Mapping[str, Ballot] = MappingProxyType({})
    name: ClassVar[str]
    adapter: ClassVar[str]
    accepts: ClassVar[frozenset[str]]
    client_round: ClassVar[RoundFunction] = staticmethod(plain_round)
    clients_keep: ClassVar[bool] = False
    auto_weights: ClassVar[str] = "reported"
    weighs_by_probability: ClassVar[bool] = False
    sends_iterates: ClassVar[bool] = False
    changes_basis: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False
    takes_gradients: ClassVar[bool] = False
    reads_replies: ClassVar[bool] = False
    own_rule: ClassVar[str] = "mean"
    tells: ClassVar[tuple[str, ...]] = ()
    delivers: ClassVar[frozenset[str]] = frozenset()
    keeps_sent: ClassVar[bool] = False
    remembers: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def refuse(cls, scenario: Scenario) -> None:
        """Raise `Incompatible` for what this method cannot go with; by default nothing."""

    @classmethod
    def asks_gradients(cls, scenario: Scenario) -> bool:
        """Whether its clients send what follows from a gradient that no noise is added to."""
        return cls.takes_gradients

    def meet(self, layout: Layout, initial: Tensors) -> None:
        """Called once in a fedtune run with the adapter's tensors and what they begin as."""

    def broadcast(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """What clients are sent for the global model; by default that itself."""
        return model

    def client_config(self) -> dict[str, bool | float | str]:
        """What each training message says besides the round."""
        return {attribute: getattr(self, attribute) for attribute in self.tells}

    def also(self, client: int) -> tuple[ArrayRecord | None, dict[str, Any]]:
        """What else a client is sent, and what its message says; by default nothing."""
        return None, {}

    def heard(self, clients: list[int]) -> None:
        """Called once a round with the clients whose replies can be used, if there are any."""

    def collect(self, updates: Updates) -> Updates:
        """What the rule sees for a round's replies; by default these themselves."""
        return updates

    def averages(self, name: str) -> bool:
        """Whether the rule is for the tensor of that name; those of a fixed frame are not."""
        return not (self.framed and group_of(name))

    def expects(self, name: str) -> bool:
        """Whether replies must hold the tensor of that name, and may not otherwise."""
        return self.averages(name)

    def fault(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What else is wrong with a reply whose tensors can be read; by default nothing."""
        return None

    def combine(self, replies: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """New values of tensors that the rule is not for; by default none."""
        return {}

    def alone(self) -> Tensor | None:
        """The update of a round in which nobody replied; None: the model stays as it is."""
        return None

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """Payload bytes that one client sends in a round.

        Args:
            specs: of the tensors that travel both ways.
            itemsize: bytes of a number.
        """
        return sum(spec.wire_bytes(itemsize) for spec in specs)

    def reparametrised(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new global model in the form in which it is sent; by default as it is."""
        return model
