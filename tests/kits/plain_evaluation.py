"""A run's result evaluated by plain Transformers and PEFT, one row at a time, from files alone.

Nothing of the package is used. Whoever adds a strategy, an adapter kind or an export holds it to
the run's own figures with one line: `assert_as_told(directory, "test.csv")`.
"""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

AUTO = {"SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM}


def rows_of(file: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with Path(file).open(newline="") as opened:
        return list(csv.DictReader(opened))


def adapter_model(folder: Path):
    """A base and its adapter, as PEFT's own documentation loads them; with its tokenizer."""
    told = json.loads((folder / "adapter_config.json").read_text())
    base = told["base_model_name_or_path"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = folder / "labels.json"
        names = json.loads(labels.read_text()) if labels.is_file() else []
        ids = {name: place for place, name in enumerate(names)}
        given = {"id2label": dict(enumerate(names)), "label2id": ids} if names else {}
        model = AUTO[told["task_type"]].from_pretrained(base, dtype=torch.float32, **given)
        return PeftModel.from_pretrained(model, folder).eval(), AutoTokenizer.from_pretrained(base)


def merged_model(folder: Path, kind: str):
    """A merged model with its tokenizer, from one folder."""
    model = AUTO[kind].from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def classified(model, words, rows, text="text", label="label") -> dict[str, float]:
    """Mean cross-entropy and accuracy over rows; classes by the names in the configuration."""
    losses, right = [], []
    for row in rows:
        logits = model(**words(row[text], return_tensors="pt")).logits
        target = torch.tensor([int(model.config.label2id[row[label]])])
        losses.append(float(cross_entropy(logits, target)))
        right.append(float(logits.argmax(-1) == target))
    return {"loss": sum(losses) / len(losses), "accuracy": sum(right) / len(right)}


@torch.no_grad()
def continued(model, words, rows, text="text") -> dict[str, float]:
    """Mean cross-entropy over the tokens of plain texts, each closed by the end of text."""
    total, count = 0.0, 0
    for row in rows:
        ids = words(row[text])["input_ids"]
        if words.eos_token_id is not None and ids[-1] != words.eos_token_id:
            ids = [*ids, words.eos_token_id]
        told = torch.tensor([ids])
        logits = model(input_ids=told, attention_mask=torch.ones_like(told)).logits[0, :-1]
        total += float(cross_entropy(logits, told[0, 1:], reduction="sum"))
        count += len(ids) - 1
    return {"loss": total / count}


def assert_as_told(directory, file: str | Path, merged: Path | None = None) -> None:
    """The adapter (and a merged model) give the run's final figures on a file of test rows.

    Args:
        directory: of a run on a text task with columns `text` (and `label`).
        file: its test file.
        merged: an exported folder, if any.
    """
    kind = json.loads((directory.adapter / "adapter_config.json").read_text())["task_type"]
    evaluate = classified if kind == "SEQ_CLS" else continued
    models = [adapter_model(directory.adapter)]
    models += [] if merged is None else [merged_model(merged, kind)]
    for model, words in models:
        found = evaluate(model, words, rows_of(file))
        told = {name: directory.summary["final"][name] for name in found}
        assert found == pytest.approx(told, abs=1e-5)
