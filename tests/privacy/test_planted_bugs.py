"""Bugs of published programs, planted here: a test or the audit must find each.

Which they are: shared/methods/aggregation-and-privacy.md, section 7. One tensor without noise and a
transposed factor are planted in tests/cohort/test_private.py, noise that is charged and not added
in tests/audit/test_audit.py.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from fedtune.apps.budget import Budget
from fedtune.errors import Declined
from fedtune.privacy import example, user
from fedtune.privacy.ledger import Ledger
from fedtune.privacy.streams import Streams
from tests.cohort import test_private as cohort
from tests.privacy import test_user as mechanism
from tests.runs import test_private_runs as runs
from tests.runs import test_user_private_runs as users


def wrong_rate(patch):
    """Batches of twice the rate that is charged."""
    right = example.poisson
    patch.setattr(example, "poisson", lambda stream, n, q: right(stream, n, min(1.0, 2 * q)))


def one_seed(patch):
    """All clients draw the same noise."""
    right = Streams.stream
    patch.setattr(Streams, "stream", lambda self, what, *place: right(self, what, 0))


def noise_of_other_streams_only(patch):
    """Secret streams that are the same again."""
    patch.setattr(Streams, "stream", lambda self, what, *place: np.random.default_rng(0))


def bare_first_gradient(patch):
    """Fed-SB's first gradient without noise."""
    patch.setattr(
        example.ExampleNoise, "drawn", lambda self, stream, size, like: torch.zeros(size).to(like)
    )


def skipped_empty_batches(patch):
    """Steps without an example are left out, and not charged."""
    right = example.ExampleNoise.drawn
    patch.setattr(
        example.ExampleNoise,
        "drawn",
        lambda self, stream, size, like: right(self, stream, size, like) * bool(like.any()),
    )


def ledger_of_a_run(patch):
    """A new run begins with nothing spent."""
    right = Ledger.entries
    newest = {}

    def own(self, client, data):
        found = right(self, client, data)
        newest[client] = found[-1].run if found else ""
        return [entry for entry in found if entry.run == newest[client]]

    patch.setattr(Ledger, "entries", own)


def charged_after_the_reply(patch):
    """The ledger is written when the reply has left."""
    patch.setattr(Ledger, "charge", lambda self, entries: None)


def one_noise_for_all_sizes(patch):
    """Every client gets the noise of a client of a thousand examples."""
    right = Budget.terms

    def same(self, client, examples):
        z = right(self, client, 1000).noise_multiplier
        return dataclasses.replace(right(self, client, examples), noise_multiplier=z)

    patch.setattr(Budget, "terms", same)


def sum_over_who_came(patch):
    """Divided by the clients that came, not by the expected ones."""
    right = user.UserMechanism.__call__
    patch.setattr(
        user.UserMechanism,
        "__call__",
        lambda self, rows, r: right(self, rows, r) * (self.expected / max(1, len(rows))),
    )


def clipped_share_fed_back(patch):
    """The adaptive bound follows the share that was clipped."""
    right = user.UserMechanism._follow

    def other(self, norms, drawn):
        right(self, torch.where(norms <= self.clip, 2 * self.clip, 0.5 * self.clip), drawn)

    patch.setattr(user.UserMechanism, "_follow", other)


def no_noise_in_empty_rounds(patch):
    """A round without replies leaves the model as it is."""
    right = user.UserMechanism.__call__
    patch.setattr(
        user.UserMechanism,
        "__call__",
        lambda self, rows, r: right(self, rows, r) if len(rows) else 0.0 * rows.sum(0),
    )


FOUND_BY = {
    wrong_rate: cohort.test_batches_are_poisson_samples_of_the_rate,
    one_seed: cohort.test_noise_has_its_variance_and_differs_between_clients_rounds_and_steps,
    noise_of_other_streams_only: runs.test_noise_on_the_wire_has_the_variance_that_is_charged,
    bare_first_gradient: runs.test_the_private_first_gradient_is_clipped_by_example,
    skipped_empty_batches: cohort.test_an_empty_batch_is_a_step_of_noise_alone,
    ledger_of_a_run: runs.test_the_ledger_is_the_single_history_also_over_a_resume_and_a_new_run,
    charged_after_the_reply: runs.test_the_charge_is_on_disk_before_the_reply_leaves,
    one_noise_for_all_sizes: runs.test_epsilon_is_reached_by_the_participations_that_plan_shows,
    sum_over_who_came: mechanism.test_sums_are_of_clipped_updates_over_the_expected_number,
    clipped_share_fed_back: mechanism.test_an_adaptive_bound_settles_at_the_quantile_of_the_norms,
    no_noise_in_empty_rounds: users.test_an_empty_round_has_noise_and_is_charged,
}


@pytest.mark.parametrize("bug", FOUND_BY, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug, tmp_path, monkeypatch):
    check = FOUND_BY[bug]
    given = [tmp_path] if "tmp_path" in inspect.signature(check).parameters else []
    with monkeypatch.context() as patch:
        bug(patch)
        with pytest.raises((AssertionError, FileNotFoundError, Declined)):
            check(*given)
