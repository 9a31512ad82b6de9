"""Pages, tables and pictures of a record: every number stands in comparison.json."""

from __future__ import annotations

import html.parser
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fedtune
from fedtune.cli.app import app
from fedtune.reporting.figure import LABEL_GAP, spread_out
from fedtune.reporting.measures import MEASURES, p_written, written
from fedtune.reporting.page import html as page_of
from fedtune.reporting.page import page_latex, page_markdown
from fedtune.reporting.plots import curves_of, pareto_front, pictures
from fedtune.reporting.style import styles
from fedtune.reporting.tables import Entry, Table, cells_csv, latex, markdown
from tests.runs.kit import small

OVER = {"strategy.name": ["fedavg", "ffa-lora"], "adapter.rank": [2, 4]}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "two axes"
    tune = {"local.lr": [1e-3, 1e-2]}
    return fedtune.compare("quickstart", OVER, small(), path, seeds=2, tune=tune)


class Page(html.parser.HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[list[str]] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.record = ""
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.inside.append(known.get("id") or tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        if "data-from" in known:
            self.numbers.append([known["data-from"], ""])
            self.inside[-1] = "number"

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() not in (tag, "number", "record", "shown"):
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "number":
            self.numbers[-1][1] += data
        elif self.inside and self.inside[-1] == "record":
            self.record += data
        else:
            self.words.append(data)


def at(record, path):
    for part in path.split("."):
        record = record[int(part)] if isinstance(record, list) else record[part]
    return record


def test_every_number_of_the_page_is_what_the_record_says_at_its_place(done):
    page = Page((done.path / "report.html").read_text("utf-8"))
    record = json.loads((done.path / "comparison.json").read_text("utf-8"))
    assert json.loads(page.record) == record
    units = {measure.key: measure.unit for measure in MEASURES}
    assert len(page.numbers) > 80
    for source, text in page.numbers:
        found, key = at(record, source), source.rpartition(".")[2]
        if isinstance(found, dict):
            shown = written(found["mean"], units[key], record["metric"])
        elif key in ("p", "p_holm", "rank_p"):
            shown = p_written(found)
        elif key in ("clients", "seeds", "n", "diverged"):
            shown = f"{found:,}"
        else:
            shown = written(found, "metric", record["metric"], signed="difference" in source)
        number = re.match(r"[+-]?[\d,.]+|–|never|< 0.001", shown)[0].lstrip("+")
        assert number in text, (source, text, shown)


def test_no_number_stands_in_a_table_without_its_place(done):
    text = (done.path / "report.html").read_text("utf-8")
    for cell in re.findall(r"<td>(.*?)</td>", text):
        bare = re.sub(r"<span data-from.*?</span>|<span class=\"mark\".*?</span>", "", cell)
        bare = re.sub(r"rank \d|lr 0.0\d+", "", bare)
        assert not re.search(r"\d", bare), cell


def test_the_page_needs_nothing_from_outside(done):
    page = Page((done.path / "report.html").read_text("utf-8"))
    assert page.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)


def test_pictures_of_all_kinds_are_there_and_the_same_record_draws_the_same_bytes(done):
    drawn = pictures(done.record)
    assert list(drawn) == ["curves", "upload", "heatmap", "clients"]
    for name in drawn:
        assert (done.path / "plots" / f"{name}.png").stat().st_size > 5000
        assert (done.path / "plots" / f"{name}.svg").stat().st_size > 5000
    before = (done.path / "plots" / "curves.svg").read_bytes()
    fedtune.report(done.path)
    assert (done.path / "plots" / "curves.svg").read_bytes() == before


def test_a_curve_is_the_mean_of_its_cells(done):
    family = done.record["families"][0]
    curve = curves_of(family, done.record)
    looks = [[look["eval"]["accuracy"] for look in cell["looks"]] for cell in family["cells"]]
    assert curve[:, 0].tolist() == [0, 1, 2]
    assert np.allclose(curve[:, 1], np.mean(looks, axis=0))
    assert np.allclose(curve[:, 2], np.std(looks, axis=0, ddof=1))


def test_markdown_latex_and_csv(done):
    text = page_markdown(done.record)
    assert "| fedavg, rank 2 |" in text
    assert "Search for settings" in text
    assert done.record["command"] in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (6, 7, 9, 12, 13)
    tex = page_latex(done.record)
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3
    assert not re.search(r"(?<!\\)%", tex)
    lines = cells_csv(done.record).splitlines()
    assert len(lines) == 1 + 8
    assert lines[0].startswith("family,strategy.name,adapter.rank,seed,status,final,")


def test_characters_that_mean_something_to_a_format():
    table = Table(["", "a|b"], [[Entry("50 % & <b>"), Entry("x_1")]])
    assert "a\\|b" in markdown(table)
    assert r"50 \% \& $<$b$>$ & x\_1 \\" in latex(table)


def test_what_a_scenario_says_cannot_become_markup(done):
    record = json.loads(json.dumps(done.record))
    record["families"][0]["label"] = "<script>alert(1)</script>"
    record["scenario"] = "</pre></script><script>alert(2)</script>"
    text = page_of(record, {})
    assert "<script>alert" not in text
    assert json.loads(Page(text).record) == record


def test_a_run_makes_the_same_page(tmp_path):
    run = fedtune.run("quickstart", small(), tmp_path / "run")
    files = {file.name for file in fedtune.report(run.path, with_latex=True)}
    assert {"report.json", "report.csv", "report.md", "report.tex", "report.html"} <= files
    page = Page((run.path / "report.html").read_text("utf-8"))
    final = written(run.summary["final"]["accuracy"], "metric", "accuracy")
    assert any(final in text for source, text in page.numbers if source.endswith("final"))
    assert "Differences" not in " ".join(page.words)
    (run.path / "summary.json").unlink()
    fedtune.report(run.path)
    assert "not finished: 2 of 2 rounds" in (run.path / "report.html").read_text("utf-8")
    (run.path / "metrics.jsonl").unlink()
    fedtune.report(run.path)
    assert "Nothing is finished yet" in (run.path / "report.html").read_text("utf-8")


def test_the_commands(done, tmp_path):
    runner = CliRunner()
    found = runner.invoke(app, ["report", str(done.path), "--json"])
    assert found.exit_code == 0
    assert json.loads(found.stdout)["files"][-1].endswith("report.html")
    arguments = ["compare", "quickstart", "--out", str(tmp_path / "cli"), "--seeds", "1"]
    arguments += [
        "--over",
        "strategy.name=fedavg,ffa-lora",
        "--budget",
        "client_steps=40",
        "--json",
    ]
    sets = [part for key, value in small().items() for part in ("--set", _set(key, value))]
    found = runner.invoke(app, [*arguments, *sets])
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert [family["label"] for family in record["families"]] == ["fedavg", "ffa-lora"]
    assert record["budget"] == {"kind": "client_steps", "amount": 40}


def _set(key, value):
    if isinstance(value, dict):
        inner = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
        return f"{key}={{{inner}}}"
    return f"{key}={json.dumps(value)}"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1), st.booleans())
