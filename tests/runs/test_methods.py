"""Every method in whole runs: payload against the cards' table, resume, export, both engines."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import fedtune
from fedtune.adapters.ranked import bits_of
from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.checkpoints import load_checkpoint
from fedtune.runs.export import export, load_model, shortened
from fedtune.runs.loop import start_state
from fedtune.runs.settling import settle_paths
from fedtune.runs.strategies import strategy_names
from fedtune.scenario import load_scenario
from fedtune.tasks.bases import base_path
from tests.runs.kit import adapter_bytes, lines, small

NEW = [
    "fed-sb", "fedex-lora", "fedprox", "fedstale", "fedsvd", "fedvarp", "flag", "rolora",
    "scaffold",
]  # fmt: skip
WIDTH, INNER, MODULES, RANK, CLIENTS = 16, 24, 48, 2, 3


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder of 24 layers, two adapted modules in each, that are not square."""
    folder = tmp_path_factory.mktemp("encoder") / "vit"
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=MODULES // 2, num_attention_heads=2,
        intermediate_size=INNER, image_size=8, patch_size=4, num_channels=1, num_labels=10,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    builtin = base_path("builtin:vit-letters")
    shutil.copy(f"{builtin}/preprocessor_config.json", folder)
    return str(folder)


DOWN, UP = "down", "up"
PAIR = WIDTH + INNER
TABLE = {  # numbers per pair of modules (24 x 16 and 16 x 24), client and round: first, then
    "fedavg": {DOWN: (2 * RANK * PAIR,) * 2, UP: (2 * RANK * PAIR,) * 2},
    "ffa-lora": {DOWN: (RANK * PAIR,) * 2, UP: (RANK * PAIR,) * 2},
    "fedsvd": {DOWN: (2 * RANK * PAIR,) * 2, UP: (RANK * PAIR,) * 2},
    "fed-sb": {DOWN: (2 * RANK**2 + 2 * RANK * PAIR, 2 * RANK**2), UP: (2 * RANK**2,) * 2},
    "fedex-lora": {
        DOWN: (2 * RANK * PAIR, 2 * RANK * PAIR + (CLIENTS - 1) * 2 * RANK * PAIR),
        UP: (2 * RANK * PAIR,) * 2,
    },
    "rolora": {DOWN: (2 * RANK * PAIR, RANK * PAIR), UP: (RANK * PAIR,) * 2},
    "scaffold": {DOWN: (4 * RANK * PAIR,) * 2, UP: (4 * RANK * PAIR,) * 2},
    "fedprox": {DOWN: (2 * RANK * PAIR,) * 2, UP: (2 * RANK * PAIR,) * 2},
    "fedstale": {DOWN: (2 * RANK * PAIR,) * 2, UP: (2 * RANK * PAIR,) * 2},
    "fedvarp": {DOWN: (2 * RANK * PAIR,) * 2, UP: (2 * RANK * PAIR,) * 2},
    "fedavg-unbiased": {DOWN: (2 * RANK * PAIR,) * 2, UP: (2 * RANK * PAIR,) * 2},
    "flag": {DOWN: (RANK * PAIR,) * 2, UP: (RANK * PAIR,) * 2},
    "admm": {DOWN: (RANK * PAIR,) * 2, UP: (RANK * PAIR,) * 2},
    "rerce": {DOWN: (RANK * PAIR,) * 2, UP: (RANK * PAIR,) * 2},
}


