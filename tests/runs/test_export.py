"""Exports hold what the run made: by an evaluation of our own, by plain loading, by a check."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftModelForCausalLM,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import fedtune
from fedtune.cli.app import app
from fedtune.errors import ScenarioError
from fedtune.runs.export import export, shortened
from tests.kits.families import DECODERS, TEXT, WORDS, save_family
from tests.kits.plain_evaluation import assert_as_told
from tests.runs.kit import small
from tests.tasks.kit import as_csv

CLASSES = ("rain", "sun", "wind")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Short texts of three classes: a training and a test file."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)

    def rows(count):
        texts = (" ".join(draw.choices(WORDS[10:], k=draw.randint(3, 9))) for _ in range(count))
        return [{"text": text, "label": CLASSES[i % 3]} for i, text in enumerate(texts)]

    return as_csv(folder, "train.csv", rows(24)), as_csv(folder, "test.csv", rows(12))


def trained(tmp_path, data, name, kind, /, family=None, **changes):
    base = save_family(name, tmp_path / "base", **(family or {}))
    own = {
        "task.kind": kind, "task.base": base, "task.data": data[0], "task.test": data[1],
        "task.text": "text", "clients.count": 2, "clients.partition": {"kind": "iid"},
        "clients.participation.value": 1.0, "run.rounds": 1, "local.steps": 2, "local.lr": 0.02,
        "local.batch_size": 4, "adapter.rank": 2, "engine.threads": 1,
    }  # fmt: skip
    extra = {key.replace("__", "."): value for key, value in changes.items()}
    scenario = tmp_path / "blank.toml"
    scenario.write_text("[run]\n")
    return fedtune.run(scenario, {**own, **extra}, tmp_path / "run", pictures=False)


@pytest.mark.parametrize("name", TEXT)
def test_a_classifier_is_evaluated_alike_by_plain_transformers(tmp_path, data, name):
    done = trained(tmp_path, data, name, "text-classification")
    assert done.summary["final"] != done.summary["initial"]
    assert_as_told(done, data[1], export(done, tmp_path / "out", "both")[1])


@pytest.mark.parametrize(
    ("name", "saved"),
    [("modernbert", ["norm"]), ("roberta", ["dense"]), ("deberta-v2", ["dense"]),
     ("bert", ["layer.0", "dense"]), ("bert", ["LayerNorm", "layer.0"])],
)  # fmt: skip
def test_a_module_within_a_saved_one_is_trained_once_with_it(tmp_path, data, name, saved):
    done = trained(tmp_path, data, name, "text-classification", adapter__modules_to_save=saved)
    held = load_file(done.adapter / "adapter_model.safetensors")
    assert done.summary["parameters_trained"] == sum(t.numel() for t in held.values())
    heads = {n: t for n, t in held.items() if "dense.bias" in n and ".encoder." not in n}
    assert all(bool(tensor.any()) for tensor in heads.values())
    assert_as_told(done, data[1], export(done, tmp_path / "out", "both")[1])


def test_an_export_that_cannot_be_compared_says_so(tmp_path, data):
    done = trained(tmp_path, data, "llama", "causal-lm")
    shutil.rmtree(done.checkpoints)
    with pytest.warns(UserWarning, match="no checkpoint to compare the export with"):
        export(done, tmp_path / "out", "both")


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_evaluated_alike_by_plain_transformers(tmp_path, data, name):
    done = trained(tmp_path, data, name, "causal-lm")
    assert_as_told(done, data[1], export(done, tmp_path / "out", "merged")[0])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize(
    "adapter",
    [
        {"adapter__targets": ["lm_head"]},
        {"adapter__modules_to_save": ["lm_head"]},
        {"adapter__modules_to_save": ["wte", "embed_tokens"]},
        {"adapter__targets": ["lm_head"], "strategy__name": "fedex-lora"},
    ],
)
def test_a_language_head_tied_to_its_embedding_is_merged_apart(tmp_path, data, name, adapter):
    saved = adapter.get("adapter__modules_to_save", [])
    if len(saved) == 2:
        adapter = {"adapter__modules_to_save": [saved[0] if name == "gpt2" else saved[1]]}
    done = trained(tmp_path, data, name, "causal-lm", {"tied": True}, local__lr=0.1, **adapter)
    assert_as_told(done, data[1], export(done, tmp_path / "out", "merged")[0])


def test_an_export_that_gives_other_outputs_is_refused_unless_it_is_not_checked(tmp_path, data):
    done = trained(tmp_path, data, "llama", "causal-lm")
    file = done.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t * (1.01 if "lora_B" in n else 1.0) for n, t in tensors.items()}, file)
    with pytest.raises(ScenarioError, match="gives other outputs than the run's"):
        export(done, tmp_path / "out", "both")
    told = CliRunner().invoke(app, ["export", str(done.path), "--no-check"])
    assert told.exit_code == 0


def test_an_adapter_of_a_rank_is_held_against_the_shortened_products(tmp_path, data, monkeypatch):
    done = trained(
        tmp_path, data, "gpt2", "causal-lm", {"tied": True}, adapter__targets=["lm_head"]
    )
    assert 0 < shortened(done, tmp_path / "one", 1) < 1
    for name in ("README.md", "labels.json"):
        assert (tmp_path / "one" / name).exists() == (done.adapter / name).exists()
    monkeypatch.setattr("fedtune.runs.export_check.TOLERANCE", -1.0)
    with pytest.raises(ScenarioError, match="gives other outputs"):
        shortened(done, tmp_path / "other", 1)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_pefts_auto_class_of_a_classifier_loads_the_adapter(tmp_path, data, name):
    done = trained(tmp_path, data, name, "text-classification")
    labels = json.loads((done.adapter / "labels.json").read_text())
    names = dict(enumerate(labels))
    model = AutoPeftModelForSequenceClassification.from_pretrained(done.adapter, id2label=names)
    assert model.get_base_model().config.id2label == dict(enumerate(done.summary["classes"]))
    own = fedtune.load_model(done)
    ids = torch.tensor([[12, 13, 14]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, own(ids).logits)


def test_transformers_own_loading_of_an_adapter_takes_the_folder(tmp_path, data):
    done = trained(tmp_path, data, "llama", "causal-lm")
    model = AutoModelForCausalLM.from_pretrained(done.adapter).eval()
    assert isinstance(AutoPeftModelForCausalLM.from_pretrained(done.adapter), PeftModelForCausalLM)
    ids = torch.tensor([[12, 13, 14]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, fedtune.load_model(done)(ids).logits)


def test_pefts_auto_class_finds_the_base_of_an_image_classifier(tmp_path):
    done = fedtune.run("quickstart", small(run__rounds=1), tmp_path / "run", pictures=False)
    model = AutoPeftModel.from_pretrained(done.adapter, num_labels=10)
    pixels = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        found = model.eval()(pixel_values=pixels).logits
        torch.testing.assert_close(found, fedtune.load_model(done)(pixel_values=pixels).logits)
