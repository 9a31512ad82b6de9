"""Clients with files of their own: the same result, clear refusals, nothing else leaves."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import fedtune
from fedtune.deploy.data import data_fault
from fedtune.errors import ScenarioError
from fedtune.grids.compat import content_from_bytes
from fedtune.scenario import load_scenario
from fedtune.scenario.task import TaskSection
from fedtune.tasks import load
from fedtune.tasks.bases import load_base
from fedtune.tasks.shapes import load_shapes
from fedtune.tasks.words import intents
from tests.deploy.kit import deployment
from tests.deploy.test_deployment import DOUBLE, adapter_of, apart
from tests.runs.kit import small

TEXT = {
    "task__kind": "text-classification",
    "task__base": "builtin:bert-words",
    "task__max_length": 16,
    "clients__participation__value": 1.0,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The built-in intents as files: three clients', the server's own, and all clients' in one."""
    folder = tmp_path_factory.mktemp("files")
    splits = intents()
    rows = [dict(row) for row in splits["train"]][:60]
    names = sorted(set(splits["train"]["label"]))
    tests = [dict(row) for row in splits["test"]][:40]
    parts = {"0": rows[:20], "1": rows[20:35], "2": rows[35:], "all": rows, "test": tests}
    for name, part in parts.items():
        if name == "1":
            (folder / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
            continue
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows({key: row[key] for key in ("text", "label")} for row in part)
    return folder, names, parts


def bringing_own(tmp_path, files, own=None, test="test.csv", **changes):
    folder, names, _ = files
    data = {0: "0.csv", 1: "1.jsonl", 2: "2.csv"}
    settings = {c: {"data": {"file": str(folder / name)}} for c, name in data.items()}
    for client, more in (own or {}).items():
        settings[client] = {**settings[client], **more}
    return deployment(
        tmp_path, settings, clients__count=3, task__data="clients", task__labels=names,
        task__test=test and str(folder / test), clients__partition={"kind": "iid"},
        **TEXT, **DOUBLE, **changes,
    )  # fmt: skip


def test_own_files_give_what_the_same_rows_give_in_a_simulation(tmp_path, files, monkeypatch):
    folder, names, parts = files
    deployed = bringing_own(tmp_path, files).run(tmp_path / "deployed")
    sizes = [len(parts[name]) for name in "012"]
    borders = [range(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(3)]
    monkeypatch.setattr(
        "fedtune.tasks.load.partition", lambda *given: [list_of(rows) for rows in borders]
    )
    simulated = fedtune.run(
        "quickstart",
        small(clients__count=3, task__data=str(folder / "all.csv"), task__labels=names,
              task__test=str(folder / "test.csv"), **TEXT, **DOUBLE),
        tmp_path / "simulated",
    )  # fmt: skip
    assert apart(adapter_of(deployed), adapter_of(simulated)) <= 1e-6
    assert deployed.metrics[-1]["eval"]["loss"] == pytest.approx(
        simulated.metrics[-1]["eval"]["loss"], rel=1e-9
    )


def list_of(rows):
    import numpy as np

    return np.asarray(rows)


def test_no_byte_that_leaves_holds_an_example_a_token_row_or_a_frozen_weight(tmp_path, files):
    made = bringing_own(tmp_path, files)
    made.run(tmp_path / "deployed")
    sent = b"".join(made.clients.bodies)
    for part in "012":
        for row in files[2][part]:
            assert row["text"].encode() not in sent
            assert row["label"].encode() not in sent
    for trainer in made.clients.trainers.values():
        setting = trainer._loaded.engine.setting
        uploads = {spec.name for spec in setting.layout.sent}
        for name, tensor in setting.adapted.model.state_dict().items():
            data = tensor.detach().cpu().contiguous().numpy().tobytes()
            assert name in uploads or len(data) < 64 or data[:4096] not in sent, name
        tokens = trainer._loaded.task.train.tokens["input_ids"].cpu()
        for ids in (tokens.numpy(), tokens.numpy().astype("int64")):
            assert ids[:12].tobytes() not in sent
    first = content_from_bytes(made.clients.bodies[0])["arrays"]
    assert all(array.data in sent for array in first.values())  # what does leave would be found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"file": "FOLDER/none.csv"}}, "cannot be read"),
        ({"data": {"file": "FOLDER/0.csv", "label": "diagnosis"}}, "no column 'diagnosis'"),
        ({"data": {"file": "FOLDER/strange.csv"}}, "a label that task.labels"),
        ({"data": {"file": "FOLDER/empty.csv"}}, "cannot be read, or are empty"),
    ],
)
def test_data_that_do_not_fit_are_refused_without_a_value(tmp_path, files, change, said):
    folder = files[0]
    (folder / "strange.csv").write_text("text,label\nsecret words,secret label\nmore,other\n")
    (folder / "empty.csv").write_text("text,label\n")
    given = {"data": {k: v.replace("FOLDER", str(folder)) for k, v in change["data"].items()}}
    run = bringing_own(tmp_path, files, {1: given}).run(tmp_path / "run")
    problems = run.metrics[0]["problems"]
    assert [p["client"] for p in problems] == [1]
    assert said in problems[0]["reason"]
    assert "secret" not in problems[0]["reason"]
    assert run.metrics[-1]["clients"] == 2


