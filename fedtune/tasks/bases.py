"""Base models and their tokenizers: a hub name, a local folder or `builtin:`, loaded alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from fedtune.adapters.scratch import SCRATCH
from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import CONV, TaskSection
from fedtune.tasks.attention import attend_quickly
from fedtune.tasks.conv import ConvForImageClassification
from fedtune.tasks.heads import (
    body_notes,
    head_fits,
    head_notes,
    head_of,
    in_head,
    label_tensors,
    names_in,
    with_missing,
)
from fedtune.tasks.lengths import padding_places

WEIGHTS, CONFIG = "model.safetensors", "config.json"
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
MODELS = {
    "image-classification": (AutoModelForImageClassification, "pixel_values"),
    "text-classification": (AutoModelForSequenceClassification, "input_ids"),
    "causal-lm": (AutoModelForCausalLM, "input_ids"),
}


def base_path(source: str) -> str:
    """What `from_pretrained` takes for a scenario's `task.base`.

    A `builtin:` model lies beside the code; where that is a Flower bundle, which holds no weights,
    the one of an installed fedtune serves.

    Raises:
        ScenarioError: if a `builtin:` model or a local folder does not exist, or holds no weights.
    """
    if not source.startswith("builtin:"):
        folder = Path(source).expanduser()
        if source.startswith((".", "/", "~")) and not folder.is_dir():
            raise ScenarioError(f"task.base = {source!r}: no such folder")
        return str(folder) if folder.is_dir() else source
    name = source.removeprefix("builtin:")
    needed = CONFIG if source == CONV else WEIGHTS
    beside = Path(str(resources.files("fedtune") / "builtin"))
    folders = [beside, *(Path(place) / "fedtune" / "builtin" for place in sys.path)]
    for folder in folders:
        if (folder / name / needed).is_file():
            return str(folder / name)
    names = sorted({file.parent.name for folder in folders for file in folder.glob(f"*/{WEIGHTS}")})
    if not names:
        raise ScenarioError(
            f"task.base = {source!r}: its weights are not in {beside}; a Flower bundle cannot hold "
            "weights: install fedtune on this machine, or name a folder or a hub model"
        )
    allowed = ", ".join(f"builtin:{n}" for n in names)
    raise ScenarioError(f"task.base = {source!r}: allowed: {allowed}, a folder or a hub name")


def base_folder(base: str) -> Path:
    """The folder of a base on this machine; nothing is fetched.

    Raises:
        ScenarioError: if it is not here.
    """
    folder = Path(base_path(base))
    if folder.is_dir():
        return folder
    try:
        return Path(str(cached_file(str(base), CONFIG, local_files_only=True))).parent
    except OSError as error:
        raise ScenarioError(f"base = {base!r}: {first_line(error)}") from None


def pretrained(loader: Any, path: str, files: tuple[str, ...] = (), **given: Any) -> Any:
    """`loader.from_pretrained(path)`; the hub is asked only for what is not on this machine.

    Args:
        files: patterns of which a folder must hold one to be loaded from; for loaders that make do
            without (a tokenizer from a configuration alone knows no words).

    Raises:
        OSError: if it cannot be had.
    """
    with suppress(ScenarioError, OSError):
        folder = base_folder(path)
        if not files or any(found for pattern in files for found in folder.glob(pattern)):
            return loader.from_pretrained(str(folder), **given)
    return loader.from_pretrained(path, **given)


def load_base(task: TaskSection, classes: list[str]) -> PretrainedBase:
    """The base model of a task, float32 on the CPU, with a head for the classes.

    Args:
        task: the scenario's `[task]`.
        classes: names of the classes; none for causal-lm.

    Raises:
        ScenarioError: if it cannot be loaded, or is no model for this kind of task.
    """
    path = base_path(task.base)
    if _is_untrained(path):
        return _random(path, classes)
    auto, takes = MODELS[task.kind]
    try:
        with quiet():
            model, info = pretrained(
                auto,
                path,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                **labels_of(task, classes),
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ScenarioError(f"task.base = {task.base!r}: {first_line(error)}") from None
    attend_quickly(model)
    missing, other = set(info["missing_keys"]), {key[0] for key in info["mismatched_keys"]}
    if model.main_input_name != takes:
        raise _unfit(task, model, f"takes {model.main_input_name}, not {takes}")
    if task.kind == "causal-lm":
        if fresh := missing | other:
            raise _unfit(task, model, f"its checkpoint misses {min(fresh)}")
        return PretrainedBase(model, [], frozenset(), path)
    if task.kind == "text-classification" and not padding_places(model):
        model.config.pad_token_id = load_tokenizer(task.base).pad_token_id
    head, fresh, notes = settled_head(task, classes, model, missing, other)
    if not head:
        raise _unfit(task, model, "has no head of its own")
    notes += body_notes(task.base, head, fresh)
    return PretrainedBase(model, with_missing(head, fresh), frozenset(fresh), path, notes)


def settled_head(
    task: TaskSection,
    classes: list[str],
    model: PreTrainedModel,
    missing: set[str],
    other: set[str],
) -> tuple[list[str], set[str], tuple[str, ...]]:
    """The modules of a classifier's head, the parameters that begin anew, and lines about it.

    Args:
        task: names the base.
        classes: names of the classes.
        model: loaded, or on the meta device.
        missing, other: parameters that the checkpoint does not hold, or in another shape.
    """
    own, path, auto = names_of_base(task), base_path(task.base), MODELS[task.kind][0]

    def build(count: int) -> PreTrainedModel:
        names = labels_of(task, [str(number) for number in range(count)])
        with quiet():
            return auto.from_config(pretrained(AutoConfig, path, **names))

    if not head_fits(own, classes, task.labels is not None):
        other = other | label_tensors(build, len(classes))
    fresh = missing | other
    head = head_of(model, fresh)
    held = {n for n, _ in model.named_parameters() if in_head(n, head)} - missing
    notes = head_notes(task.base, own, classes, task.labels, bool(held & other)) if held else []
    return head, fresh, tuple(notes)


def names_of_base(task: TaskSection) -> list[str]:
    """What the outputs of a base's head are called; none where that cannot be known.

    Raises:
        ScenarioError: for a configuration whose names are no object of numbers and names.
    """
    try:
        with quiet():
            return names_in(pretrained(AutoConfig, base_path(task.base)))
    except (ScenarioError, OSError, ValueError):
        return []
    except (AttributeError, TypeError) as error:
        raise ScenarioError(
            f"task.base = {task.base!r}: {CONFIG} cannot be read ({first_line(error)}); id2label "
            'is an object like {"0": "rain", "1": "sun"}'
        ) from None


def labels_of(task: TaskSection, classes: list[str]) -> dict[str, Any]:
    """What a base's configuration is told of the classes."""
    if task.kind == "causal-lm":
        return {}
    names = dict(enumerate(classes))
    ids = {name: i for i, name in names.items()}
    return {"id2label": names, "label2id": ids, "num_labels": len(classes)}


