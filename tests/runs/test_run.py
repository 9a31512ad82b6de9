"""Whole runs: what they write, what they send, and that engines agree."""

from __future__ import annotations

import json
import re
import socket

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

import fedtune
from fedtune.errors import ClientFailure, ScenarioError
from fedtune.runs import api
from fedtune.runs.build import build
from fedtune.runs.export import export
from fedtune.tasks.examples import NAMELESS
from tests.conftest import drawing
from tests.runs.kit import adapter_bytes, lines, small

BLANK = "[run]\n"
WIDTH, LAYERS, CLASSES, RANK = 64, 4, 10, 2
HEAD = WIDTH * CLASSES + CLASSES


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenario") / "blank.toml"
    path.write_text(BLANK)
    return path


@pytest.fixture(scope="module")
def finished(blank, tmp_path_factory):
    with drawing():
        return fedtune.run(blank, small(), tmp_path_factory.mktemp("runs") / "lora")


def test_the_directory_holds_what_the_contract_says(finished):
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {
        "scenario.toml", "metrics.jsonl", "summary.json", "adapter", "checkpoints",
        "curve.png", "partition.png",
    }  # fmt: skip
    assert [line["round"] for line in finished.metrics] == [1, 2]
    for line in finished.metrics:
        assert {"eval", "train", "clients", "failures", "rejected", "seconds"} <= set(line)
        assert set(line["eval"]) == {"loss", "accuracy"}
        assert line["clients"] == len(line["client_ids"]) == 3
    summary = finished.summary
    assert summary["client_updates"] == 6
    assert summary["final"] == finished.metrics[-1]["eval"]
    for key in ("best", "seed", "versions", "device", "engine", "peak_memory_bytes"):
        assert key in summary
    assert finished.scenario.adapter.kind == "lora"


@pytest.mark.parametrize(
    ("strategy", "head", "sent"),
    [
        ("fedavg", "shared", 2 * LAYERS * 2 * RANK * WIDTH + HEAD),
        ("fedavg", "frozen", 2 * LAYERS * 2 * RANK * WIDTH),
        ("ffa-lora", "shared", 2 * LAYERS * RANK * WIDTH + HEAD),
        ("ffa-lora", "frozen", 2 * LAYERS * RANK * WIDTH),
        ("ffa-lora", "local", 2 * LAYERS * RANK * WIDTH),
    ],
)
def test_payload_is_the_formula_to_the_byte(blank, tmp_path, strategy, head, sent):
    changes = small(strategy__name=strategy, task__head=head, run__rounds=1)
    directory = fedtune.run(blank, changes, tmp_path / "run")
    line = directory.metrics[0]
    assert line["bytes_up"] == line["bytes_down"] == 4 * sent * line["clients"]
    assert directory.summary["parameters_sent"] == sent


def test_under_ffa_a_is_never_sent_and_the_same_bytes_at_the_end(blank, tmp_path, monkeypatch):
    seen = []
    real = api.build

    def watching(*args, **kwargs):
        federation = real(*args, **kwargs)
        inner = federation.serving.push_messages

        def push(messages):
            messages = list(messages)
            seen.extend(name for m in messages for name in m.content["arrays"])
            ids = list(inner(messages))
            seen.extend(
                n for r in federation.serving._replies.values() for n in r.content["arrays"]
            )
            return ids

        monkeypatch.setattr(federation.serving, "push_messages", push)
        seen.append(federation.adapted.initial)
        return federation

    monkeypatch.setattr(api, "build", watching)
    directory = fedtune.run(blank, small(strategy__name="ffa-lora"), tmp_path / "run")
    initial = next(s for s in seen if isinstance(s, dict))
    names = {s for s in seen if isinstance(s, str)}
    assert any("lora_B" in name for name in names)
    assert not any("lora_A" in name for name in names)
    saved = load_file(directory.adapter / "adapter_model.safetensors")
    factors = {name: t for name, t in saved.items() if "lora_A" in name}
    assert len(factors) == 2 * LAYERS
    for name, tensor in factors.items():
        assert torch.equal(tensor, initial[name])


def logits_of_the_run(directory, pixels):
    federation = build(directory.scenario, directory.read_partition())
    from fedtune.runs.checkpoints import load_checkpoint
    from fedtune.runs.loop import start_state

    state = start_state(federation, load_checkpoint(directory.checkpoints))
    return federation.engine.backend.logits(state.arrays, {"pixel_values": pixels})


