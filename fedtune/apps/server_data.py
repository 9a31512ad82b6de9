"""Training on rows that the server holds itself (FLTrust)."""

from __future__ import annotations

from dataclasses import dataclass

from fedtune.adapters.layout import Tensors
from fedtune.cohort.engine import Engine
from fedtune.cohort.plan import plan_work
from fedtune.errors import ClientFailure, RunError
from fedtune.tasks.base import Rows

SERVER = -1


@dataclass(frozen=True)
class ServerData:
    """Rows that the server holds itself; it trains on them as a client would.

    Attributes:
        engine: trains.
        rows: of the training data.
        seed: of the run.
    """

    engine: Engine
    rows: Rows
    seed: int

    def __call__(self, sent: Tensors, server_round: int, only: frozenset[str]) -> Tensors:
        """The tensors of these names after the server's own training from what it broadcasts.

        Raises:
            RunError: if that fails.
        """
        setting = self.engine.setting
        initial = setting.adapted.initial
        state = {
            s.name: sent.get(s.name, initial[s.name]).to(setting.device, setting.master)
            for s in setting.layout.specs
            if s.trained or s.delivered
        }
        widths = setting.data.widths(self.rows)
        work = plan_work(
            SERVER, server_round, self.rows, state, setting.local, self.seed, widths, only=only
        )
        result = self.engine.train([work], server_round)[SERVER]
        if isinstance(result, ClientFailure):
            raise RunError(f"the server's own training failed: {result.reason}")
        return dict(result.tensors)
