"""What a run begins as: the base itself, for every tensor that its checkpoint holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

import fedtune
from fedtune.adapters.wrap import Adapted, wrap
from fedtune.cohort.start import check_start
from fedtune.errors import ScenarioError
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Table
from fedtune.tasks.bases import load_base
from fedtune.tasks.language import CausalLM
from fedtune.tasks.shapes import load_shapes
from tests.cohort import kit
from tests.kits.families import DECODERS, FAMILIES, WORDS, save_family

LOADERS = {
    "text-classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
    "causal-lm": AutoModelForCausalLM,
}
CLASSES = ["a", "b", "c"]
LANGUAGE_HEAD = {"causal-lm": (["lm_head"],)}
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[tuple, str] = {}

    def folder(name: str, **given) -> str:
        key = (name, *sorted(given.items()))
        if key not in made:
            made[key] = save_family(name, tmp_path_factory.mktemp(name), **given)
        return made[key]

    return folder


def adapted(path: str, kind: str, saved, **section) -> Adapted:
    classes = CLASSES if kind != "causal-lm" else []
    text = {"text": "text"} if kind == "causal-lm" else {}
    base = load_base(TaskSection(kind=kind, base=path, data="x.csv", **text), classes)
    adapter = AdapterSection(modules_to_save=saved, rank=2, **section)
    return wrap(base, adapter, "lora", "shared", 0, torch.device("cpu"), torch.float32)


def plain(path: str, kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    given = {} if kind == "causal-lm" else {"num_labels": len(CLASSES)}
    return LOADERS[kind].from_pretrained(path, **given).eval()


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    if kind == "image-classification":
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=draw)}
    ids = torch.randint(5, len(WORDS), (1, 7), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


CASES = [
    (name, kind, saved)
    for name, family in FAMILIES.items()
    for kind in family.kinds
    for saved in (None, [family.saved], [family.norm], *LANGUAGE_HEAD.get(kind, ()))
]


@pytest.mark.parametrize(("name", "kind", "saved"), CASES)
def test_every_tensor_that_is_not_new_and_the_outputs_are_the_bases(folders, name, kind, saved):
    made, base = adapted(folders(name), kind, saved), plain(folders(name), kind)
    own = dict(base.named_parameters(remove_duplicate=False))
    assert isinstance(made.model, PeftModel)
    told = [spec for spec in made.layout.specs if spec.role in ("head", "saved")]
    assert saved is None or any(spec.role == "saved" for spec in told)
    for spec in told:
        inner = spec.name.removeprefix(PREFIX)
        if spec.name in made.fresh:
            own[inner].data.copy_(made.initial[spec.name])
        else:
            assert torch.equal(made.initial[spec.name], own[inner]), spec.name
            assert torch.equal(made.model.get_parameter(spec.parameter), own[inner]), spec.name
    inputs = inputs_of(kind)
    with torch.no_grad():
        torch.testing.assert_close(
            made.model(**inputs).logits, base(**inputs).logits, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_language_head_is_trained_from_the_embedding_that_it_is_tied_to(folders, name, tied):
    made = adapted(folders(name, tied=tied), "causal-lm", ["lm_head"])
    base = plain(folders(name, tied=tied), "causal-lm")
    (spec,) = [spec for spec in made.layout.specs if spec.role == "saved"]
    assert spec.trained
    assert torch.equal(made.initial[spec.name], base.get_output_embeddings().weight)


def test_a_scenario_with_a_saved_language_head_has_the_bases_loss_before_round_one(tmp_path):
    few = {
        "run.rounds": 1, "local.steps": 1, "task.train_examples": 40, "task.test_examples": 40,
        "clients.count": 4,
    }  # fmt: skip
    plainly = fedtune.run("sums", few, out=tmp_path / "plain")
    for saved in ("lm_head", "norm"):
        changes = {**few, "adapter.modules_to_save": [saved]}
        run = fedtune.run("sums", changes, out=tmp_path / saved)
        initial = run.summary["initial"]["loss"]
        assert initial == pytest.approx(plainly.summary["initial"]["loss"], abs=1e-6)


def test_a_module_with_its_own_copy_begins_alike_where_runs_share_a_base(tmp_path):
    """A library lends one base to several runs, each with copies of what it trains."""
    few = {
        "run.rounds": 1, "local.steps": 1, "task.train_examples": 40, "task.test_examples": 40,
        "clients.count": 4, "adapter.modules_to_save": ["lm_head"], "local.lr": 0.1,
    }  # fmt: skip
    found = [fedtune.run("sums", few, out=tmp_path / str(i)) for i in range(2)]
    assert found[0].summary["initial"] == found[1].summary["initial"]
    assert found[0].summary["final"] == found[1].summary["final"]


def test_a_pattern_may_be_anchored_at_the_start_of_a_name(folders):
    ranks = {"^model.layers.0.self_attn.q_proj": 5}
    made = adapted(folders("llama"), "causal-lm", None, rank_pattern=ranks)
    found = {s.name: s.shape[0] for s in made.layout.specs if s.role == "A"}
    assert [n for n, rank in found.items() if rank == 5] == [
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    ]


@pytest.mark.parametrize("saved", ["mlp.c_proj", "h.0.ln_1"])
def test_a_saved_module_is_named_by_the_end_of_its_name_as_peft_does(folders, saved):
    made = adapted(folders("gpt2"), "causal-lm", [saved])
    modules = {s.name.rpartition(".")[0] for s in made.layout.specs if s.role == "saved"}
    assert modules
    assert all(module.endswith(saved) for module in modules)


def test_a_name_that_ends_no_module_is_refused(folders):
    with pytest.raises(ScenarioError, match="no module's name ends in 'c_pro'"):
        adapted(folders("gpt2"), "causal-lm", ["c_pro"])


def _setting(made: Adapted):
    ids = inputs_of("causal-lm")["input_ids"].expand(4, -1)
    data = Table({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
    return replace(
        kit.setting(), adapted=made, data=data, objective=CausalLM(), dtype=torch.float32
    )


def test_a_model_that_begins_elsewhere_is_refused_by_the_tensors_name(folders):
    made = adapted(folders("llama"), "causal-lm", ["norm"])
    check_start(_setting(made), np.arange(2))
    spec = next(spec for spec in made.layout.specs if spec.role == "saved")
    with torch.no_grad():
        made.model.get_parameter(spec.parameter).fill_(1.0)
    with pytest.raises(ScenarioError, match=f"{spec.name} would begin"):
        check_start(_setting(made), np.arange(2))


def test_an_adapter_that_is_not_nothing_is_refused(folders):
    made = adapted(folders("llama"), "causal-lm", None)
    spec = next(spec for spec in made.layout.specs if spec.role == "B")
    with torch.no_grad():
        made.model.get_parameter(spec.parameter).fill_(0.1)
    with pytest.raises(ScenarioError, match="is not itself"):
        check_start(_setting(made), np.arange(2))


def test_a_server_without_weights_cannot_send_what_saved_modules_begin_as(folders):
    base = load_shapes(
        TaskSection(kind="causal-lm", base=folders("llama"), data="clients", text="text"), []
    )
    meta, section = torch.device("meta"), AdapterSection(modules_to_save=["norm"])
    with pytest.raises(ScenarioError, match=r"no weights of .*norm\.weight begins as"):
        wrap(base, section, "lora", "shared", 0, meta, torch.float32)


def test_rows_that_do_not_go_through_the_base_are_a_line(folders):
    made = adapted(folders("llama"), "causal-lm", None)
    setting = _setting(made)
    odd = Table({"input_ids": torch.full((4, 3), 10_000)}, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ScenarioError, match="the first rows do not go through LlamaForCausalLM"):
        check_start(replace(setting, data=odd), np.arange(2))


def test_layers_that_a_checkpoint_does_not_hold_are_told(tmp_path):
    path = save_family("bert", tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    task = TaskSection(kind="text-classification", base=path, data="x.csv")
    (note,) = load_base(task, CLASSES).notes
    assert "tensors of" in note
    assert "begin anew and are trained whole (bert.encoder.layer.2." in note
