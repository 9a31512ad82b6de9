"""docs/claims.md: trains what the claims' comparisons lack and writes their verdicts.

.venv/bin/python scripts/claims.py                 # all; what is done is not trained again
.venv/bin/python scripts/claims.py fedsvd frl      # some
.venv/bin/python scripts/claims.py --full          # on larger data and bases, for a GPU; resumable

Between the marks of a claim the page is written by this script; what stands around is by hand.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import fedtune
from fedtune.comparison.directory import ComparisonDirectory
from fedtune.comparison.progress import ConsoleGrid
from fedtune.reporting.claim import claim_table, claimed_reports
from fedtune.reporting.tables import Entry, Table, markdown, result_table, tuning_table
from fedtune.runs.directory import RunDirectory

ROOT = Path(__file__).parent.parent
PAGE, SHOWN = ROOT / "docs" / "claims.md", ROOT / "docs" / "claims"
FOLDER = ROOT / "simulations" / "claims"
END = "<!-- end -->"
ENCODER = {
    "task.kind": "text-classification",
    "task.base": "sentence-transformers/all-MiniLM-L6-v2",
    "task.text": "text",
    "task.max_length": 64,
    "adapter.targets": ["query", "value"],
    "local.batch_size": 16,
    "local.group_by_length": True,
    "engine.threads": "auto",
    "run.rounds": 100,
}
BANKING = {
    **ENCODER,
    "task.data": "../shared/data/banking77",
    "task.label": "category",
    "clients.count": 100,
}
WRITERS = {  # made by scripts/prepare_mnist_by_writer.py
    "task.data": "data/mnist-by-writer",
    "clients.count": 100,
    "local.batch_size": 32,
    "engine.threads": "auto",
    "run.rounds": 200,
}
TALES = {
    "task.kind": "causal-lm",
    "task.base": "../shared/data/stories260K",
    "task.data": "../shared/data/gsm8k",
    "task.template": "Question: {question}\nAnswer: ",
    "task.response": "answer",
    "task.head": "shared",
    "task.max_length": 320,
    "adapter.targets": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "clients.partition": {"kind": "dirichlet", "alpha": 0.3, "by": "length"},
    "local.group_by_length": True,
    "engine.threads": "auto",
    "run.rounds": 60,
}
FULL = {
    "ffa-lora": BANKING,
    "ffa-lora-steady": BANKING,
    "fed-sb": BANKING,
    "fed-sb-bytes": BANKING,
    "fedsvd": BANKING,
    "fedsvd-sgd": BANKING,
    "fedex-lora": TALES,
    "fedex-lora-error": {**BANKING, "run.rounds": 60},
    "fedstale": WRITERS,
    "frl": WRITERS,
    "frl-conv": {**WRITERS, "run.rounds": 300},
    "flag": {**WRITERS, "clients.count": 15},
    "private": {**BANKING, "clients.count": 20, "local.group_by_length": False},
    "rerce": {},  # the paper's own problem
}


def main(names: list[str]) -> None:
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if names == ["--full"]:
        for name in known:
            _compare(name, FULL[name], "claims-full")
        return
    if unknown := set(names) - set(known):
        raise SystemExit(f"{unknown.pop()!r}: allowed: {', '.join(known)}")
    for name in names or known:
        done = _compare(name, {}, "claims")
        picture = _picture(done.path, done.record, name)
        _put(name, _section(name, done, picture))
        _put("all", _overview(PAGE.read_text("utf-8")))


def _compare(name: str, overrides: dict[str, Any], folder: str) -> ComparisonDirectory:
    out, grid = Path("runs") / "compare" / folder / name, ConsoleGrid()
    try:
        done = fedtune.compare(f"claims/{name}", None, overrides, out, grid)
    finally:
        grid.close()
    print(f"{name}: {done.record['claim']['verdict']}, {out / 'report.html'}")
    return done


def _section(name: str, done: ComparisonDirectory, picture: str) -> str:
    record, claim = done.record, done.record["claim"]
    runs = list((done.path / "cells").iterdir())
    minutes = sum(line["seconds"] for run in runs for line in RunDirectory(run).metrics) / 60
    return "\n".join(
        [
            f"*{claim['says']}* ({claim['paper']})",
            "",
            f"**Verdict: {claim['verdict']}.**",
            "",
            markdown(claim_table(record)),
            f"![{name}](claims/{picture})",
            "",
            _details("What each reached", markdown(_short(result_table(record)))),
            _details("Search for settings", markdown(tuning_table(record)))
            if record["tune"]
            else "",
            f"`fedtune compare claims/{name}`: {record['seeds']} seeds, {_searched(record)}; "
            f"{len(runs)} runs, {minutes:.0f} minutes of rounds, on {record['device']}.",
            "",
        ]
    )


def _searched(record: dict[str, Any]) -> str:
    if not record["tune"]:
        return "no search"
    return f"a search of {', '.join(record['tune'])} with {record['tune_seeds']} of them"


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _short(table: Table) -> Table:
    """Without what is not about the claims."""
    keep = [i for i, heading in enumerate(table.headings) if i < 3 or "client" in heading]
    return Table([table.headings[i] for i in keep], [[row[i] for i in keep] for row in table.rows])


def _picture(path: Path, record: dict[str, Any], name: str) -> str:
    """The picture that shows the claim best: what is reported, a map, or the curves."""
    looks = [len(cell["looks"]) for family in record["families"] for cell in family["cells"]]
    wanted = [
        *claimed_reports(record),
        *(["curves", "heatmap"] if max(looks) > 3 else ["heatmap", "curves"]),
    ]
    found = next(one for one in wanted if (path / "plots" / f"{one}.png").exists())
    SHOWN.mkdir(parents=True, exist_ok=True)
    shutil.copy(path / "plots" / f"{found}.png", SHOWN / f"{name}.png")
    return f"{name}.png"


def _overview(page: str) -> str:
    rows = []
    for name, text in re.findall(r"<!-- claim: (\S+) -->\n(.*?)" + END, page, re.DOTALL):
        if name != "all" and (found := re.search(r"\*\*Verdict: (.*?)\.\*\*", text)):
            says = re.search(r"^\*(.*?)\* \((.*?);", text)
            assert says is not None
            rows.append([Entry(says[1]), Entry(says[2]), Entry(f"[{found[1]}](#{name})")])
    return markdown(Table(["claim", "method", "in our harness"], rows))


def _put(name: str, text: str) -> None:
    mark = f"<!-- claim: {name} -->\n"
    before, _, rest = PAGE.read_text("utf-8").partition(mark)
    if not rest:
        raise SystemExit(f"{PAGE}: has no place for claim {name!r}: {mark.strip()} ... {END}")
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{mark}{text}{END}{after}", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
