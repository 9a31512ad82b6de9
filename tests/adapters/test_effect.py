"""Keys of `[adapter]` act or are refused; a kind that adapts no layer needs none."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import PeftModel

from fedtune.adapters.layout import load_tensors
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.probe import choose_backend
from fedtune.cohort.together import CohortBackend
from fedtune.errors import Incompatible, ScenarioError
from fedtune.runs.saving import save_adapter
from fedtune.scenario.loading import validate
from fedtune.scenario.local import LocalSection
from tests.cohort import kit


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"exclude_modules": ["nosuch"]}, "'nosuch' keeps nothing out; it matches none of the 4"),
        ({"exclude_modules": ["fc1"]}, "'fc1' keeps nothing out"),
        ({"exclude_modules": ["proj"]}, "'proj' keeps nothing out"),
        ({"exclude_modules": "q_proj"}, "'q_proj' keeps nothing out"),
        ({"exclude_modules": ["v_proj", "nosuch"]}, "'nosuch' keeps nothing out"),
        ({"exclude_modules": r".*\.layers\.7\..*"}, "keeps nothing out"),
        ({"targets": "all-linear", "exclude_modules": ["fc3"]}, "'fc3' keeps nothing out"),
        ({"targets": ".*fc1", "exclude_modules": ["q_proj"]}, "'q_proj' keeps nothing out"),
        (
            {"layers_to_transform": [0], "exclude_modules": ["layers.1.attention.q_proj"]},
            "keeps nothing out",
        ),
    ],
)
def test_what_is_excluded_and_no_target_is_refused_by_name(adapter, said):
    with pytest.raises(ScenarioError, match=said) as error:
        kit.adapted(**adapter)
    assert "adapter.exclude_modules" in str(error.value)


@pytest.mark.parametrize(
    ("adapter", "left"),
    [
        ({"exclude_modules": ["v_proj"]}, 2),
        ({"exclude_modules": r".*layers\.1\..*"}, 2),
        ({"exclude_modules": ["vit.layers.0.attention.q_proj"]}, 3),
        ({"exclude_modules": [], "targets": ["q_proj", "v_proj"]}, 4),
        ({"targets": "all-linear", "exclude_modules": ["fc1", "fc2"]}, 8),
        ({"targets": r".*(q_proj|fc1)", "exclude_modules": ["fc1"]}, 2),
    ],
)
def test_what_is_excluded_is_not_adapted(adapter, left):
    layers = [s.name for s in kit.adapted(**adapter).layout.specs if s.role == "A"]
    assert len(layers) == left


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_a_saved_module_of_a_frozen_head_is_refused(kind):
    with pytest.raises(Incompatible, match=r"modules_to_save: 'classifier' is of the head"):
        kit.adapted(kind=kind, head="frozen", modules_to_save=["layernorm", "classifier"])
    for head in ("shared", "local"):  # there it is trained, as the key says
        layout = kit.adapted(kind=kind, head=head, modules_to_save=["classifier"]).layout
        assert [s.trained for s in layout.specs if s.role == "head"] == [True, True]


def test_a_saved_module_without_parameters_is_refused():
    with pytest.raises(ScenarioError, match=r"modules_to_save: 'dropout' has no parameters"):
        kit.adapted(kind="none", modules_to_save=["dropout"])


@pytest.mark.parametrize("head", ["shared", "frozen", "local"])
def test_without_an_adapter_saved_modules_are_trained_and_sent(head):
    made = kit.adapted(kind="none", head=head, modules_to_save=["layernorm"])
    saved = [s for s in made.layout.specs if s.role == "saved"]
    assert len(saved) == 2
    assert all(s.trained and s.sent for s in saved)
    assert {s.role for s in made.layout.specs} == {"saved", "head"}
    assert {s.role for s in made.layout.sent} == {"saved"} | (
        {"head"} if head == "shared" else set()
    )


@pytest.mark.parametrize("model", [kit.vit, kit.gpt2])
@pytest.mark.parametrize("head", ["shared", "frozen"])
def test_without_an_adapter_the_backends_train_alike(model, head):
    saved = ["layernorm"] if model is kit.vit else ["ln_f", "c_fc"]
    found = []
    for make in (CohortBackend, SequentialBackend):
        local = LocalSection(epochs=1, batch_size=4, lr=0.01)
        setting = kit.setting(model, local, kind="none", head=head, modules_to_save=saved)
        works = kit.works(setting, sizes=(3, 5))
        found.append(kit.change(setting, make(setting).train(works, 1), works))
    for client in found[0]:
        assert kit.distance(found[0][client], found[1][client]) < 1e-8


@pytest.mark.parametrize(
    "sections",
    [
        {"task": {"head": "frozen"}},
        {"task": {"head": "local"}},
        {"task": {"kind": "causal-lm", "base": "builtin:llama-words", "data": "builtin:sums"}},
    ],
)
def test_a_scenario_without_an_adapter_or_head_to_send_needs_saved_modules(sections):
    with pytest.raises(Incompatible, match=r'adapter\.kind = "none"'):
        validate({**sections, "adapter": {"kind": "none"}})
    validate({**sections, "adapter": {"kind": "none", "modules_to_save": ["norm"]}})


@pytest.mark.parametrize("model", [kit.convnext, kit.resnet])
def test_a_base_without_attention_has_its_head_trained(model):
    with pytest.raises(ScenarioError, match=r"adapter.targets = 'auto'"):
        kit.adapted(model)
    setting = kit.setting(model, kind="none")
    assert [s.role for s in setting.layout.specs] == ["head", "head"]
    backend, reason = choose_backend(setting, "cohort", np.arange(8))
    assert (backend.name, reason) == ("cohort", None)


def test_without_an_adapter_what_is_said_of_layers_has_no_use():
    """So that kinds can be compared with all else equal."""
    plain = kit.adapted(kind="none")
    said = kit.adapted(
        kind="none", targets=["fc1"], exclude_modules=["fc2"], rank_pattern={"fc1": 2},
        layers_to_transform=[1], layers_pattern="layers", alpha_pattern={"fc1": 2.0},
    )  # fmt: skip
    assert said.layout == plain.layout
    assert all(torch.equal(said.initial[name], tensor) for name, tensor in plain.initial.items())


@pytest.mark.parametrize(
    ("model", "saved"),
    [
        (kit.vit, []),
        (kit.convnext, ["layernorm"]),
        (kit.resnet, []),
        (kit.resnet, ["normalization"]),
    ],
)
def test_peft_loads_what_a_kind_without_layers_saves(model, saved, tmp_path):
    made = kit.adapted(model, kind="none", dtype=torch.float32, modules_to_save=saved)
    final = {name: tensor + 0.1 for name, tensor in made.initial.items()}
    save_adapter(made, final, tmp_path / "adapter", "image-classification")
    load_tensors(made.model, made.layout.specs, final)
    torch.manual_seed(3)  # as kit.adapted draws it
    base = model()
    x = torch.randn(2, 1, 8, 8)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        wanted = made.model(pixel_values=x).logits
        assert torch.equal(loaded(pixel_values=x).logits, wanted)
        assert torch.equal(loaded.merge_and_unload()(pixel_values=x).logits, wanted)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier", *saved]