@pytest.mark.parametrize("strategy", ["fedavg", "ffa-lora"])
def test_peft_loads_the_adapter_and_gives_the_runs_own_logits(blank, tmp_path, strategy):
    directory = fedtune.run(blank, small(strategy__name=strategy), tmp_path / "run")
    pixels = torch.randn(20, 1, 8, 8)
    own = logits_of_the_run(directory, pixels)
    base = json.loads((directory.adapter / "adapter_config.json").read_text())
    model = AutoModelForImageClassification.from_pretrained(
        base["base_model_name_or_path"], num_labels=CLASSES
    )
    loaded = PeftModel.from_pretrained(model, directory.adapter).eval()
    with torch.no_grad():
        assert float((loaded(pixel_values=pixels).logits - own).abs().max()) <= 1e-5
    folders = export(directory, tmp_path / "export", "both")
    merged = AutoModelForImageClassification.from_pretrained(folders[1]).eval()
    again = PeftModel.from_pretrained(
        AutoModelForImageClassification.from_pretrained(
            base["base_model_name_or_path"], num_labels=10
        ),
        folders[0],
    ).eval()
    assert merged.config.id2label[3] == "3"
    AutoImageProcessor.from_pretrained(folders[1])
    with torch.no_grad():
        assert float((merged(pixel_values=pixels).logits - own).abs().max()) <= 1e-5
        assert float((again(pixel_values=pixels).logits - own).abs().max()) <= 1e-5
        assert float(own.abs().max()) > 0.1


def test_local_heads_stay_with_their_clients(blank, tmp_path):
    directory = fedtune.run(blank, small(task__head="local", run__rounds=3), tmp_path / "run")
    took_part = {client for line in directory.metrics for client in line["client_ids"]}
    files = {int(p.stem): load_file(p) for p in (directory.path / "clients").iterdir()}
    assert set(files) == took_part
    first, *rest = (heads["base_model.model.classifier.weight"] for heads in files.values())
    assert all(not torch.equal(first, other) for other in rest)
    adapter = load_file(directory.adapter / "adapter_model.safetensors")
    assert any(name.endswith("classifier.weight") for name in adapter)
    assert set(directory.metrics[-1]["eval"]) == {"loss", "accuracy"}


def test_local_heads_cannot_be_merged_into_one_model(blank, tmp_path):
    directory = fedtune.run(blank, small(task__head="local", run__rounds=1), tmp_path / "run")
    assert [p.name for p in export(directory, tmp_path / "export", "both")] == ["adapter"]
    with pytest.raises(ScenarioError, match="a head of its own"):
        export(directory, tmp_path / "merged", "merged")


@pytest.mark.parametrize("head", ["shared", "local"])
def test_a_run_that_diverges_is_written_as_json(blank, tmp_path, head):
    huge = small(local__lr=1e30, local__optimizer="sgd", local__steps=1, task__head=head)
    directory = fedtune.run(blank, huge, tmp_path / "run")
    text = (directory.path / "summary.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    final = directory.summary["final"]
    assert directory.metrics[-1]["rejected"] > 0 or final == {} or final["loss"] is None


def test_export_of_a_damaged_run_is_a_line(blank, tmp_path):
    directory = fedtune.run(blank, small(run__rounds=1), tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ScenarioError, match="export of"):
        export(directory, tmp_path / "file" / "below", "both")
    file = directory.adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ScenarioError, match="export of"):
        export(directory, tmp_path / "out", "both")


def test_the_same_run_twice_is_the_same_to_the_bit(blank, finished, tmp_path):
    again = fedtune.run(blank, small(), tmp_path / "again")
    assert lines(again) == lines(finished)
    assert adapter_bytes(again) == adapter_bytes(finished)


def test_the_two_engines_agree_over_a_run(blank, tmp_path):
    found = {}
    for engine in ("cohort", "sequential"):
        changes = small(engine__kind=engine, engine__precision="float64", adapter__dropout=0.1)
        directory = fedtune.run(blank, changes, tmp_path / engine)
        assert directory.summary["engine"] == engine
        found[engine] = [line["eval"]["loss"] for line in directory.metrics]
    assert found["cohort"] == pytest.approx(found["sequential"], abs=1e-6)


