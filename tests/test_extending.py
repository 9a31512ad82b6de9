"""The examples of docs/extending.md, as a package of somebody else's with entry points."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import fedtune
from fedtune.cli.listing import LISTS
from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.export import load_model
from fedtune.runs.settling import settle_paths
from fedtune.scenario import Scenario, load_scenario
from tests.runs.kit import lines, small

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text("utf-8")
MOST_LINES = 60


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    """The page's files, installed as pip would: modules, and entry points in a dist-info."""
    place = tmp_path_factory.mktemp("site")
    (place / "fedtune_example").mkdir()
    (place / "fedtune_example" / "__init__.py").touch()
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        assert code.count("\n") < MOST_LINES, name
        (place / name).write_text(code, "utf-8")
    toml = tomllib.loads(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    info = place / "fedtune_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedtune-example\nVersion: 1.0\n")
    groups = toml["project"]["entry-points"]
    text = "".join(
        f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) + "\n"
        for group, points in groups.items()
    )
    (info / "entry_points.txt").write_text(text)
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))


def test_they_are_listed_and_in_the_schema():
    assert "agree" in LISTS["rules"]()["agreement"]
    assert "shortened" in LISTS["strategies"]()["bounded"]
    assert "diag" in LISTS["adapters"]()["diagonal"]
    text = str(Scenario.model_json_schema())
    assert "'agreement'" in text
    assert "'diagonal'" in text
    with pytest.raises(ScenarioError, match="'diagonal'"):
        fedtune.plan("quickstart", {"adapter.kind": "fancy"})


def test_the_rule_counts_agreement(tmp_path):
    from fedtune.rules import make_rule
    from fedtune.rules.base import Updates

    rows = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.9, -0.2], [-1.0, 0.0]])
    found = make_rule("agreement", 1)(Updates(rows, torch.full((4,), 0.25).double()))
    assert found.coefficients[3] == 0
    assert float(found.coefficients.sum()) == pytest.approx(1.0)
    options = small(strategy__rule={"name": "agreement", "power": 2.0}, strategy__pre=["nnm"])
    done = fedtune.run("quickstart", options, tmp_path / "run")
    assert sum(done.metrics[-1]["coefficients"]) == pytest.approx(1.0)
    with pytest.raises(ScenarioError, match=r"strategy.rule.sharp: no parameter of 'agreement'"):
        fedtune.plan("quickstart", small(strategy__rule={"name": "agreement", "sharp": 2.0}))


def test_the_strategy_bounds_what_is_sent(tmp_path):
    tight = small(strategy__name="bounded", strategy__bound=1e-3, local__steps=5, run__rounds=1)
    done = fedtune.run("quickstart", tight, tmp_path / "tight")
    made = build(done.scenario)
    from fedtune.runs.checkpoints import load_checkpoint
    from fedtune.runs.loop import start_state

    end = start_state(made, load_checkpoint(done.checkpoints)).arrays
    moved = sum(float((t - made.adapted.initial[n]).square().sum()) for n, t in end.items())
    assert 0 < moved**0.5 <= 1e-3 * (1 + 1e-5)
    loose = small(strategy__name="bounded", strategy__bound=1e9)
    plain = fedtune.run("quickstart", small(), tmp_path / "plain")
    free = fedtune.run("quickstart", loose, tmp_path / "free")
    for one, other in zip(lines(free), lines(plain), strict=True):
        assert one["eval"]["loss"] == pytest.approx(other["eval"]["loss"], abs=1e-6)
    with pytest.raises(ScenarioError, match=r"strategy\.bound = -1"):
        fedtune.plan("quickstart", small(strategy__name="bounded", strategy__bound=-1.0))


@pytest.mark.parametrize("strategy", ["fedavg", "fed-sb", "fedstale"])
def test_the_kind_trains_r_numbers_a_layer_on_both_engines(tmp_path, strategy):
    options = small(
        adapter__kind="diagonal", strategy__name=strategy, task__head="frozen",
        engine__precision="float64", run__rounds=3,
    )  # fmt: skip
    done = fedtune.run("quickstart", options, tmp_path / "cohort")
    assert done.summary["resolved"]["backend"] == "cohort"
    assert done.summary["parameters_sent"] == 8 * 2
    assert done.metrics[0]["bytes_up"] == 8 * 2 * 8 * done.metrics[0]["clients"]
    apart = fedtune.run("quickstart", {**options, "engine.kind": "sequential"}, tmp_path / "one")
    for one, other in zip(done.metrics, apart.metrics, strict=True):
        assert abs(one["eval"]["loss"] - other["eval"]["loss"]) <= 1e-6
    assert done.metrics[-1]["eval"]["loss"] != done.summary["initial"]["loss"]


def test_the_kinds_result_is_a_plain_lora_adapter(tmp_path):
    from fedtune.runs.checkpoints import load_checkpoint
    from fedtune.runs.loop import start_state

    done = fedtune.run("quickstart", small(adapter__kind="diagonal"), tmp_path / "run")
    made = build(done.scenario)
    state = start_state(made, load_checkpoint(done.checkpoints))
    batch = made.task.test.gather(torch.arange(20))
    own = made.engine.backend.logits(state.arrays, batch.inputs)
    with torch.no_grad():
        assert float((load_model(done)(**batch.inputs).logits - own).abs().max()) <= 1e-5


def test_the_kind_begins_at_the_base():
    found = []
    for kind in ("diagonal", "lora"):
        options = small(adapter__kind=kind)
        made = build(settle_paths(load_scenario("quickstart", options)))
        batch = made.task.test.gather(torch.arange(10))
        start = {n: t.clone() for n, t in made.adapted.initial.items()}
        found.append(made.engine.backend.logits(start, batch.inputs))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def test_strategies_that_multiply_factors_refuse_a_kind_that_makes_them():
    with pytest.raises(ScenarioError, match="needs one of"):
        fedtune.plan("quickstart", small(adapter__kind="diagonal", strategy__name="fedsvd"))
