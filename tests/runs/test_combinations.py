"""What goes together runs and learns; what does not is refused with its reason."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from fedtune.tasks.library import Library

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "combinations.py"))
outcome = SCRIPT["outcome"]


def test_every_strategy_runs_with_every_kind_that_it_accepts():
    library, ran = Library(), 0
    for key, options in SCRIPT["one_at_a_time"]():
        name, kind, *parts = key
        if parts != ["auto", "none", "none", "shared"]:
            continue
        found = outcome(options, library)
        accepted = kind in SCRIPT["find_strategy"](name).accepts
        assert (found == "ok") == accepted, (key, found)
        assert accepted or f"strategy {name!r} needs one of" in found
        ran += accepted
    assert ran >= 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy.name": "fedsvd", "strategy.server_optimizer": "adam"}, "changes their basis"),
        ({"strategy.name": "fedsvd", "strategy.rule": "centered-clipping"}, "changes their basis"),
        ({"strategy.name": "rolora", "local.client_momentum": 0.9}, "changes their basis"),
        ({"strategy.name": "fedstale", "strategy.rule": "median"}, "sums updates over prob"),
        ({"strategy.name": "fedstale", "adapter.kind": "rank"}, "needs one of"),
        ({"strategy.name": "frl", "strategy.rule": "fltrust"}, "sends votes"),
        ({"strategy.name": "fedavg", "strategy.rule": "vote"}, "counts rankings"),
        ({"strategy.name": "flag", "strategy.rule": "krum"}, "is a rule itself"),
        (
            {"strategy.name": "flag", "strategy.rule": {"name": "flag"}, "strategy.m": 2},
            "strategy.m: strategy.rule names its own parameters",
        ),
        ({"strategy.name": "fedex-lora", "strategy.rule": "median"}, "the mean alone"),
        ({"strategy.name": "fed-sb", "adapter.use_rslora": True}, "s = 1 everywhere"),
        ({"strategy.name": "fed-sb", "adapter.rank": 65}, "orthonormal directions"),
        ({"strategy.name": "fedsvd", "adapter.rank": 65}, "has 64 directions"),
        (
            {"strategy.name": "frl", "adapter.by_magnitude": True, "strategy.upload": 0.5},
            "strategy.upload: with adapter.by_magnitude",
        ),
        (
            {"strategy.name": "frl", "adapter.by_magnitude": True, "attack.kind": "vem"},
            "attack.kind = 'vem': with adapter.by_magnitude",
        ),
        ({"strategy.rule": {"name": "krum", "f": "2"}}, "strategy.rule.f = '2': input should be"),
        ({"attack.kind": "gaussian", "attack.sigma": "ten"}, "attack.sigma = 'ten'"),
        ({"attack.kind": "label-flip", "attack.share": "abc"}, "attack.share = 'abc'"),
        (
            {"strategy.name": "fed-sb", "adapter.init": "public", "task.server_examples": 0},
            "task.server_examples",
        ),
    ],
)
def test_what_the_mathematics_forbids_is_refused_in_one_line(options, said):
    found = outcome(options, Library())
    assert said in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "options",
    [
        {"strategy.name": "ffa-lora", "strategy.rule": "flag"},
        {"strategy.name": "fedstale", "adapter.kind": "lora-sb"},
        {"strategy.name": "fedsvd", "strategy.rule": "krum", "strategy.pre": ["nnm"]},
        {"strategy.name": "scaffold", "strategy.rule": "trimmed-mean", "task.head": "local"},
        {"strategy.name": "fed-sb", "strategy.server_optimizer": "adam", "faults.noise_down": 0.01},
        {"strategy.name": "rolora", "faults.snr_down": 20.0},
        {"strategy.name": "rolora", "attack.kind": "alie", "attack.fraction": 0.3},
        {"strategy.name": "scaffold", "attack.kind": "ipm", "attack.fraction": 0.3},
        {"strategy.name": "fedsvd", "attack.kind": "sign-flip", "attack.fraction": 0.3},
        {"strategy.name": "fedex-lora", "attack.kind": "gaussian", "attack.fraction": 0.3},
        {"strategy.name": "fedex-lora", "task.head": "local"},
        {"strategy.name": "fed-sb", "task.head": "local", "adapter.init": "client-dense"},
        {"strategy.name": "fed-sb", "adapter.init": "pooled"},
        {"strategy.name": "fed-sb", "adapter.init": "public"},
        {"strategy.name": "fed-sb", "adapter.init": "random"},
        {"strategy.name": "fed-sb", "adapter.rank_pattern": {"q_proj": 3}},
        {"strategy.name": "scaffold", "local.client_momentum": 0.5},
    ],
    ids=lambda options: " ".join(str(value) for value in options.values()),
)
def test_what_goes_together_runs_and_changes_the_model(options):
    assert outcome(options, Library()) == "ok"


@pytest.mark.long
def test_the_full_product_runs_or_is_refused():
    library = Library()
    for _, options in [*SCRIPT["one_at_a_time"](), *SCRIPT["product"]()]:
        assert "\n" not in outcome(options, library)
