"""`[adapter]` is `LoraConfig`: every field of it is honoured or refused by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig

from fedtune.adapters.config import DETECTED, PASSED_ON, RENAMED, lora_config
from fedtune.adapters.initial import initial_tensors
from fedtune.adapters.layout import Layout, TensorSpec
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.together import CohortBackend
from fedtune.errors import ScenarioError
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.local import LocalSection
from tests.cohort import kit


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(LoraConfig)])
def test_every_field_of_loraconfig_is_honoured_or_refused_by_name(name):
    if name in PASSED_ON:
        assert name in AdapterSection.model_fields
        return
    section = AdapterSection.model_validate({"rank": 2, name: None})
    with pytest.raises(ScenarioError, match=f"adapter.{name}"):
        lora_config(section, kit.vit(), [])


def test_the_renamed_fields_arrive():
    section = AdapterSection(rank=5, alpha=7.0, dropout=0.1, targets=["fc1"])
    made = lora_config(section, kit.vit(), ["classifier"])
    assert (made.r, made.lora_alpha, made.lora_dropout) == (5, 7.0, 0.1)
    assert made.target_modules == {"fc1"}
    assert made.modules_to_save == ["classifier"]
    assert set(RENAMED) | set(PASSED_ON) | set(DETECTED) <= {
        f.name for f in dataclasses.fields(LoraConfig)
    }


@pytest.mark.parametrize("model", [kit.vit, kit.bert, kit.gpt2])
def test_auto_finds_the_attention_projections(model):
    layout = kit.adapted(model).layout
    assert len([s for s in layout.specs if s.role == "A"]) >= 2


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"targets": ["nothing"]}, "No modules were targeted"),
        ({"targets": ["projection"]}, "Conv2d; targets must be linear"),
        ({"targets": ["layernorm"]}, "linear layers of this model"),
        ({"targets": ["q_proj", "nonexist"]}, "nothing is called 'nonexist'"),
        ({"layers_to_transform": [0, 99]}, "layers_to_transform"),
    ],
)
def test_targets_that_cannot_work_are_one_line(adapter, said):
    with pytest.raises(ScenarioError, match=said):
        kit.adapted(**adapter)


@pytest.mark.parametrize(
    "adapter",
    [
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc1": 9.0}, "targets": ["fc1", "q_proj"]},
        {"use_rslora": True, "layers_to_transform": [1], "layers_pattern": "layers"},
        {"targets": "all-linear", "exclude_modules": ["fc2"]},
        {"modules_to_save": ["layernorm"]},
    ],
)
def test_passed_on_fields_train_alike_in_both_backends(adapter):
    local = LocalSection(epochs=1, batch_size=4, lr=0.01)
    found = []
    for make in (CohortBackend, SequentialBackend):
        setting = kit.setting(local=local, **adapter)
        works = kit.works(setting)
        found.append(kit.change(setting, make(setting).train(works, 1), works))
    for client in found[0]:
        assert kit.distance(found[0][client], found[1][client]) < 1e-8


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"layers_pattern": "layer"}, "adapter"),
        ({"targets": "["}, "adapter"),
        ({"modules_to_save": ["nosuch"]}, "adapter.modules_to_save"),
        ({"rank_pattern": {"nosuch": 2}}, "adapter.rank_pattern"),
    ],
)
def test_patterns_that_cannot_work_are_one_line(adapter, said):
    with pytest.raises(ScenarioError, match=said):
        kit.adapted(**adapter)


@pytest.mark.parametrize("saved", [["layernorm"], ["fc2"], ["vit.layers.0.mlp"]])
@pytest.mark.parametrize("head", ["shared", "frozen", "local"])
def test_saved_modules_keep_their_pretrained_weights_and_are_trained_and_sent(saved, head):
    made = kit.adapted(modules_to_save=saved, head=head, seed=3)
    torch.manual_seed(3)
    base = dict(kit.vit().named_parameters())
    specs = [s for s in made.layout.specs if s.role == "saved"]
    assert specs
    for spec in specs:
        assert spec.trained
        assert spec.sent
        plain = base[spec.name.removeprefix("base_model.model.")]
        assert torch.equal(made.initial[spec.name], plain.detach())


def test_a_new_normalisation_layer_of_a_head_starts_as_the_identity():
    specs = (
        TensorSpec("head.norm.weight", "", (4,), "head", True, True),
        TensorSpec("head.norm.bias", "", (4,), "head", True, True),
    )
    made = initial_tensors(Layout(specs), 0, {}, 0.02)
    assert made["head.norm.weight"].tolist() == [1.0] * 4
    assert made["head.norm.bias"].tolist() == [0.0] * 4


def test_only_b_is_trained_under_ffa_and_a_differs_by_layer():
    made = kit.adapted(kind="ffa")
    assert {s.role for s in made.layout.trained} == {"B", "head"}
    assert {s.role for s in made.layout.sent} == {"B", "head"}
    factors = [made.initial[s.name] for s in made.layout.frozen]
    assert all(not torch.equal(a, b) for i, a in enumerate(factors) for b in factors[:i])
    for factor in factors:
        assert float(factor.abs().max()) <= factor.shape[1] ** -0.5


@pytest.mark.parametrize("head", ["shared", "frozen", "local"])
def test_the_head_policy_decides_what_is_trained_and_sent(head):
    layout = kit.adapted(head=head).layout
    trained = any(s.role == "head" for s in layout.trained)
    sent = any(s.role == "head" for s in layout.sent)
    assert (trained, sent) == {
        "shared": (True, True),
        "frozen": (False, False),
        "local": (True, False),
    }[head]
    assert [s.role for s in layout.kept] == (["head", "head"] if head == "local" else [])


def test_the_adapter_starts_as_the_base_and_the_same_for_equal_seeds():
    made, again, other = kit.adapted(seed=1), kit.adapted(seed=1), kit.adapted(seed=2)
    x = kit.table().inputs["pixel_values"][:5]
    with torch.no_grad():
        with_adapter = made.model(pixel_values=x).logits
        with made.model.disable_adapter():
            hidden = made.model.base_model.model.vit(x).last_hidden_state[:, 0]
        head = [made.initial[s.name].double() for s in made.layout.specs if s.role == "head"]
        base = hidden @ head[0].T + head[1]
    torch.testing.assert_close(with_adapter, base)
    for name, tensor in made.initial.items():
        assert torch.equal(tensor, again.initial[name])
    assert any(not torch.equal(t, other.initial[n]) for n, t in made.initial.items())


def test_flatten_and_split_are_inverses():
    made = kit.adapted()
    tensors = {s.name: torch.randn(s.shape) for s in made.layout.trained}
    flat = made.layout.flatten(tensors)
    assert flat.shape == (made.layout.width,)
    for name, tensor in made.layout.split(flat.expand(3, -1)).items():
        assert torch.equal(tensor[1], tensors[name])
