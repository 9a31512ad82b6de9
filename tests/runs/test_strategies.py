"""Strategies are found by entry point, and in a bundle where nothing is installed by module."""

from __future__ import annotations

import pytest

from fedtune.errors import ScenarioError
from fedtune.runs import strategies as finding
from fedtune.scenario import Scenario
from strategies import FedAvg, FFALoRA


@pytest.fixture(params=["installed", "unpacked"])
def places(request, monkeypatch):
    if request.param == "unpacked":
        monkeypatch.setattr(finding, "entry_points", lambda **query: [])


def test_names_and_classes_are_the_same_in_both_places(places):
    assert finding.strategy_names() == [
        "admm", "fed-sb", "fedavg", "fedavg-unbiased", "fedex-lora", "fedprox", "fedstale",
        "fedsvd", "fedvarp", "ffa-lora", "flag", "frl", "rerce", "rolora", "scaffold",
    ]  # fmt: skip
    assert finding.find_strategy("fedavg") is FedAvg
    assert finding.find_strategy("ffa-lora") is FFALoRA
    with pytest.raises(ScenarioError, match="allowed: admm, fed-sb, fedavg, fedavg-unbiased"):
        finding.find_strategy("base")


def test_auto_takes_the_strategys_adapter_and_an_explicit_kind_is_checked():
    raw = Scenario()
    assert finding.adapter_kind(raw) == "lora"
    raw.strategy.name = "ffa-lora"
    assert finding.adapter_kind(raw) == "ffa"
    raw.adapter.kind = "none"
    with pytest.raises(ScenarioError, match=r"adapter.kind = 'none': strategy 'ffa-lora' needs"):
        finding.adapter_kind(raw)


def test_a_strategys_own_parameters_are_checked_and_arrive(monkeypatch):
    class Own(FedAvg):
        name = "own"

        def __init__(self, *, beta: float = 0.5, **shared) -> None:
            super().__init__(**shared)
            self.beta = beta

    monkeypatch.setattr(finding, "find_strategy", lambda name: Own)
    scenario = Scenario.model_validate({"strategy": {"name": "own", "beta": 0.25}})
    assert finding.make_strategy(scenario).beta == 0.25
    scenario = Scenario.model_validate({"strategy": {"name": "own", "gamma": 1}})
    with pytest.raises(ScenarioError, match=r"strategy.gamma: unknown key.*beta"):
        finding.make_strategy(scenario)