def test_a_simulation_without_data_is_refused(tmp_path, files):
    changes = small(task__data="clients", task__labels=files[1],
                    task__test=str(files[0] / "test.csv"), **TEXT)  # fmt: skip
    with pytest.raises(ScenarioError, match="only in a deployment"):
        fedtune.run("quickstart", changes, tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"needs task\.labels"):
        load_scenario("quickstart", {**changes, "task.labels": None})


def test_columns_may_have_other_names_at_a_client(tmp_path, files):
    folder, names, parts = files
    with (folder / "other.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["note", "code"], *((r["text"], r["label"]) for r in parts["1"])]
        )
    own = {1: {"data": {"file": str(folder / "other.csv"), "text": "note", "label": "code"}}}
    other = bringing_own(tmp_path / "a", files, own).run(tmp_path / "a" / "run")
    same = bringing_own(tmp_path / "b", files).run(tmp_path / "b" / "run")
    assert apart(adapter_of(other), adapter_of(same)) <= 1e-12
    assert data_fault(load_scenario("quickstart", {
        "task.kind": "text-classification", "task.base": "builtin:bert-words",
        "task.data": str(folder / "0.csv"), "task.test": str(folder / "0.csv"),
        "task.labels": names}).task) is None  # fmt: skip


@pytest.mark.parametrize("method", ["fedavg", "fed-sb", "fedex-lora", "fedsvd"])
def test_a_server_without_data_and_weights_aggregates_alike(tmp_path, files, method, monkeypatch):
    of = {"strategy__name": method, "adapter__init_examples": 4}
    full = bringing_own(tmp_path / "a", files, **of).run(tmp_path / "a" / "run")
    made, loaded = bringing_own(tmp_path / "b", files, test=None, **of), []
    plain = load.load_shapes
    monkeypatch.setattr(
        load, "load_shapes", lambda *given: loaded.append(plain(*given)) or loaded[0]
    )
    bare = made.run(tmp_path / "b" / "run")
    assert apart(adapter_of(bare), adapter_of(full)) == 0.0
    parameters = dict(loaded[0].model.named_parameters())
    with_values = [name for name, tensor in parameters.items() if not tensor.is_meta]
    assert all("lora_" in name or "classifier" in name for name in with_values)
    assert [line["eval"] for line in bare.metrics] == [{}, {}]
    assert bare.summary["final"] == {}


def test_what_a_server_without_weights_cannot_do_is_refused(tmp_path, files):
    made = bringing_own(tmp_path, files, test=None, run__early_stopping={"patience": 2})
    with pytest.raises(
        ScenarioError, match=r"neither data nor weights of the base; give task\.test"
    ):
        made.run(tmp_path / "run")


def test_shapes_and_head_are_those_of_the_loaded_base(files):
    for base, kind in (("builtin:bert-words", "text-classification"),
                       ("builtin:vit-letters", "image-classification"),
                       ("builtin:llama-words", "causal-lm")):  # fmt: skip
        labels = files[1] if kind != "causal-lm" else None
        task, classes = (
            TaskSection(kind=kind, base=base, data="clients", labels=labels),
            labels or [],
        )
        shapes, whole = load_shapes(task, classes), load_base(task, classes)
        assert (shapes.head, shapes.fresh) == (whole.head, whole.fresh)
        for name, tensor in whole.model.named_parameters():
            found = shapes.model.get_parameter(name)
            assert found.shape == tensor.shape
            inside = name.split(".")[0] in whole.head
            assert found.is_meta != inside
            assert not inside or name in whole.fresh or torch.equal(found, tensor)


@pytest.mark.parametrize(
    "text",
    [
        "text,label\nsecret word,card,\n",
        "text,label\nsecret word,\n",
        "text,label\nb,card\nsecret word\n",
        'text,label\n"secret word,card\n',
        "text,text\nsecret word,card\n",
    ],
)
def test_what_is_refused_of_a_clients_file_stays_in_its_own_log(tmp_path, files, text, caplog):
    (tmp_path / "odd.csv").write_text(text)
    with caplog.at_level("WARNING", "fedtune.trainer"):
        fault = data_fault(load_scenario("quickstart", {
            "task.kind": "text-classification", "task.data": str(tmp_path / "odd.csv"),
            "task.test": str(tmp_path / "odd.csv"), "task.labels": files[1]}).task)  # fmt: skip
    assert fault == "its data cannot be read, or are empty; its own log says more"
    assert "odd.csv, line " in caplog.text


def test_an_answer_about_labels_is_the_same_however_many_do_not_fit(tmp_path, files):
    folder, names, _ = files
    found = set()
    for count in (1, 3):
        (folder / "odd.csv").write_text("text,label\n" + "a word,unknown\n" * count + "b,card\n")
        found.add(data_fault(load_scenario("quickstart", {
            "task.kind": "text-classification", "task.data": str(folder / "odd.csv"),
            "task.test": str(folder / "odd.csv"), "task.labels": names}).task))  # fmt: skip
    assert len(found) == 1