def test_cohort_size_does_not_change_a_run(blank, finished, tmp_path):
    other = fedtune.run(blank, small(engine__cohort_size=3), tmp_path / "run")
    losses = [[line["eval"]["loss"] for line in d.metrics] for d in (finished, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_with_the_adapter_off_only_the_head_is_trained(blank, tmp_path):
    directory = fedtune.run(blank, small(adapter__kind="none"), tmp_path / "run")
    assert directory.summary["parameters_trained"] == HEAD
    saved = load_file(directory.adapter / "adapter_model.safetensors")
    assert all(float(t.abs().max()) == 0 for n, t in saved.items() if "lora_B" in n)


def test_bernoulli_rounds_may_be_empty_and_change_nothing(blank, tmp_path):
    who = {"kind": "bernoulli", "value": 0.1}
    changes = small(clients__participation=who, run__rounds=6)
    changes.pop("clients.participation.value")
    directory = fedtune.run(blank, changes, tmp_path / "run")
    counts = [line["clients"] for line in directory.metrics]
    assert 0 in counts
    for before, line in zip(directory.metrics, directory.metrics[1:], strict=False):
        if line["clients"] == 0:
            assert line["eval"] == before["eval"]
            assert line["bytes_up"] == 0


def test_a_run_stops_when_its_loss_runs_out_of_patience(blank, tmp_path):
    changes = small(
        run__rounds=8, local__lr=1e-9, run__early_stopping={"patience": 2, "min_delta": 0.1}
    )
    directory = fedtune.run(blank, changes, tmp_path / "run")
    assert len(directory.metrics) == directory.summary["rounds"] == 3


def test_a_failing_client_stops_the_run_or_is_skipped(blank, tmp_path, monkeypatch):
    from fedtune.apps.clients import CohortClients

    real = CohortClients.training_rows

    def broken(self, client):
        if client == 2:
            raise OSError("disk gone")
        return real(self, client)

    monkeypatch.setattr(CohortClients, "training_rows", broken)
    changes = small(clients__participation={"kind": "fraction", "value": 1.0})
    changes.pop("clients.participation.value")
    with pytest.raises(ClientFailure, match="client 2 failed in data: OSError: disk gone"):
        fedtune.run(blank, changes, tmp_path / "raise")
    directory = fedtune.run(blank, {**changes, "faults.on_error": "skip"}, tmp_path / "skip")
    for line in directory.metrics:
        assert line["clients"] == 5
        assert line["failures"] == 1
        assert line["problems"][0]["client"] == 2


def test_a_client_that_diverges_is_set_aside_and_named(blank, tmp_path, monkeypatch):
    from fedtune.cohort.together import CohortBackend

    real = CohortBackend.train

    def diverging(self, works, server_round):
        results = real(self, works, server_round)
        for result in results:
            if result.client == 1:
                next(iter(result.tensors.values())).fill_(float("nan"))
        return results

    monkeypatch.setattr(CohortBackend, "train", diverging)
    changes = small(clients__participation={"kind": "fraction", "value": 1.0})
    changes.pop("clients.participation.value")
    directory = fedtune.run(blank, changes, tmp_path / "run")
    for line in directory.metrics:
        assert line["rejected"] == 1
        assert line["problems"][0]["client"] == 1
        assert "NaN" in line["problems"][0]["reason"]


def test_nothing_reaches_for_the_network(blank, tmp_path, monkeypatch):
    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"tried to reach {address}")
        return

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(socket.socket(), a))
    directory = fedtune.run(blank, small(run__rounds=1), tmp_path / "run")
    assert directory.summary["rounds"] == 1


def test_a_directory_in_use_is_refused_before_anything_is_built(finished, blank, monkeypatch):
    monkeypatch.setattr(api, "build", lambda *a, **k: pytest.fail("built"))
    with pytest.raises(ScenarioError, match="exists and is not empty"):
        fedtune.run(blank, small(), finished.path)


def test_what_is_left_out_stands_in_the_notes_the_summary_and_the_report(tmp_path):
    ids = ["ann", "ann", "bo", "bo", "", ""]
    rows = [f"play {n},{'ab'[n % 2]},{who}" for n, who in enumerate(ids)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label,who", *rows, ""]))
    data = str(tmp_path / "x.csv")
    changes = small(
        task__kind="text-classification", task__base="builtin:bert-words", task__data=data,
        task__test=data, clients__count=2, clients__partition={"kind": "natural", "by": "who"},
        clients__participation__value=1.0, local__steps=1, run__rounds=1,
    )  # fmt: skip
    told = []

    class Told(api.Silent):
        def started(self, run):
            told.extend(run.notes)

    done = fedtune.run("quickstart", changes, tmp_path / "run", Told())
    assert f"data: 2 of 6 {NAMELESS}" in told
    assert done.summary["left_out"] == {NAMELESS: 2}
    fedtune.report(done.path)
    said = f"Of the data, 2 {NAMELESS}."
    assert said in (done.path / "report.md").read_text("utf-8")
    page = (done.path / "report.html").read_text("utf-8")
    assert said in re.sub(r"<[^>]*>", "", page)
