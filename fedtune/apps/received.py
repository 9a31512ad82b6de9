"""What a client starts a round from: what it is sent, and what it kept."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.apps.held import base_of, with_held
from fedtune.apps.rounds import ClientView
from fedtune.apps.store import ClientStore
from fedtune.cohort.backend import Setting
from fedtune.grids.arrays import records, to_tensor

ARRAYS, CONFIG = "arrays", "config"


def message_round(message: Message) -> int:
    """The round that a message belongs to."""
    return int(str(message.content[CONFIG]["server-round"]))


class Received:
    """What clients start from; messages that share a record share its tensors too.

    Args:
        setting: says where tensors go, and which the adapter has.
        store: what clients keep.
    """

    def __init__(self, setting: Setting, store: ClientStore) -> None:
        self.setting, self.store = setting, store
        self.initial = setting.adapted.initial
        self._shared: dict[tuple[int, ...], tuple[Tensors, Tensors]] = {}

    def view(self, client: int, message: Message) -> ClientView:
        """What a client knows: the tensors it is sent, and those it kept."""
        record, config = message.content[ARRAYS], message.content[CONFIG]
        if not isinstance(record, ArrayRecord):
            raise TypeError(f"message holds no ArrayRecord called {ARRAYS!r}")
        if not isinstance(config, ConfigRecord):
            raise TypeError(f"message holds no ConfigRecord called {CONFIG!r}")
        more = [one for one in records(message.content, ArrayRecord) if one is not record]
        key = (id(record), *map(id, more))
        if key not in self._shared:
            self._shared[key] = self._received([record, *more], config)
        shared, extra = self._shared[key]
        layout, initial = self.setting.layout, self.initial
        own = dict(self.store.get(client) or {})
        heads = {s.name: self._place(own.pop(s.name, initial[s.name])) for s in layout.kept}
        number, local = message_round(message), self.setting.local
        state = {**shared, **heads}
        return ClientView(client, number, state, extra, own, config, layout, initial, local)

    def _received(
        self, came: Sequence[ArrayRecord], config: ConfigRecord
    ) -> tuple[Tensors, Tensors]:
        """The adapter's tensors, those of them that the client holds already too; and the rest."""
        sent = {n: self._place(to_tensor(array)) for record in came for n, array in record.items()}
        whole = with_held(self.store, sent, config)
        received = self.setting.layout.received
        zeros = {s.name: self._place(self.initial[s.name]) for s in received if s.role == "W"}
        if zeros:
            whole.update(base_of(self.store, sent, config, zeros))
        if missing := [spec.name for spec in received if spec.name not in whole]:
            raise KeyError(f"message misses {missing[0]}")
        state = {spec.name: whole[spec.name] for spec in received}
        return state, {name: tensor for name, tensor in sent.items() if name not in state}

    def _place(self, tensor: Tensor) -> Tensor:
        wide = tensor.is_floating_point()
        return tensor.to(self.setting.device, self.setting.master if wide else tensor.dtype)
