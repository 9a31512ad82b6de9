"""A client does what its own settings allow, whatever a server asks."""

from __future__ import annotations

import pytest
import torch

from fedtune.apps.store import FileStore
from fedtune.deploy.consent import Refused, check_consent
from fedtune.deploy.digest import base_digest
from fedtune.deploy.settings import load_settings
from fedtune.deploy.trainer import DECLINES, Trainer
from fedtune.errors import ScenarioError
from fedtune.grids.replies import DECLINED
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.ledger import Ledger
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import dump_scenario, load_scenario
from tests.deploy.kit import FEDERATION, LIBRARY, deployment, settings_of, trainer_of
from tests.runs.kit import small

PRIVATE = {"privacy": {"mechanism": "example", "epsilon": 2.0, "delta": 1e-5}}
STRICT = {"privacy": {"mechanism": "example", "epsilon": 3.0}}
VIT = base_digest("builtin:vit-letters")


@pytest.mark.parametrize(
    ("own", "asked", "said"),
    [
        ({"accepts": {"adapters": ["ffa"]}}, {}, "adapter.kind = 'lora'; accepts.adapters allows"),
        ({"accepts": {"base": "0" * 64}}, {}, "another digest than accepts.base"),
        (
            {"accepts": {"steps": 1}},
            {},
            "local.steps = 2, accumulation = 1; accepts.steps",
        ),
        ({"accepts": {"steps": 3}}, {"local__accumulation": 2}, "accepts.steps allows 3"),
        ({"accepts": {"rank": 1}}, {}, "adapter.rank = 2; accepts.rank allows 1"),
        ({"data": {"dealt": True, "labels": ["a", "b"]}}, {}, "task.labels are not those"),
        ({"accepts": {"steps": 3}}, {"local__steps": None, "local__epochs": 9}, "accepts.steps"),
        (STRICT, {}, "privacy.mechanism = 'none'"),
        (STRICT, {"privacy": {**PRIVATE["privacy"], "epsilon": 4.0}}, "this client allows 3"),
        (STRICT, {"privacy": {**PRIVATE["privacy"], "delta": 1e-4}}, "privacy.delta = 0.0001"),
        (STRICT, {"privacy": {**PRIVATE["privacy"], "deterministic_randomness": True}}, "nobody"),
        (STRICT, {"privacy": {**PRIVATE["privacy"], "public_counts": True}}, "does not tell how"),
    ],
)
def test_a_server_that_asks_for_more_is_refused(tmp_path, own, asked, said):
    scenario = settle_paths(load_scenario("quickstart", small(**asked)))
    trainer = trainer_of(settings_of(tmp_path, 1, **own))
    with pytest.raises(Refused) as error:
        trainer._load(dump_scenario(scenario))
    assert said in error.value.reason


def test_a_refusal_reaches_the_server_by_name_and_nothing_is_trained(tmp_path, monkeypatch):
    made, trained = deployment(tmp_path, {1: {"accepts": {"steps": 1}}}, run__rounds=1), []
    for client, trainer in made.clients.trainers.items():
        built = trainer._built

        def watched(scenario, built=built, client=client):
            found = built(scenario)
            train = found.engine.train
            found.engine.train = lambda *given: (trained.append(client), train(*given))[1]
            return found

        monkeypatch.setattr(trainer, "_built", watched)
    run = made.run(tmp_path / "run")
    problems = run.metrics[0]["problems"]
    assert [(p["client"], p["kind"]) for p in problems] == [(1, "failed")]
    assert problems[0]["reason"].startswith("refused: local.steps = 2")
    assert sorted(trained) == [0, 2]


def test_what_is_allowed_is_trained(tmp_path):
    own = {"accepts": {"base": VIT, "adapters": ["lora"], "steps": 2}, **STRICT}
    made = deployment(tmp_path, {1: own}, run__rounds=1, **PRIVATE)
    assert made.run(tmp_path / "run").metrics[0]["problems"] == []


def test_the_clients_own_epsilon_holds_where_a_server_names_none(tmp_path):
    asked = {"privacy": {"mechanism": "example", "noise_multiplier": 1.5, "delta": 1e-5}}
    rounds = {"run__rounds": 2, **asked}
    free = deployment(tmp_path / "free", **rounds).run(tmp_path / "free" / "run")
    assert [line["problems"] for line in free.metrics] == [[], []]
    ledger = Ledger(tmp_path / "free" / "store-0" / "ledger.jsonl")
    history = [entry.spent for entry in ledger.entries(0, "builtin:digits")]
    assert len(history) == 2
    between = (epsilon(history[:1], 1e-5) + epsilon(history, 1e-5)) / 2
    own = {0: {"privacy": {"mechanism": "example", "epsilon": between}}}
    run = deployment(tmp_path / "own", own, **rounds).run(tmp_path / "own" / "run")
    assert run.metrics[0]["problems"] == []
    problems = run.metrics[1]["problems"]
    assert [p["client"] for p in problems] == [0]
    assert problems[0]["reason"] == DECLINES