def wide(encoder, **changes):
    return small(
        task__base=encoder, adapter__rank=RANK, task__head="frozen",
        clients__count=CLIENTS, clients__participation__value=1.0,
        clients__partition={"kind": "iid"}, local__steps=1, task__train_examples=96, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", [*TABLE, "frl"])
def test_payload_of_an_encoder_with_48_modules_is_the_cards_table(encoder, tmp_path, strategy):
    model = AutoModelForImageClassification.from_pretrained(encoder)
    chosen = [
        n for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and m.in_features != m.out_features and "classif" not in n
    ]  # fmt: skip
    assert len(chosen) == MODULES
    options = wide(encoder, strategy__name=strategy, adapter__targets=chosen)
    done = fedtune.run("quickstart", options, tmp_path / "run")
    if strategy == "frl":
        packed = [-(-2 * RANK * d * bits_of(2 * RANK * d) // 8) for d in (WIDTH, INNER)]
        expected = {way: (sum(packed),) * 2 for way in (DOWN, UP)}
        size = 1
    else:
        expected, size = TABLE[strategy], 4
    for way in (DOWN, UP):
        found = [line[f"bytes_{way}"] for line in done.metrics]
        assert found == [size * n * MODULES // 2 * CLIENTS for n in expected[way]], way
    planned = fedtune.plan("quickstart", options)
    for way in (DOWN, UP):
        assert getattr(planned, f"run_bytes_{way}") == sum(x[f"bytes_{way}"] for x in done.metrics)


def test_every_strategy_is_in_the_table():
    assert {*TABLE, "frl"} == set(strategy_names())


@pytest.mark.parametrize("strategy", NEW)
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, strategy):
    options = small(strategy__name=strategy, run__rounds=4, task__head="local")
    whole = fedtune.run("quickstart", options, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for file in (tmp_path / "cut" / "checkpoints").glob("round-000004*"):
        file.unlink()
    again = fedtune.resume(tmp_path / "cut")
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)
    for file in (tmp_path / "whole" / "clients").iterdir():
        assert (tmp_path / "cut" / "clients" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("strategy", ["fed-sb", "fedsvd", "fedex-lora", "rolora", "scaffold"])
def test_peft_loads_the_adapter_and_gives_the_runs_own_logits(tmp_path, strategy):
    done = fedtune.run("quickstart", small(strategy__name=strategy), tmp_path / "run")
    pixels = torch.randn(20, 1, 8, 8)
    made = build(done.scenario, done.read_partition())
    state = start_state(made, load_checkpoint(done.checkpoints))
    own = made.engine.backend.logits(state.arrays, {"pixel_values": pixels})
    base = json.loads((done.adapter / "adapter_config.json").read_text())
    model = AutoModelForImageClassification.from_pretrained(
        base["base_model_name_or_path"], num_labels=10
    )
    loaded = PeftModel.from_pretrained(model, done.adapter).eval()
    merged = AutoModelForImageClassification.from_pretrained(
        export(done, tmp_path / "out", "both")[1]
    ).eval()
    with torch.no_grad():
        for found in (loaded, merged):
            assert float((found(pixel_values=pixels).logits - own).abs().max()) <= 2e-5
    plain = start_state(made, None)
    assert any(not torch.equal(t, plain.arrays[n]) for n, t in state.arrays.items())


@pytest.mark.parametrize("strategy", ["fed-sb", "fedsvd", "rolora", "fedstale"])
def test_the_two_engines_agree_over_a_run(tmp_path, strategy):
    options = small(strategy__name=strategy, engine__precision="float64", run__rounds=3)
    together = fedtune.run("quickstart", options, tmp_path / "a")
    apart = fedtune.run("quickstart", {**options, "engine.kind": "sequential"}, tmp_path / "b")
    for a, b in zip(together.metrics, apart.metrics, strict=True):
        assert abs(a["eval"]["loss"] - b["eval"]["loss"]) <= 1e-6
        assert (a["bytes_down"], a["bytes_up"]) == (b["bytes_down"], b["bytes_up"])


def test_an_export_of_a_rank_is_the_best_of_it_and_says_what_it_loses(tmp_path):
    done = fedtune.run("quickstart", small(strategy__name="fedex-lora"), tmp_path / "run")
    whole, errors = effective(done.adapter), {}
    for rank in (2, 40, 64):
        errors[rank] = shortened(done, tmp_path / str(rank), rank)
        found, gaps = effective(tmp_path / str(rank)), []
        for layer, product in whole.items():
            values = torch.linalg.svdvals(product)
            left_out = float(values[rank:].norm() / values.norm())
            gap = float((found[layer] - product).norm() / product.norm())
            assert abs(gap - left_out) < 1e-5
            gaps.append(left_out)
        assert errors[rank] == pytest.approx(max(gaps), abs=1e-5)
    assert errors[2] > 0.01
    assert errors[64] < 1e-5
    with pytest.raises(ScenarioError, match="at least 1"):
        shortened(done, tmp_path / "none", 0)


def effective(folder):
    """s·B·A of each layer, of the files that PEFT loads, by its own rules for s."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    products = {}
    for name, b in tensors.items():
        if ".lora_B." in name:
            layer = name.removesuffix(".lora_B.weight").removeprefix("base_model.model.")
            keys = [k for k in config["alpha_pattern"] if k.replace("\\", "") == layer]
            alpha = config["alpha_pattern"][keys[0]] if keys else config["lora_alpha"]
            a = tensors[name.replace("lora_B", "lora_A")]
            products[layer] = (alpha / len(a) * b.double()) @ a.double()
    return products


def test_a_base_that_moves_is_exported_right_under_rslora_too(tmp_path):
    options = small(strategy__name="fedex-lora", adapter__use_rslora=True)
    done = fedtune.run("quickstart", options, tmp_path / "run")
    made = build(done.scenario, done.read_partition())
    state = start_state(made, load_checkpoint(done.checkpoints))
    batch = made.task.test.gather(torch.arange(20))
    own = made.engine.backend.logits(state.arrays, batch.inputs)
    with torch.no_grad():
        assert float((load_model(done)(**batch.inputs).logits - own).abs().max()) <= 2e-5


@pytest.mark.parametrize("kind", ["lora", "ffa", "lora-sb", "rank"])
def test_before_round_one_the_model_is_the_base(kind):
    strategy = {"lora": "fedavg", "ffa": "ffa-lora", "lora-sb": "fed-sb", "rank": "frl"}[kind]
    found = []
    for name in (strategy, "fedavg"):
        made = build(settle_paths(load_scenario("quickstart", small(strategy__name=name))))
        batch = made.task.test.gather(torch.arange(10))
        start = {n: t.clone() for n, t in made.adapted.initial.items()}
        found.append(made.engine.backend.logits(start, batch.inputs))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
