"""The resident trainer: holds a client's base and data, decides what is done, does it.

It is installed at the client and never part of what a server sends. A ClientApp reaches it through
a Unix socket with group permission, and can run as another user.
"""

from __future__ import annotations

import gc
import logging
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message

from fedtune.apps.budget import Budget
from fedtune.apps.store import KEPT
from fedtune.cohort.plan import planned_steps
from fedtune.deploy.consent import Refused, check_consent, check_steps, own_scenario
from fedtune.deploy.data import data_fault
from fedtune.deploy.ledger import OwnLedger
from fedtune.deploy.settings import ClientSettings
from fedtune.errors import ClientFailure, Declined, ScenarioError
from fedtune.grids.compat import CLIENT_RAISED, content_to_bytes, message_from_bytes
from fedtune.grids.replies import DECLINED
from fedtune.runs.build import Federation, build
from fedtune.runs.flower import FEDERATION, SCENARIO, store_in
from fedtune.scenario import Scenario
from fedtune.scenario.loading import validate
from fedtune.tasks.base import Rows
from fedtune.tasks.library import Library

DECLINES = "takes no part: its privacy budget, its participations or a round's batches are spent"
LOGGER = logging.getLogger("fedtune.trainer")
NAME = re.compile(r"[0-9a-f]{8,64}")
Reply = tuple[dict[str, Any], bytes]


class Trainer:
    """Answers messages of one client.

    Args:
        settings: the client's own.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._asked = ("", "")
        self._loaded: Federation | None = None
        self._library = Library()

    def answer(self, header: dict[str, Any], body: bytes) -> Reply:
        """The reply to a message: its content, or a code and a reason that quotes no data."""
        try:
            return {}, content_to_bytes(self._handled(header, body).content)
        except Declined as error:
            LOGGER.warning("declined: %s", error.reason)
            return _said(DECLINED, DECLINES)
        except Refused as error:
            LOGGER.warning("refused: %s", error.reason)
            return _said(DECLINED, f"refused: {error.reason}")
        except Exception as error:
            LOGGER.exception("failed")
            stage = f" in {error.stage}" if isinstance(error, ClientFailure) else ""
            return _said(CLIENT_RAISED, f"failed{stage}; its own log says more")

    def release(self) -> None:
        """Free the model, the examples and the accelerator; the next message loads them anew."""
        if self._loaded is None:
            return
        LOGGER.info("idle: model and examples are freed")
        self._asked, self._loaded, self._library = ("", ""), None, Library()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _handled(self, header: dict[str, Any], body: bytes) -> Message:
        federation_id = str(header.get(FEDERATION, ""))
        if not NAME.fullmatch(federation_id):
            raise Refused(self.settings.client, "the message names no federation")
        federation = self._federation(federation_id, str(header.get(SCENARIO, "")))
        message = message_from_bytes(body)
        folder = Path(self.settings.store) / federation_id / KEPT
        clients = federation.clients
        clients.store = store_in(folder, federation.scenario, message)
        answer = clients.handle([(self.settings.client, message)])[0]
        if not isinstance(answer, Message):
            raise answer
        if answer.has_error():
            raise Declined(self.settings.client, answer.error.reason or "")
        return answer

    def _federation(self, federation_id: str, text: str) -> Federation:
        """What a run's scenario needs, loaded at its first message: the data as they are then."""
        asked = federation_id, text
        if self._loaded is None or asked != self._asked:
            self._loaded = None
            self._loaded, self._asked = self._load(text), asked
        return self._loaded

    def _load(self, text: str) -> Federation:
        settings, client = self.settings, self.settings.client
        try:
            asked = validate(tomllib.loads(text))
            check_consent(asked, settings)
            scenario = own_scenario(asked, settings)
        except (ScenarioError, tomllib.TOMLDecodeError) as error:
            raise Refused(client, f"the scenario cannot be used here: {error}") from None
        LOGGER.info("loading %s for %s", scenario.task.base, scenario.strategy.name)
        federation = self._built(scenario)
        rows = federation.clients.training_rows(client)
        if not len(rows):
            raise Refused(client, "it holds no example to train on")
        local = scenario.local
        check_steps(planned_steps(len(rows), local) * local.accumulation, settings)
        federation.clients.most_batches = settings.accepts.steps
        if isinstance(budget := federation.budget, Budget):
            budget.limit, budget.ledger = settings.privacy.epsilon, OwnLedger(budget.ledger.path)
            budget.check(client, len(rows))
        return federation

    def _built(self, scenario: Scenario) -> Federation:
        settings = self.settings
        folder = Path(settings.store)
        if settings.data.dealt:
            return build(scenario, library=self._library, folder=folder)
        if fault := data_fault(scenario.task):
            raise Refused(settings.client, fault)
        deal = _all_of(settings.client, scenario.clients.count)
        return build(scenario, library=self._library, folder=folder, parts=deal)


def _all_of(own: int, count: int) -> Callable[[int], list[Rows]]:
    """All rows for one client."""

    def deal(rows: int) -> list[Rows]:
        parts = [np.arange(0)] * count
        parts[own] = np.arange(rows)
        return parts

    return deal


def _said(code: int, reason: str) -> Reply:
    return {"code": code, "reason": reason}, b""
