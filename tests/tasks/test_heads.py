"""A checkpoint's head is kept for the classes that it names, in its order, and for no others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from fedtune.adapters.wrap import wrap
from fedtune.errors import ScenarioError
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.schema import Scenario
from fedtune.scenario.task import TaskSection
from fedtune.tasks.bases import load_base
from fedtune.tasks.heads import head_fits, in_order_of
from fedtune.tasks.images import load_images
from fedtune.tasks.load import load_task
from fedtune.tasks.shapes import load_shapes
from fedtune.tasks.text import load_text
from tests.tasks import kit

CPU = torch.device("cpu")
NAMES = ["rain", "bread", "a song", "money"]
ROWS = [
    {"text": f"the {NAMES[n % 4].split()[-1]} is here", "label": NAMES[n % 4]} for n in range(24)
]
TEXT_BASES = ["bert", "roberta", "llama"]


def written(folder, rows=ROWS) -> str:
    folder.mkdir(exist_ok=True)
    kit.as_csv(folder, "train.csv", rows)
    kit.as_csv(folder, "test.csv", rows)
    return str(folder)


def section(tmp_path, base, **changes) -> TaskSection:
    data = written(tmp_path / "data", changes.pop("rows", ROWS))
    return TaskSection(kind="text-classification", base=base, data=data, **changes)


def by_name(logits, classes) -> dict[str, list[float]]:
    return {name: logits[:, i].tolist() for i, name in enumerate(classes)}


@pytest.mark.parametrize("kind", TEXT_BASES)
@pytest.mark.parametrize("labels", [None, NAMES, sorted(NAMES)])
def test_outputs_mean_what_the_checkpoint_says_whatever_the_order_of_the_data(
    tmp_path, kind, labels
):
    own = ["money", "a song", "rain", "bread"]
    base = kit.save_classifier(tmp_path / "base", own, kind)
    examples = load_text(section(tmp_path, base, labels=labels))
    assert examples.classes == own
    assert [examples.classes[i] for i in examples.train.labels] == [row["label"] for row in ROWS]
    assert not examples.base.fresh
    batch = examples.train.gather(torch.arange(8))
    theirs = AutoModelForSequenceClassification.from_pretrained(base).double().eval()
    ours = examples.base.model.double().eval()
    with torch.no_grad():
        found = by_name(ours(**batch.inputs).logits, examples.classes)
        wanted = by_name(theirs(**batch.inputs).logits, theirs.config.id2label.values())
    for name in NAMES:
        assert found[name] == pytest.approx(wanted[name], abs=1e-10)
    assert list(examples.base.model.config.id2label.values()) == own
    said = [note for note in examples.notes if note.startswith("head")]
    assert len(said) == (labels is not None)


@pytest.mark.parametrize("kind", TEXT_BASES)
def test_a_head_of_the_same_shape_for_other_classes_begins_anew_and_it_is_said(tmp_path, kind):
    base = kit.save_classifier(tmp_path / "base", ["joy", "anger", "fear", "rain"], kind)
    task = section(tmp_path, base)
    examples = load_text(task)
    assert examples.classes == ["rain", "bread", "money", "a song"]
    theirs = AutoModelForSequenceClassification.from_pretrained(base).state_dict()
    foreign = {name for name, t in theirs.items() if 4 in t.shape and name.split(".")[0] in
               examples.base.head}  # fmt: skip
    assert examples.base.fresh == foreign
    assert [n for n in examples.notes if "begins anew" in n and "other classes" in n]
    wrapped = wrap(examples.base, AdapterSection(rank=2, targets="all-linear"), "lora", "shared", 0,
                   CPU, torch.float32)  # fmt: skip
    fresh = kit.save_classifier(tmp_path / "nameless", 3, kind)
    unlike = wrap(load_base(task.model_copy(update={"base": fresh}), examples.classes),
                  AdapterSection(rank=2, targets="all-linear"), "lora", "shared", 0, CPU,
                  torch.float32)  # fmt: skip
    for name in foreign:  # as the head of a checkpoint with another number of classes begins
        key = f"base_model.model.{name}"
        assert torch.equal(wrapped.initial[key], unlike.initial[key])
        assert name.endswith("bias") or not torch.equal(wrapped.initial[key], theirs[name])


def test_another_number_of_classes_is_said_too(tmp_path):
    base = kit.save_classifier(tmp_path / "base", ["joy", "anger"])
    examples = load_text(section(tmp_path, base))
    assert examples.base.fresh == {"classifier.weight", "classifier.bias"}
    assert any("begins anew" in note and "joy, anger" in note for note in examples.notes)


def test_a_backbone_without_a_head_says_nothing(tmp_path):
    two = [row for row in ROWS if row["label"] in NAMES[:2]]
    examples = load_text(section(tmp_path, kit.save("bert", tmp_path / "base"), rows=two))
    assert not examples.notes


@pytest.mark.parametrize(
    ("names", "labels", "kept"),
    [
        (["0", "1", "2", "3"], None, True),
        (["1", "2", "3", "4"], None, False),
        (NAMES, None, False),
        (NAMES, ["money", "a song", "rain", "bread"], True),
        (["LABEL_2", "LABEL_0", "LABEL_3", "LABEL_1"], None, True),
    ],
)
def test_a_head_that_numbers_its_classes(tmp_path, names, labels, kept):
    base = kit.save_classifier(tmp_path / "base", 4)
    rows = [{**row, "label": names[n % 4]} for n, row in enumerate(ROWS)]
    examples = load_text(section(tmp_path, base, rows=rows, labels=labels))
    assert bool(examples.base.fresh) != kept
    in_order = sorted(names) if kept and labels is None else examples.classes
    assert examples.classes == (labels or in_order)
    numbered = [note for note in examples.notes if "number" in note or "class i" in note]
    assert bool(numbered) == (names[0] != "LABEL_2")


def test_names_that_differ_in_case_and_space_are_the_same_and_stay_the_datas(tmp_path):
    base = kit.save_classifier(tmp_path / "base", ["MONEY", "A Song", "Rain ", "bread"])
    examples = load_text(section(tmp_path, base))
    assert examples.classes == ["money", "a song", "rain", "bread"]
    assert not examples.base.fresh


def test_pictures_too(tmp_path):
    names = ["cat", "dog", "bird"]
    draw = np.random.default_rng(0)
    columns = {
        "image": [Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                  for _ in range(12)],
        "label": [n % 3 for n in range(12)],
    }  # fmt: skip
    rows = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names))
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "data"))
    own = ["dog", "bird", "cat"]
    base = kit.save_classifier(tmp_path / "base", own, "vit")
    examples = load_images(TaskSection(base=base, data=str(tmp_path / "data")))
    assert examples.classes == own
    assert [own[i] for i in examples.train.labels] == [names[n % 3] for n in range(12)]
    theirs = AutoModelForImageClassification.from_pretrained(base).state_dict()
    for name, tensor in examples.base.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("own", [["b", "a", "c"], ["x", "y", "z"], 3, ["p", "q"]])
@pytest.mark.parametrize("kind", TEXT_BASES)
def test_a_server_without_weights_takes_the_same_head_in_the_same_order(tmp_path, own, kind):
    base = kit.save_classifier(tmp_path / "base", own, kind)
    given = {"kind": "text-classification", "base": base, "labels": ["a", "b", "c"]}
    bare = load_task(Scenario(task=TaskSection(**given, data="clients")), CPU, torch.float32)
    rows = [{"text": "rain", "label": name} for name in "abc"]
    whole = load_text(TaskSection(**given, data=written(tmp_path / "data", rows)))
    assert bare.classes == whole.classes
    assert (bare.base.head, bare.base.fresh) == (whole.base.head, whole.base.fresh)
    assert bare.base.notes == whole.base.notes
    assert bare.notes[1:] == list(whole.base.notes)
    for name, tensor in whole.base.model.named_parameters():
        if name.split(".")[0] in whole.base.head and name not in whole.base.fresh:
            assert torch.equal(bare.base.model.get_parameter(name), tensor)


@pytest.mark.parametrize("own", [["b", "a", "c"], ["x", "y", "z"], ["p", "q"]])
@pytest.mark.parametrize("kind", ["distilbert", "deberta", *kit.PICTURES])
def test_shapes_alone_begin_as_the_loaded_base(tmp_path, own, kind):
    """Also where Transformers gives a checkpoint's tensors other names when it loads them."""
    base, labels = kit.save_classifier(tmp_path / "base", own, kind), ["b", "a", "c"]
    what = "image-classification" if kind in kit.PICTURES else "text-classification"
    task = TaskSection(kind=what, base=base, data="clients", labels=labels)
    shapes, whole = load_shapes(task, labels), load_base(task, labels)
    assert (shapes.head, shapes.fresh, shapes.notes) == (whole.head, whole.fresh, whole.notes)
    assert bool(whole.fresh) == (own != labels)
    for name, tensor in whole.model.named_parameters():
        if name.split(".")[0] in whole.head and name not in whole.fresh:
            assert torch.equal(shapes.model.get_parameter(name), tensor)