def test_the_front_is_what_no_other_point_beats(points, lower):
    front = pareto_front(points, lower)
    sign = -1 if lower else 1

    def beaten(one):
        return any(o[0] <= one[0] and sign * o[1] >= sign * one[1] and o != one for o in points)

    assert set(front) == {point for point in points if not beaten(point)}


def test_no_two_families_look_alike_and_a_strategy_keeps_its_colour():
    names = ["fedavg", "ffa-lora", "fed-sb", "fedsvd", "fedex-lora", "rolora", "frl", "fedstale",
             "fedvarp", "fedavg-unbiased", "flag", "fedprox", "scaffold", "rerce", "mine",
    ]  # fmt: skip
    found = styles(names)
    assert len(set(found)) == len(names)
    assert styles(["flag"])[0] == found[names.index("flag")]
    assert len(set(styles([None] * 20))) == 20
    same = styles(["fedavg"] * 8 + ["fedstale"] * 8)
    assert len(set(same)) == 16
    assert len({style.colour for style in same}) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_labels_keep_their_order_and_do_not_overlap(heights):
    placed = spread_out(sorted(heights))
    assert all(b - a >= LABEL_GAP - 1e-9 for a, b in itertools.pairwise(placed))
    assert max(placed) <= 1.0


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"mechanism": "example", "noise_multiplier": 1.0}, "hidden from everybody else who sees"),
        ({"mechanism": "user", "noise_multiplier": 9.0, "delta": 0.01}, "The server is trusted"),
        (
            {
                "mechanism": "example",
                "noise_multiplier": 1.0,
                "deterministic_randomness": True,
            },
            "Nobody is protected",
        ),
        ({"mechanism": "example", "noise_multiplier": 0.0}, "(ε, δ) = (∞, 1e-05)"),
    ],
)
def test_a_private_runs_page_says_who_is_protected_and_shows_the_ledger(tmp_path, privacy, words):
    run = fedtune.run("quickstart", small(privacy=privacy), tmp_path / "run")
    fedtune.report(run.path)
    text = (run.path / "report.html").read_text("utf-8")
    page = Page(text)
    record = json.loads(page.record)
    assert words in record["privacy"]["statement"]
    assert record["privacy"]["statement"] in (run.path / "report.md").read_text("utf-8")
    told = [(place, shown) for place, shown in page.numbers if place.startswith("privacy.")]
    clients = run.summary["privacy"]["clients"]
    assert len(told) == 6 * len(clients)
    for place, shown in told:
        value = at(record, place)
        assert shown == "∞" if value is None else float(shown) == pytest.approx(value, rel=5e-3)
    assert (run.path / "plots" / "epsilon.png").exists() == (privacy["noise_multiplier"] > 0)
