"""Scenario files: defaults, overrides, and one clear line for whatever is wrong."""

from __future__ import annotations

import tomllib

import pytest

from fedtune.errors import ScenarioError
from fedtune.scenario import Scenario, dump_scenario, load_scenario, scenario_names


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text("[clients]\ncount = 4\n[run]\nrounds = 2\n")
    return path


def test_a_file_and_its_overrides(file):
    scenario = load_scenario(file, ["run.rounds=7", "local.lr=1e-2", "strategy.name=ffa-lora"])
    assert (scenario.run.rounds, scenario.local.lr, scenario.strategy.name) == (7, 0.01, "ffa-lora")
    assert scenario.clients.count == 4
    assert load_scenario(file, {"run.rounds": 7}).run.rounds == 7


def test_what_is_written_is_read_again(file):
    scenario = load_scenario(file, ["clients.partition={kind='dirichlet',alpha=0.3}"])
    file.write_text(dump_scenario(scenario))
    assert load_scenario(file) == scenario


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_is_valid_and_has_a_title(name):
    assert isinstance(load_scenario(name), Scenario)
    assert scenario_names()[name]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.rounds=ten", "run.rounds = 'ten': input should be a valid integer"),
        ("run.rounds=true", "run.rounds = True"),
        ("run.rouns=3", "did you mean rounds"),
        ("nowhere.x=1", "nowhere: unknown key; allowed: task, clients"),
        ("run=3", "run"),
        ("adapter.rank=0", "adapter.rank = 0: input should be greater than or equal to 1"),
        ("adapter.kind=fancy", "adapter.kind = 'fancy': input should be 'auto', 'lora'"),
        ("engine.device=tpu", "engine.device = 'tpu'"),
        ("engine.kind=docker", "'cohort', 'sequential' or 'flower'"),
        ("privacy.mechanism=local", "privacy.mechanism = 'local'"),
        ("local.lr=0", "local.lr = 0"),
        ("local.betas=[0.9]", "local.betas = [0.9]"),
        ("local.momentum=0.9", "momentum is for optimizer 'sgd'"),
        ("clients.participation.value=0.0", "a fraction is one number in (0, 1]"),
        ("clients.participation={kind='bernoulli',value=[0.5]}", "1 probabilities"),
        ("run.seed=-1", "run.seed = -1"),
        ("local.betas=[0.9,1.0]", "local.betas"),
        ("local.lr=inf", "local.lr = inf"),
        ("adapter.targets=3", "adapter.targets = 3"),
        ("adapter.use_rslora='no'", "adapter.use_rslora = 'no'"),
        ("local.early_stopping.foo=1", "allowed: patience, min_delta"),
        ("novalue", "must be key=value"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(file, override, said):
    with pytest.raises(ScenarioError) as error:
        load_scenario(file, [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_steps_and_epochs_exclude_each_other(file):
    file.write_text("[local]\nsteps = 3\nepochs = 1\n")
    with pytest.raises(ScenarioError, match="steps or epochs, not both"):
        load_scenario(file)
    file.write_text("[local]\nepochs = 2\n")
    local = load_scenario(file, ["local.steps=5"]).local
    assert (local.steps, local.epochs) == (5, None)


@pytest.mark.parametrize("source", ["absent", "absent.toml"])
def test_a_scenario_that_is_not_there(source):
    with pytest.raises(ScenarioError, match="absent"):
        load_scenario(source)


def test_a_file_from_another_system(file):
    file.write_bytes(b"\xef\xbb\xbf[run]\r\nrounds = 3\r\n")
    assert load_scenario(file).run.rounds == 3


def test_a_file_that_is_not_toml(file):
    file.write_text("run = = 3")
    with pytest.raises(ScenarioError, match="not valid TOML"):
        load_scenario(file)


def test_the_schema_is_json_schema_of_the_contract():
    schema = Scenario.model_json_schema()
    assert list(schema["properties"]) == [
        "task", "clients", "adapter", "local", "strategy",
        "privacy", "attack", "faults", "engine", "deploy", "run", "compare",
    ]  # fmt: skip
    assert tomllib.loads(dump_scenario(Scenario()))["run"]["rounds"] == 20


def test_another_strategy_or_attack_does_not_inherit_parameters():
    found = load_scenario("rerce", {"strategy.name": "fedavg"})
    assert found.strategy.parameters() == {}
    assert load_scenario("rerce", {"strategy.name": "rerce"}).strategy.parameters() == {"rho": 0.3}
    assert load_scenario("rerce", {"strategy.rho": 2.0}).strategy.parameters() == {"rho": 2.0}
    given = {"strategy.name": "fedavg-unbiased", "strategy.most": 3.0}
    assert load_scenario("rerce", given).strategy.parameters() == {"most": 3.0}
    poisoned = load_scenario("quickstart", {"attack.kind": "alie", "attack.z": 1.0})
    assert load_scenario(poisoned, {"attack.kind": "ipm"}).attack.parameters() == {}