def _is_untrained(path: str) -> bool:
    """Whether a folder describes a network like `builtin:conv`, without weights."""
    described = Path(path) / CONFIG
    if not described.is_file() or (Path(path) / WEIGHTS).is_file():
        return False
    return bool(json.loads(described.read_text("utf-8")).get("model_type") == SCRATCH)


def _random(path: str, classes: list[str]) -> PretrainedBase:
    """A network that was never trained, and has no head apart from the rest."""
    names = dict(enumerate(classes))
    ids = {name: i for i, name in names.items()}
    config = pretrained(AutoConfig, path, id2label=names, label2id=ids)
    return PretrainedBase(ConvForImageClassification(config), [], frozenset(), path)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base; one without a padding token pads with its end of text.

    Padding is masked, so which token pads changes no result; but a decoder with a classification
    head reads the last token that is not padding: a text that ends in that token is read before it.

    Raises:
        ScenarioError: if the base has none.
    """
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = pretrained(
                AutoTokenizer, base_path(source), VOCABULARIES
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScenarioError(f"task.base = {source!r}: no tokenizer: {first_line(error)}") from None
    if tokenizer.pad_token_id is None:
        filler = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = filler
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Without Transformers' progress bars and advice."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _unfit(task: TaskSection, model: PreTrainedModel, reason: str) -> ScenarioError:
    return ScenarioError(
        f"task.base = {task.base!r}: {type(model).__name__} cannot serve {task.kind}: {reason}"
    )
