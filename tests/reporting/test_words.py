"""Sentences of a report."""

from __future__ import annotations

from typing import get_args

from fedtune.reporting.words import TASKS
from fedtune.scenario.task import TaskSection


def test_there_are_words_for_every_kind_of_task():
    assert set(TASKS) == set(get_args(TaskSection.model_fields["kind"].annotation))
