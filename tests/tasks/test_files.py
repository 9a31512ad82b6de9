"""Rows of files are what a person sees in them, or a line that says where they are not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import LONGEST, ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.delimited import delimited
from fedtune.tasks.files import form_of, stem_of
from fedtune.tasks.json_rows import json_table
from fedtune.tasks.sources import load_splits, own_row
from fedtune.tasks.text import load_text

ROWS = [
    {"text": 'a "quoted", card', "label": "NA"},
    {"text": "two\nlines", "label": "0012"},
    {"text": "0012", "label": "null"},
    {"text": "1.0", "label": "1.0"},
    {"text": "NA", "label": "None"},
    {"text": "", "label": "true"},
    {"text": "2024-01-01", "label": "1e5"},
]
FRAME = pd.DataFrame(ROWS)


def section(path, **changes) -> TaskSection:
    given = {"kind": "text-classification", "base": "builtin:bert-words", **changes}
    return TaskSection(**{**given, "data": str(path), "test": str(path)})


def read(path, **changes) -> list[dict[str, object]]:
    rows = load_splits(section(path, **changes), ("text", "label"), {})[0]["train"]
    return [dict(row) for row in rows]


def refused(path, **changes) -> str:
    with pytest.raises(ScenarioError) as error:
        read(path, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def packed(write):
    def written(path):
        write(plain := path.with_suffix(""))
        path.write_bytes(gzip.compress(plain.read_bytes()))

    return written


WRITERS = {
    "x.csv": lambda path: FRAME.to_csv(path, index=False),
    "X.CSV": lambda path: FRAME.to_csv(path, index=False),
    "x.csv.gz": packed(lambda path: FRAME.to_csv(path, index=False)),
    "bom.csv": lambda path: FRAME.to_csv(path, index=False, encoding="utf-8-sig"),
    "x.jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "x.jsonl.GZ": packed(lambda path: FRAME.to_json(path, orient="records", lines=True)),
    "columns.json": lambda path: FRAME.to_json(path),
    "records.json": lambda path: FRAME.to_json(path, orient="records"),
    "indented.json": lambda path: FRAME.to_json(path, orient="records", indent=2),
    "index.json": lambda path: FRAME.to_json(path, orient="index"),
    "lists.json": lambda path: path.write_text(json.dumps(FRAME.to_dict("list"))),
    "data.json": lambda path: path.write_text(json.dumps({"data": ROWS})),
    "x.parquet": lambda path: FRAME.to_parquet(path, index=False),
    "category.parquet": lambda path: FRAME.astype("category").to_parquet(path, index=False),
    "views.parquet": lambda path: pq.write_table(
        pa.table({c: pa.array(list(FRAME[c]), pa.string_view()) for c in FRAME}), path
    ),
    "binary.parquet": lambda path: pq.write_table(
        pa.table({c: pa.array([v.encode() for v in FRAME[c]]) for c in FRAME}), path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_rows_as_they_were_written(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS


def test_names_say_the_form():
    forms = {"a.csv": ".csv", "A.TSV.GZ": ".tsv", "a.b.Json": ".json", "a.parquet.gz": None,
             "a.csv.zip": None, "csv": None, "a.gz": None}  # fmt: skip
    assert {name: form_of(Path(name)) for name in forms} == forms
    assert [stem_of(Path(n)) for n in ("train.csv.gz", "Train.CSV")] == ["train", "Train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\nthe card,card,\n", "x.csv, line 2: 3 fields, where the header has 2"),
        ("text,label\na,b\n\n\nthe card\n", "x.csv, line 5: 1 field, where the header has 2"),
        ('text,label\n"two\nlines",b\nthe card, I lost,card\n', "line 4: 3 fields"),
        ('text,label\na,b\n"the card,card\nb,c\n', "line 3: its quote is never closed"),
        ('text,label\n"a" card,b\n', "line 2: a closing quote is followed by more text"),
        ("text,label,label\na,b,c\n", "line 1: two columns are called 'label'"),
    ],
)
def test_rows_that_are_not_as_wide_as_the_header_are_refused_with_their_line(tmp_path, text, said):
    (tmp_path / "x.csv").write_text(text)
    assert said in refused(tmp_path / "x.csv")


def test_tsv_takes_quotes_as_they_are_and_refuses_a_tab_too_many(tmp_path):
    (tmp_path / "x.tsv").write_text('text\tlabel\n"a, card\tcard\n')
    assert read(tmp_path / "x.tsv") == [{"text": '"a, card', "label": "card"}]
    (tmp_path / "x.tsv").write_text("text\tlabel\na\tb\na\tb\t\n")
    assert "line 3: 3 fields" in refused(tmp_path / "x.tsv")
    (tmp_path / "x.tsv").write_text("a\tb\na\n")
    said = refused(tmp_path / "x.tsv", columns=["text", "label"])
    assert "line 2: 1 field, where task.columns names 2" in said


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=8))
def test_what_is_written_as_csv_is_read(rows):
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    written.seek(0)
    columns, found = delimited(written, "x.csv", ".csv", None)
    assert columns == ["a", "b", "c"]
    assert [tuple(fields) for _, fields in found] == rows


@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=8), st.data())
def test_a_row_of_another_width_is_named_by_the_line_that_it_begins_in(rows, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("a", "b"), *rows[:place]])
    line = written.getvalue().replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    writer.writerows([(*rows[place], ""), *rows[place + 1 :]])
    written.seek(0)
    _, found = delimited(written, "x.csv", ".csv", None)
    with pytest.raises(ScenarioError, match=rf"^x.csv, line {line}: 3 fields"):
        list(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a", "label": "x"}\n{"text": \n', "x.jsonl, line 2: cannot be read"),
        ('{"text": "a", "label": "x"}\n\n["b", "y"]\n', "x.jsonl, line 3: holds a list"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": 3}\n',
         "'label' holds text in line 1 and a number in line 2"),
        ('{"text": ["a", "b"], "label": "x"}\n{"text": [], "label": "y"}\n',
         "'text' holds a list in line 1"),
        ('{"text": {"0": "a", "1": "b"}, "label": {"0": "x"}}', "do not hold the same rows"),
        ('{"columns": ["text"], "index": [0, 1], "data": [["a"], ["b"]]}', "orient='records'"),
        ("5\n6\n", "line 1: holds a number"),
    ],
)  # fmt: skip
def test_json_that_is_no_table_is_refused_with_its_line(tmp_path, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    assert said in refused(tmp_path / "x.jsonl")


def test_json_columns_that_no_task_uses_may_hold_anything():
    lines = [
        '{"text": "a", "more": 1}',
        '{"text": "b", "more": [1, "x"]}',
        '{"text": null, "other": "c"}',
    ]
    table = json_table(io.StringIO("\n".join(lines)), "x.jsonl", {"text"})
    assert table.to_pylist() == [
        {"text": "a", "more": "1", "other": None},
        {"text": "b", "more": '[1, "x"]', "other": None},
        {"text": None, "more": None, "other": "c"},
    ]


SCALAR = st.none() | st.integers(-(2**62), 2**62) | st.text(max_size=5) | st.booleans()


@given(st.lists(st.fixed_dictionaries({"a": st.text(), "b": SCALAR}), min_size=2, max_size=9))
def test_json_lines_keep_text_and_values_of_one_kind(rows):
    text = "\n".join(json.dumps(row) for row in rows)
    found = json_table(io.StringIO(text), "x.jsonl", {"a"}).to_pylist()
    assert [row["a"] for row in found] == [row["a"] for row in rows]
    kinds = {type(row["b"]) for row in rows} - {type(None)}
    if len(kinds) < 2:
        assert [row["b"] for row in found] == [row["b"] for row in rows]
    else:
        told = [b if b is None or isinstance(b, str) else json.dumps(b) for b in
                (row["b"] for row in rows)]  # fmt: skip
        assert [row["b"] for row in found] == told


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([b"rain", b"\xff\xfe"]), "task.text = 'text': x.parquet, row 1: .*no UTF-8"),
        (pa.array([["a"], ["b"]]), "task.text = 'text': holds list"),
        (pa.array([{"a": 1}, {"a": 2}]), "task.text = 'text': holds struct"),
        (pa.array([1, 2]), "task.text = 'text': holds int64; allowed: text"),
        (pa.array([1.5, 2.5]), "task.text = 'text': holds double; allowed: text"),
    ],
)
def test_text_must_be_text(tmp_path, values, said):
    pq.write_table(pa.table({"text": values, "label": ["a", "b"]}), tmp_path / "x.parquet")
    with pytest.raises(ScenarioError, match=said):
        read(tmp_path / "x.parquet")


def test_prompts_and_responses_may_be_whole_numbers_and_names_of_classes(tmp_path):
    features = Features({"n": Value("int64"), "kind": ClassLabel(names=["odd", "even"])})
    rows = Dataset.from_dict({"n": [1, 2, 3], "kind": [0, 1, 0]}, features=features)
    rows.to_parquet(str(tmp_path / "x.parquet"))
    task = section(tmp_path / "x.parquet", kind="causal-lm", template="{n} is", response="kind")
    found = load_splits(task, (), {})[0]["train"]
    assert list(found["n"]) == [1, 2, 3]
    assert list(found["kind"]) == ["odd", "even", "odd"]
    floats = Dataset.from_dict({"n": [1.5], "kind": ["x"]})
    floats.to_parquet(str(tmp_path / "y.parquet"))
    task = section(tmp_path / "y.parquet", kind="causal-lm", template="{n} is", response="kind")
    with pytest.raises(ScenarioError, match=r"task.template = 'n': holds double"):
        load_splits(task, (), {})


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("x.csv", 'text,label\n"two\nlines",a\nplay,\n', "x.csv, line 4"),
        ("x.csv", "text,label\na,b\nplay,  \n", "x.csv, line 3"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n\n{"text": "c", "label": null}\n', "line 3"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "c", "label": ""}\n', "line 2"),
        ("x.json", '[{"text": "a", "label": "b"}, {"text": "c", "label": ""}]', "x.json, row 1"),
    ],
)
def test_an_empty_label_is_refused_alike_everywhere(tmp_path, name, text, where):
    (tmp_path / name).write_text(text)
    said = refused(tmp_path / name)
    assert f"{where}: holds no label" in said
    whole = TaskSection(kind="text-classification", data=str(tmp_path / name))
    with pytest.raises(ScenarioError, match=f"{where}: holds no label"):  # not the split's row
        load_splits(whole, (), {})


def test_labels_of_other_kinds_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0.0, 1.0]}), tmp_path / "x.parquet")
    assert "task.label = 'label': holds double" in refused(tmp_path / "x.parquet")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    rows.to_parquet(str(tmp_path / "y.parquet"))
    said = refused(tmp_path / "y.parquet", labels=["a", "b"])  # -1 is not the last name
    assert "y.parquet, row 1: holds -1 for 2 classes" in said


LONG = "secret " * 40


@pytest.mark.parametrize(
    "text", [f"{LONG},{LONG}2\n{LONG},a\n", f"text,label\na,b\nb,{LONG}\n", f"{LONG},{LONG}\na,b\n"]
)
def test_a_message_never_prints_a_long_cell(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ScenarioError) as error:
        load_text(section(tmp_path / "x.csv", labels=["b", "c"]))
    printed = re.findall(r"(?:secret ?)+", str(error.value))
    assert printed
    assert max(map(len, printed)) <= LONGEST


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\na,\xff\n", "is not UTF-8"),
        ("text,label\na,b\n".encode("utf-16"), "is not UTF-8"),
        (b"", "split 'train' is empty|no such column"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, said):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ScenarioError, match=said):
        read(tmp_path / "x.csv")
    (tmp_path / "x.csv.gz").write_bytes(content)
    if content:
        assert "cannot be read" in refused(tmp_path / "x.csv.gz")


@pytest.mark.parametrize("name", ["x.csv.zip", "x.xlsx", "x.parquet.gz"])
def test_other_files_are_refused_with_what_is_allowed(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert "allowed: .csv, .tsv, .json, .jsonl, .parquet, .txt" in refused(tmp_path / name)


def test_the_share_for_testing_is_the_one_that_datasets_draws(tmp_path):
    rows = [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(23)]
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    task = TaskSection(kind="text-classification", data=str(tmp_path / "x.csv"))
    found = load_splits(task, ("text",), {})[0]
    wanted = Dataset.from_list(rows).train_test_split(test_size=0.2, seed=0)
    for split in ("train", "test"):
        assert list(found[split]["text"]) == list(wanted[split]["text"])


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 12))
def test_a_row_of_a_split_knows_its_number_in_the_file(rows, train, test):
    texts = [str(n) for n in range(rows)]
    whole = {"builtin:x": lambda: DatasetDict({"train": Dataset.from_dict({"text": texts})})}
    task = TaskSection(kind="causal-lm", data="builtin:x", train_examples=train, test_examples=test)
    for split in load_splits(task, ("text",), whole)[0].values():
        for row, text in enumerate(split["text"]):
            assert texts[own_row(split, row)] == text


def test_large_fields_and_many_rows(tmp_path):
    rows = [{"text": "x" * 200_000, "label": "a"}, *({"text": str(n), "label": "b"} for n in
            np.arange(3000))]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    assert read(tmp_path / "x.csv") == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"text": "a"}]\n[{"text": "b"}]\n', "x.json, line 2: more text after the list"),
        ('\n[{"text": "a"}]\n\n{"text": "b"}\n', "x.json, line 4: more text after the list"),
        ('[{"text": "a"}]\n]]] rubbish', "x.json, line 2: more text after the list"),
        ('{"text": "a"}\n{"Text": "b"}\n', "x.json, line 2: has no 'text'"),
        ('[{"text": "a"}, {"text": null}, {}]', "x.json, row 2: has no 'text'"),
        (FRAME.to_json(orient="split"), "pandas writes with orient='split' or 'table'; write an"),
        (FRAME.to_json(orient="table"), "pandas writes with orient='split' or 'table'; write an"),
    ],
)
def test_no_row_of_json_is_passed_over_and_no_text_made_up(text, said):
    with pytest.raises(ScenarioError) as error:
        json_table(io.StringIO(text), "x.json", {"text"})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_rows_without_a_text_are_counted_and_a_column_without_one_is_refused(tmp_path, name):
    frame = pd.DataFrame({"text": ["a", None, "b", "c"], "label": list("xyxy")})
    for part, table in (("some", frame), ("none", frame.assign(text=None))):
        path = tmp_path / part / name
        path.parent.mkdir()
        if name == "x.csv":
            table.to_csv(path, index=False)
        elif name == "x.jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path, index=False)
    path = tmp_path / "some" / name
    _, notes = load_splits(section(path), ("text",), {})
    assert notes == [
        f"data: 1 of 4 rows of {split} hold no text in 'text'" for split in ("train", "test")
    ]
    with pytest.raises(ScenarioError, match=r"task.text = 'text': no row of train holds a text"):
        load_splits(section(tmp_path / "none" / name), ("text",), {})


def test_a_whole_number_that_misses_is_told_by_its_row(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"text": list("abc"), "label": [1, None, 2]}).to_parquet(path)
    assert "x.parquet, row 1: holds no label" in refused(path)


def test_a_parquet_column_that_cannot_be_read_is_named(tmp_path):
    strange = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    table = pa.table({"text": ["a"], "label": ["x"], "odd": strange})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "x.parquet: column 'odd' holds map<" in refused(tmp_path / "x.parquet")


def test_a_file_is_read_anew_under_a_name_that_says_that_it_is_packed(tmp_path):
    for name in ("x.csv", "x.csv.gz"):
        (tmp_path / name).write_text("text,label\na,x\nb,y\n")
    load_splits(section(tmp_path / "x.csv"), ("text",), {})
    assert "cannot be read (Not a gzipped file" in refused(tmp_path / "x.csv.gz")