def answered(tmp_path, header, body=b"", **own):
    return Trainer(settings_of(tmp_path, 0, **own)).answer(header, body)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"federation": "../../etc", "scenario": ""},
        {"federation": FEDERATION, "scenario": "not = [toml"},
        {"federation": FEDERATION, "scenario": "[task]\nkind = 'nothing'"},
        {"federation": FEDERATION, "scenario": "[strategy]\nname = '../x'"},
    ],
)
def test_a_hostile_bundle_gets_a_refusal(tmp_path, header):
    said, body = answered(tmp_path, header)
    assert said["code"] == DECLINED
    assert said["reason"].startswith("refused: ")
    assert body == b""
    assert not (tmp_path / "store-0").exists()


def test_bytes_that_are_no_message_are_an_error_without_detail(tmp_path):
    scenario = settle_paths(load_scenario("quickstart", small()))
    header = {"federation": FEDERATION, "scenario": dump_scenario(scenario)}
    said, _ = answered(tmp_path, header, b"\x80\x04garbage")
    assert said["reason"] == "failed; its own log says more"


def test_paths_of_a_scenario_are_not_used_by_a_client_with_its_own_file(tmp_path):
    from fedtune.deploy.consent import own_scenario

    asked = settle_paths(load_scenario("quickstart", small(
        privacy={**PRIVATE["privacy"], "ledger": str(tmp_path / "theirs.jsonl")},
        faults__trace="/etc/passwd",
        clients__participation={"kind": "trace", "file": "/etc/shadow"})))  # fmt: skip
    own = settings_of(tmp_path, 0, data={"file": str(tmp_path / "mine.csv")})
    found = dump_scenario(own_scenario(asked, own))
    for theirs in ("theirs", "/etc/passwd", "/etc/shadow"):
        assert theirs not in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client = 0", "data: field required"),
        ("client = 0\n[data]\nfile = 'a.csv'\ndealt = true", "one of the two"),
        ("client = 0\n[data]\ndealt = true\n[accept]\nsteps = 1", "accept: unknown key (did you"),
        ("client = -1\n[data]\ndealt = true", "client = -1"),
        ("client = 0\n[data]\ndealt = true\n[privacy]\nmechanism = 'example'", "go together"),
    ],
)
def test_settings_that_cannot_be_are_told_in_one_line(tmp_path, text, said):
    file = tmp_path / "client.toml"
    file.write_text(text)
    with pytest.raises(ScenarioError) as error:
        load_settings(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_of_settings_are_relative_to_their_file(tmp_path):
    file = tmp_path / "client.toml"
    file.write_text("client = 2\n[data]\nfile = 'mine.csv'")
    found = load_settings(file)
    assert found.data.file == str(tmp_path / "mine.csv")
    assert found.store == str(tmp_path / "store")


def test_a_private_clients_own_settings_say_what_an_example_is(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,x\nb,y\n")
    text = {"task__kind": "text-classification", "task__base": "builtin:bert-words"}
    plain = {"task__kind": "causal-lm", "task__base": "builtin:llama-words"}
    for task, own, said in (
        (text, {}, "must name data.text"),
        (text, {"text": "text"}, "must name data.label"),
        (text, {"text": "text", "label": "label"}, "must name data.labels"),
        (plain, {"text": "text"}, "is several examples"),
        ({**text, "task__pattern": "(?P<text>.*)"}, {}, "task.pattern"),
    ):
        asked = settle_paths(load_scenario("quickstart", small(**PRIVATE, **task)))
        settings = settings_of(tmp_path, 0, data={"file": str(rows), **own}, **STRICT)
        with pytest.raises(Refused, match=said):
            check_consent(asked, settings)


def test_a_server_names_no_folder_and_no_hub_model_for_a_client_with_its_own_file(tmp_path):
    for base in ("/etc", "some/model"):
        asked = load_scenario("quickstart", small(task__base=base))
        with pytest.raises(Refused, match="name no base of its own"):
            check_consent(asked, settings_of(tmp_path, 0, data={"file": "mine.csv"}))


def test_a_round_of_many_jobs_ends_at_the_clients_limit():
    federation = build(settle_paths(load_scenario("quickstart", small())), library=LIBRARY)
    clients = federation.clients
    clients.most_batches = 3
    with federation.serving.serving():
        state = start_state(federation, None)
        assert one_round(federation, state, 1)["failures"] == 0
        clients.most_batches = 1
        line = one_round(federation, state, 2)
    assert (line["clients"], line["failures"]) == (0, 3)


def test_names_in_a_message_lead_to_no_other_file(tmp_path):
    store = FileStore(tmp_path / "kept", 1)
    store.remember("A", "0" * 16, {"t": torch.ones(1)})
    assert store.recall("A", "0" * 16) is not None
    for group, digest in (("A", "x/../../../stolen"), ("../A", "0" * 16), ("A", "0" * 15)):
        with pytest.raises(KeyError):
            store.remember(group, digest, {"t": torch.ones(1)})
        with pytest.raises(KeyError):
            store.recall(group, digest)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
