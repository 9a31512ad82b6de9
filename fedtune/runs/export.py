"""Results as other tools take them: a PEFT adapter, merged weights, local heads."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from fedtune.adapters.factors import truncated
from fedtune.adapters.layout import A, B
from fedtune.cohort.stacked import adapted_layers
from fedtune.errors import ScenarioError, first_line
from fedtune.files import write_atomically
from fedtune.runs.directory import RunDirectory
from fedtune.runs.export_check import check_export, hold_against, with_products
from fedtune.runs.saving import save_reader
from fedtune.tasks.bases import load_base
from fedtune.tasks.conv import ConvForImageClassification

FORMATS = ("both", "adapter", "merged")
BESIDE = ("README.md", "labels.json")  # what an adapter's own folder has beside PEFT's files
FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def shortened(directory: RunDirectory, folder: Path, rank: int, check: bool = True) -> float:
    """Write the best adapter of a rank for a run; gives the largest relative error of a layer.

    Args:
        check: whether what was written is loaded in plain PEFT and its outputs held against those
            of the base with the shortened products in its weights.

    Raises:
        ScenarioError: if the rank is not positive, or the run has no adapter.
    """
    if directory.scenario.task.kind == "least-squares" or directory.model.is_dir():
        raise ScenarioError("--rank: the run's result is not an adapter")
    if rank < 1:
        raise ScenarioError(f"--rank {rank}: must be at least 1")
    model = load_model(directory)
    assert isinstance(model, PeftModel)
    config = json.loads((directory.adapter / "adapter_config.json").read_text("utf-8"))
    tensors = load_file(directory.adapter / "adapter_model.safetensors")
    scaling = {name: s for name, (_, s) in adapted_layers(model).items()}
    if not scaling:
        raise ScenarioError("--rank: the run adapted no layer (adapter.kind = 'none')")
    errors = [0.0]
    for layer, own in scaling.items():
        b, a, error = truncated(own * tensors[layer + B], tensors[layer + A], rank)
        tensors[layer + B] = functional.pad(b, (0, rank - b.shape[1])).contiguous()
        tensors[layer + A] = functional.pad(a, (0, 0, 0, rank - len(a))).contiguous()
        errors.append(error)
    plain = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }
    text = json.dumps(config | plain, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "adapter_config.json", text.encode())
    write_atomically(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    for name in BESIDE:
        if (directory.adapter / name).is_file():
            write_atomically(folder / name, (directory.adapter / name).read_bytes())
    if check:
        products = {layer: tensors[layer + B] @ tensors[layer + A] for layer in scaling}
        with _in_a_line(directory):
            hold_against(directory, [folder], with_products(model, products))
    return max(errors)


@contextmanager
def _in_a_line(directory: RunDirectory) -> Iterator[None]:
    """Within it, whatever reading or loading raises is a `ScenarioError` of one line."""
    try:
        yield
    except FAULTS as error:
        raise ScenarioError(f"export of {str(directory.path)!r}: {first_line(error)}") from None


def load_model(directory: RunDirectory | str | Path) -> PeftModel | PreTrainedModel:
    """The run's result as a PEFT model on the CPU, ready to use; a whole model where it is one.

    Raises:
        ScenarioError: if the run has no result yet.
    """
    if not isinstance(directory, RunDirectory):
        directory = RunDirectory.open(Path(directory))
    if not directory.summary:
        raise ScenarioError(
            f"{str(directory.path)!r}: the run has not ended; go on with it by "
            f"fedtune run --resume {directory.path}"
        )
    scenario = directory.scenario
    if directory.model.is_dir():
        return ConvForImageClassification.from_pretrained(directory.model).eval()
    classes = directory.summary["classes"]
    base = load_base(scenario.task, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's of tied weights: `merged` takes care of them
        return PeftModel.from_pretrained(base.model, str(directory.adapter)).eval()


def export(directory: RunDirectory, out: Path, form: str, check: bool = True) -> list[Path]:
    """Write a run's result as an adapter, as merged weights, or both.

    With local heads there is no one model to merge, so `both` writes the adapter only.

    Args:
        form: one of `FORMATS`.
        check: whether what was written is loaded in plain PEFT and Transformers and its outputs
            held against the run's.

    Returns:
        The folders written.

    Raises:
        ScenarioError: if the run has no result yet, `form` is unknown, or what was written gives
            other outputs than the run's model.
    """
    if form not in FORMATS:
        raise ScenarioError(f"--format {form!r}: allowed: {', '.join(FORMATS)}")
    if directory.scenario.task.kind == "least-squares":
        raise ScenarioError(
            "export: a least-squares run has no model; its solution is in "
            f"{directory.adapter / 'adapter_model.safetensors'}"
        )
    if directory.model.is_dir():
        if form == "adapter":
            raise ScenarioError("--format 'adapter': the result is a whole model; use 'merged'")
        shutil.copytree(directory.model, out / "merged", dirs_exist_ok=True)
        return [out / "merged"]
    local = directory.scenario.task.head == "local"
    if local and form == "merged":
        raise ScenarioError("--format 'merged': every client has a head of its own; use 'adapter'")
    with _in_a_line(directory):
        written = _export(directory, out, "adapter" if local else form)
        if check:
            check_export(directory, written)
    return written


def _export(directory: RunDirectory, out: Path, form: str) -> list[Path]:
    model = load_model(directory)
    written = []
    if form in ("both", "adapter"):
        for file in sorted(directory.adapter.iterdir()):
            write_atomically(out / "adapter" / file.name, file.read_bytes())
        written.append(out / "adapter")
    if form in ("both", "merged"):
        assert isinstance(model, PeftModel)
        merged(model).save_pretrained(out / "merged")
        save_reader(directory.scenario.task, out / "merged")
        written.append(out / "merged")
    return written


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter in its weights, tied ones apart where one of them changed."""
    untie(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole: PreTrainedModel = model.merge_and_unload()
    apart(whole)
    return whole


def untie(model: PeftModel) -> None:
    """Give adapted layers weights of their own: added to a tied one, a change would show twice."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for layer, _ in adapted_layers(model).values():
        if owners[id(layer.weight)] > 1:
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def apart(model: PreTrainedModel) -> None:
    """Say in the configuration that a language head is not its embedding, where that is so."""
    outer = model.get_output_embeddings()
    if outer is not None and outer.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
