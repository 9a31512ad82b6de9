"""Text classification: what the model is given equals single examples through its own forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.text import load_text
from tests.tasks import kit

ROWS = [
    {"text": "the money is here", "label": "good", "other": "song"},
    {"text": "play", "label": "bad", "other": "a loud song now"},
    {"text": "", "label": "good", "other": "rain"},
    {"text": "is there rain or sun here and what about the wind", "label": "so", "other": ""},
    {"text": "unheard words", "label": "bad", "other": "bread"},
    {"text": "null", "label": "bad", "other": "NA"},
]  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "llama", "gpt2"])
def base(request, tmp_path_factory):
    return kit.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    kit.as_csv(folder, "train.csv", ROWS)
    kit.as_csv(folder, "test.csv", ROWS[:4])
    return str(folder)


def section(base, data, **changes) -> TaskSection:
    return TaskSection(kind="text-classification", base=base, data=data, **changes)


def test_padded_batches_equal_single_examples_through_the_models_own_forward(base, data):
    examples = load_text(section(base, data))
    ours = examples.base.model.double().eval()
    batch = examples.train.gather(torch.arange(len(ROWS)))
    with torch.no_grad():
        logits = examples.objective.logits(ours, batch.inputs)
    words = AutoTokenizer.from_pretrained(base)
    for row, logit in zip(ROWS, logits, strict=True):
        ids = words(row["text"])["input_ids"]
        if not ids:
            continue
        with torch.no_grad():
            alone = ours(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(logit, alone, atol=1e-10)


def test_labels_are_those_of_the_rows_and_losses_the_models_own(base, data):
    examples = load_text(section(base, data))
    assert examples.classes == ["so", "bad", "good"]
    assert [examples.classes[i] for i in examples.train.labels] == [r["label"] for r in ROWS]
    model = examples.base.model.double().eval()
    batch = examples.train.gather(torch.tensor([0, 3]))
    with torch.no_grad():
        losses = examples.objective.losses(model(**batch.inputs).logits, batch.labels)
        own = model(**batch.inputs, labels=batch.labels).loss
    assert torch.allclose(losses.mean(), own)


def test_the_checkpoints_weights_are_in_the_model(base, data):
    examples = load_text(section(base, data))
    again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    mine, theirs = examples.base.model.state_dict(), again.state_dict()
    for name in mine.keys() - examples.base.fresh:
        assert torch.equal(mine[name], theirs[name])
    assert all(name.split(".")[0] in examples.base.head for name in examples.base.fresh)


def test_a_pair_is_read_as_the_tokenizer_reads_pairs(tmp_path, data):
    base = kit.save("bert", tmp_path)
    examples = load_text(section(base, data, text_pair="other"))
    batch = examples.train.gather(torch.tensor([0, 1, 3]))
    words = AutoTokenizer.from_pretrained(base)
    picked = [ROWS[i] for i in (0, 1, 3)]
    wanted = words(
        [r["text"] for r in picked], [r["other"] for r in picked],
        padding=True, return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch.inputs[name], wanted[name]), name


def test_long_text_is_cut_as_the_tokenizer_cuts_it(base, data):
    examples = load_text(section(base, data, max_length=5))
    words = AutoTokenizer.from_pretrained(base)
    wanted = words(ROWS[3]["text"], truncation=True, max_length=5)["input_ids"]
    assert examples.train.gather(torch.tensor([3])).inputs["input_ids"][0].tolist() == wanted


def test_blank_and_odd_cells_stay_what_they_are(base, data):
    examples = load_text(section(base, data))
    assert list(examples.rows["text"]) == [row["text"] for row in ROWS]
    assert int(examples.train.widths(np.array([2]))[0]) >= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": "body"}, "task.text = 'body': no such column in train; it has: 'text', 'label'"),
        ({"label": "kind"}, "task.label = 'kind': no such column"),
        ({"max_length": 4000}, "task.max_length = 4000: .* takes at most 40 tokens"),
        ({"base": "builtin:vit-letters"}, "task.base = 'builtin:vit-letters'"),
    ],
)
def test_what_does_not_fit_is_one_line(base, data, changes, said):
    task = section(base, data).model_copy(update=changes)
    with pytest.raises(ScenarioError, match=said) as error:
        load_text(task)
    assert "\n" not in str(error.value)


def test_an_unknown_test_label_is_one_line(tmp_path):
    kit.as_csv(tmp_path, "train.csv", ROWS)
    kit.as_csv(tmp_path, "test.csv", [{**ROWS[0], "label": "new"}])
    with pytest.raises(ScenarioError, match=r"task.label = 'label': 'new' is not in training"):
        load_text(section("builtin:bert-words", str(tmp_path)))


def test_rows_with_several_labels_are_left_out_and_counted(tmp_path):
    rows = [*ROWS, {**ROWS[0], "label": "good,bad"}]
    kit.as_csv(tmp_path, "train.csv", rows)
    kit.as_csv(tmp_path, "test.csv", ROWS)
    examples = load_text(section("builtin:bert-words", str(tmp_path), label_separator=","))
    assert len(examples.train) == len(ROWS)
    assert examples.classes == ["so", "bad", "good"]
    assert examples.notes == [
        "data: 1 of 7 rows of train hold no text in 'text'",
        "data: 1 of 6 rows of test hold no text in 'text'",
        "data: 1 rows with several labels are left out",
    ]
    assert examples.left_out == {"rows with several labels are left out": 1}
