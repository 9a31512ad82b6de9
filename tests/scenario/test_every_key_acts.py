"""A key that is accepted acts: every key of the schema changes what a run leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedtune.errors import ScenarioError
from tests.kits.key_cases import CASES, EXCEPTIONS, QUICK
from tests.kits.key_looks import TINY, Looks, apart
from tests.kits.schema_keys import differing, path_of, schema_keys

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def looks(tmp_path_factory):
    return Looks(tmp_path_factory.mktemp("keys"))


def marked(one):
    long = one.look is Looks.run and one.key not in QUICK
    return pytest.param(one, id=one.key, marks=[pytest.mark.long] if long else [])


@pytest.mark.parametrize("one", map(marked, CASES))
def test_a_key_that_is_set_to_something_else_changes_what_is_left(looks, one):
    before = looks.of(one.look, one.scene)
    after = looks.of(one.look, {**one.scene, **one.change})
    assert apart(before, after), (
        f"{one.key}: accepted, and does nothing: {one.change} leaves what {one.scene} leaves"
    )


def without_a_case(keys):
    return sorted(keys - {one.key for one in CASES} - EXCEPTIONS.keys())


def test_every_key_of_the_schema_has_a_case_or_a_reason_to_have_none():
    missing = without_a_case(schema_keys())
    assert not missing, (
        f"no case shows that {', '.join(missing)} acts: add one to tests/kits/key_cases.py or the "
        "files beside it"
    )
    named = [one.key for one in CASES]
    assert len(set(named)) == len(named)
    assert not EXCEPTIONS.keys() & set(named)
    gone = sorted({*named, *EXCEPTIONS} - schema_keys())
    assert not gone, f"the schema has no {', '.join(gone)} any more"
    assert {one.key for one in CASES if one.look is Looks.run} >= QUICK


def test_a_key_without_a_case_is_found():
    assert without_a_case({*schema_keys(), "task.invented"}) == ["task.invented"]


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.key)
def test_the_two_scenarios_of_a_case_differ_in_its_key_alone(one):
    scene = {**(TINY if one.look in (Looks.run, Looks.grid) else {}), **one.scene}
    found = differing(scene, {**scene, **one.change})
    assert path_of(one.key) in found
    assert found <= {path_of(one.key), *one.also}


@pytest.mark.parametrize("key", EXCEPTIONS)
def test_what_has_no_case_has_a_test_of_its_own(key):
    reason, (file, _, name) = EXCEPTIONS[key][0], EXCEPTIONS[key][1].partition("::")
    assert reason
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


def test_runs_of_one_scenario_leave_the_same_and_a_key_that_does_nothing_is_found(looks):
    """Else a difference would show nothing."""
    first = looks.of(Looks.run, {})
    assert {"metrics.jsonl", "summary.json", "engine.json", "partition.npz"} <= first.keys()
    assert {"adapter/adapter_model.safetensors", "checkpoints/round-000002.json"} <= first.keys()
    assert not apart(first, looks.run({}))
    assert not apart(first, looks.run({"deploy.min_clients": 3}))


def test_a_case_that_is_refused_says_so(looks):
    with pytest.raises(ScenarioError, match="keeps nothing out"):
        looks.run({"adapter.exclude_modules": ["nosuch"]})