NAMED = st.lists(st.text("abAB ", min_size=1, max_size=2), min_size=2, max_size=5, unique=True)


@given(NAMED, st.randoms(use_true_random=False))
def test_the_order_is_a_permutation_and_fits_where_the_names_are_the_same(names, draw):
    own = draw.sample(names, len(names))
    found = in_order_of(own, names)
    assert found == own
    assert head_fits(own, found, ordered=False)
    assert in_order_of([*own, "more"], names) == names
    assert not head_fits([*own, "more"], names, ordered=True)


def test_names_that_case_alone_tells_apart_are_matched_exactly():
    assert in_order_of(["a", "A"], ["A", "a"]) == ["a", "A"]
    assert in_order_of(["x", "A"], ["A", "a"]) == ["A", "a"]


def test_class_lists_of_saved_data_are_not_an_order_for_a_head_without_names(tmp_path):
    """Its numbers may be those of any list; `task.labels` says whose."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["rain", "sun"], "label": [0, 1]}, features=features)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    base = kit.save_classifier(tmp_path / "base", 2)
    given = {"kind": "text-classification", "base": base, "data": str(tmp_path / "saved")}
    assert load_text(TaskSection(**given)).base.fresh
    assert not load_text(TaskSection(**given, labels=["no", "yes"])).base.fresh


def with_config(folder: str, **changes) -> str:
    path = Path(folder, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def with_outputs(folder, outputs: int, names: list[str] | int) -> str:
    """A classifier whose weights have so many outputs, whatever its configuration names."""
    path = kit.save_classifier(folder, names)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    model.classifier = torch.nn.Linear(16, outputs)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, Path(path, "model.safetensors"), metadata={"format": "pt"})
    return path


@pytest.mark.parametrize(
    "names", [[*NAMES, "more"], [f"n{i}" for i in range(1000)], NAMES[:3], NAMES[:1], 2, 5]
)
def test_a_head_with_as_many_outputs_but_another_number_of_names_begins_anew(tmp_path, names):
    base = with_outputs(tmp_path / "base", 4, names)
    examples = load_text(section(tmp_path, base))
    assert examples.base.fresh == {"classifier.weight", "classifier.bias"}
    assert [note for note in examples.notes if "begins anew" in note]
    task = TaskSection(
        kind="text-classification", base=base, data="clients", labels=list(examples.classes)
    )
    assert load_shapes(task, examples.classes).fresh == examples.base.fresh


@pytest.mark.parametrize("places", [[1, 2, 3, 4], [0, 1, 2, 7]])
def test_names_that_are_of_no_outputs_are_none(tmp_path, places):
    base = kit.save_classifier(tmp_path / "base", NAMES)
    names = dict(zip(map(str, places), NAMES, strict=True))
    with_config(base, id2label=names, label2id={name: int(i) for i, name in names.items()})
    examples = load_text(section(tmp_path, base))
    assert examples.base.fresh
    assert [note for note in examples.notes if "does not name its outputs" in note]


@pytest.mark.parametrize("given", [NAMES, "rain", {"0": NAMES}])
def test_names_that_are_no_object_of_names_are_one_line(tmp_path, given):
    base = with_config(kit.save_classifier(tmp_path / "base", NAMES), id2label=given)
    if isinstance(given, dict):  # a name like any other, for no class of the data
        assert load_text(section(tmp_path, base)).base.fresh
        return
    with pytest.raises(ScenarioError, match=r"config\.json cannot be read .* id2label is") as error:
        load_text(section(tmp_path, base))
    assert "\n" not in str(error.value)


def test_label2id_names_the_outputs_where_id2label_has_placeholders(tmp_path):
    own = ["money", "a song", "rain", "bread"]
    base = kit.save_classifier(tmp_path / "base", own)
    placeholders = {str(i): f"LABEL_{i}" for i in range(4)}
    with_config(base, id2label=placeholders, label2id={n: i for i, n in enumerate(own)})
    examples = load_text(section(tmp_path, base))
    assert examples.classes == own
    assert not examples.base.fresh


@given(st.permutations([str(n) for n in range(11)]))
def test_numbers_in_any_order_are_the_outputs_of_a_head_that_numbers_its_classes(names):
    own = [f"LABEL_{n}" for n in range(11)]
    in_order = in_order_of(own, names)
    assert in_order == [str(n) for n in range(11)]
    assert head_fits(own, in_order, ordered=False)
    assert in_order_of(own, names, ordered=True) == names


def test_a_folder_of_saved_rows_whose_list_is_in_another_order_keeps_a_numbered_head(tmp_path):
    names = ["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    columns = {"text": ["rain"] * 11, "label": list(range(11))}
    rows = Dataset.from_dict(columns, features=features)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    base = kit.save_classifier(tmp_path / "base", 11)
    given = {"kind": "text-classification", "base": base, "data": str(tmp_path / "saved")}
    examples = load_text(TaskSection(**given))
    assert not examples.base.fresh
    assert [examples.classes[i] for i in examples.train.labels] == names
    assert examples.train.labels.tolist() == [int(name) for name in names]
