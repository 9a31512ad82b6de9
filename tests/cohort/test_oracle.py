"""One client, one round is plain PEFT training with a hand-written loop on the same batches."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model_state_dict
from torch.func import functional_call

from fedtune.cohort.together import CohortBackend
from fedtune.scenario.local import LocalSection
from tests.cohort import kit


@pytest.mark.parametrize("kind", ["lora", "ffa"])
def test_one_client_is_plain_peft_training(kind):
    local = LocalSection(epochs=2, batch_size=4, optimizer="adamw", lr=0.01, weight_decay=0.1)
    setting = kit.setting(kit.bert, local, kind=kind)
    model = copy.deepcopy(setting.adapted.model)
    work = kit.works(setting, sizes=(11,), state=kit.stirred(setting))[0]
    result = CohortBackend(setting).train([work], 1)[0]

    before = {**setting.adapted.initial, **work.state}
    names = {spec.parameter: spec.name for spec in setting.layout.specs}
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.data.copy_(before[names[name]])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    for step in work.steps:
        rows = torch.from_numpy(step[0])
        inputs = {k: v[rows] for k, v in setting.data.inputs.items()}
        logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits, setting.data.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    after = get_peft_model_state_dict(model)
    assert set(after) == {spec.name for spec in setting.layout.specs}
    for name, tensor in result.tensors.items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-9, atol=1e-12)
    for spec in setting.layout.frozen:
        assert torch.equal(after[spec.name].float(), setting.adapted.initial[spec.name])


def test_plain_sgd_follows_the_same_products_when_scale_and_rate_trade():
    """FFA with plain SGD: (s, η) → (c·s, η/c²) leaves the trajectory of s·B·A unchanged."""
    changes = []
    for alpha, lr in ((6.0, 0.09), (18.0, 0.01)):
        local = LocalSection(epochs=3, batch_size=4, optimizer="sgd", lr=lr)
        setting = kit.setting(local=local, kind="ffa", head="frozen", alpha=alpha)
        start = {s.name: setting.adapted.initial[s.name].double() for s in setting.layout.trained}
        works = kit.works(setting, state=start)
        results = CohortBackend(setting).train(works, 1)
        moved = kit.change(setting, results, works)
        changes.append({c: alpha / 3.0 * change for c, change in moved.items()})
    for client in changes[0]:
        assert kit.distance(changes[0][client], changes[1][client]) < 1e-9


def test_one_client_of_lora_sb_is_training_r_by_hand():
    """W + B·R·A put into the plain base by hand, R differentiated, torch's own AdamW."""
    local = LocalSection(epochs=2, batch_size=4, optimizer="adamw", lr=0.01, weight_decay=0.1)
    torch.manual_seed(3)
    base = kit.vit().double().eval()
    setting = kit.setting(kit.vit, local, kind="lora-sb", head="frozen")
    plain = dict(base.named_parameters())
    head = {
        n: setting.adapted.initial[f"base_model.model.{n}"].double()
        for n in plain
        if n.startswith("classifier")
    }
    work = kit.works(setting, sizes=(11,), state=kit.stirred(setting))[0]
    result = CohortBackend(setting).train([work], 1)[0]

    frames = {
        name.removeprefix("base_model.model.").removesuffix(".lora_R.weight"): (
            setting.adapted.initial[name.replace("lora_R", "lora_B")].double(),
            start.clone().requires_grad_(),
            setting.adapted.initial[name.replace("lora_R", "lora_A")].double(),
        )
        for name, start in work.state.items()
    }
    optimizer = torch.optim.AdamW([r for _, r, _ in frames.values()], lr=0.01, weight_decay=0.1)
    for step in work.steps:
        rows = torch.from_numpy(step[0])
        weights = {
            f"{n}.weight": plain[f"{n}.weight"] + b @ r @ a for n, (b, r, a) in frames.items()
        }
        out = functional_call(
            base,
            {**weights, **head},
            kwargs={"pixel_values": setting.data.inputs["pixel_values"][rows]},
        )
        loss = torch.nn.functional.cross_entropy(out.logits, setting.data.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer, (_, r, _) in frames.items():
        found = result.tensors[f"base_model.model.{layer}.lora_R.weight"]
        assert (
            kit.distance(
                found - work.state[f"base_model.model.{layer}.lora_R.weight"],
                r.detach() - work.state[f"base_model.model.{layer}.lora_R.weight"],
            )
            < 1e-8
        )
