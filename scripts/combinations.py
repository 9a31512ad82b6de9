"""Which parts go together: every combination is built and run for two rounds, or refused.

.venv/bin/python scripts/combinations.py [--only-privacy]   # 25 minutes on 2 CPU cores

1. Every adapter kind with every rule, pre-aggregator, server optimiser and head policy (the full
   product), under the strategy that brings the kind.
2. Every strategy with every kind, and on each accepted pair every rule, pre-aggregator, server
   optimiser and head policy, one changed at a time.

3. Every strategy with every kind that it accepts and every rule under both mechanisms of privacy.

Writes docs/methods/combinations.md. A combination that runs must change the model and keep it
finite; one that is refused must say why before anything is trained.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.directory import RunDirectory
from fedtune.runs.loop import one_round, open_run, start_state
from fedtune.runs.settling import settle_paths
from fedtune.runs.strategies import find_strategy, strategy_names
from fedtune.scenario import load_scenario
from fedtune.scenario.schema import RULE, PreName, ServerOptimizerName
from fedtune.tasks.library import Library

OUT = Path(__file__).parent.parent / "docs" / "methods" / "combinations.md"
KINDS = {"lora": "fedavg", "ffa": "ffa-lora", "lora-sb": "fed-sb", "rank": "frl", "none": "fedavg"}
RULES = [name for name in RULE.own if name != "auto"]
PRE: list[str] = ["none", *get_args(PreName)]
OPTIMIZERS: list[str] = list(get_args(ServerOptimizerName))
HEADS = ["shared", "frozen", "local"]
PRIVATE = "## Under differential privacy\n"
MECHANISMS = {
    "example": {"privacy.clip": 1.0, "privacy.noise_multiplier": 1.0, "privacy.delta": 1e-5},
    "user": {"privacy.clip": 1.0, "privacy.noise_multiplier": 1.0, "privacy.delta": 0.1},
}
SMALL = {
    "clients.count": 6,
    "clients.participation.value": 1.0,
    "local.epochs": None,
    "local.steps": 1,
    "local.batch_size": 2,
    "adapter.rank": 2,
    "adapter.init_examples": 4,
    "task.server_examples": 20,
    "task.train_examples": 200,
    "run.rounds": 3,
    "run.eval_every": 100,
    "engine.threads": 1,
    "strategy.f": 0,
}
Options = dict[str, Any]


class Silent(RunDirectory):
    """A run directory that keeps nothing."""

    def write_opening(self, found: dict[str, Any]) -> None:
        """Forget it."""


def outcome(options: Options, library: Library) -> str:
    """`ok`, or the reason for which the combination is refused.

    Raises:
        AssertionError: if it runs and changes nothing, or leaves the numbers' range.
    """
    try:
        made = build(
            settle_paths(load_scenario("quickstart", {**SMALL, **options})), library=library
        )
    except ScenarioError as error:
        return str(error)
    state = start_state(made, None)
    with made.serving.serving():
        open_run(made, state, Silent("nowhere"))
        before = {name: tensor.clone() for name, tensor in state.arrays.items()}
        lines = [one_round(made, state, number) for number in (1, 2)]
    assert all(line["rejected"] == line["failures"] == 0 for line in lines), (options, lines)
    assert all(bool(tensor.isfinite().all()) for tensor in state.arrays.values()), options
    assert any(not torch.equal(before[n], t) for n, t in state.arrays.items()), options
    return "ok"


def options_of(rule: str, pre: str, optimizer: str, head: str) -> Options:
    """A scenario's keys for the parts; `auto` and `none` leave them at their defaults."""
    return {
        "strategy.rule": rule,
        "strategy.pre": [] if pre == "none" else [pre],
        "strategy.server_optimizer": optimizer,
        "task.head": head,
    }


def product() -> Iterator[tuple[tuple[str, ...], Options]]:
    """All combinations of kind, rule, pre-aggregator, server optimiser and head policy."""
    for kind, *parts in itertools.product(KINDS, RULES, PRE, OPTIMIZERS, HEADS):
        named = {"strategy.name": KINDS[kind], "adapter.kind": kind}
        yield (kind, *parts), {**named, **options_of(*parts)}


def one_at_a_time() -> Iterator[tuple[tuple[str, ...], Options]]:
    """Every strategy and kind; on an accepted pair, every other part by itself."""
    for name, kind in itertools.product(strategy_names(), KINDS):
        named = {"strategy.name": name, "adapter.kind": kind}
        plain = ("auto", "none", "none", "shared")
        yield (name, kind, *plain), {**named, **options_of(*plain)}
        if kind not in find_strategy(name).accepts:
            continue
        for place, values in enumerate((RULES, PRE[1:], OPTIMIZERS[1:], HEADS[1:])):
            for value in values:
                parts = (*plain[:place], value, *plain[place + 1 :])
                yield (name, kind, *parts), {**named, **options_of(*parts)}


def privately() -> Iterator[tuple[tuple[str, ...], Options]]:
    """Every strategy and kind that it accepts, and every rule of the plainest, under privacy."""
    for name, (mechanism, given) in itertools.product(strategy_names(), MECHANISMS.items()):
        private = {"privacy.mechanism": mechanism, **given}
        for kind in sorted(find_strategy(name).accepts):
            named = {"strategy.name": name, "adapter.kind": kind}
            yield (name, kind, mechanism), {**named, **private}
        if name == "fedavg":
            for rule in RULES:
                yield (rule, mechanism), {**private, "strategy.rule": rule}


def main() -> None:
    """Run them and write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only-privacy", action="store_true", help="keep the page's rest")
    only_privacy = arguments.parse_args().only_privacy
    library = Library()
    private = {key: outcome(options, library) for key, options in privately()}
    written = OUT.read_text("utf-8").split(PRIVATE)[0] if only_privacy else whole_page(library)
    OUT.write_text(written + "\n".join(private_part(private)), "utf-8")


def whole_page(library: Library) -> str:
    """All that privacy has no part in."""
    started = time.perf_counter()
    alone = {key: outcome(options, library) for key, options in one_at_a_time()}
    print(f"{len(alone)} one at a time, {time.perf_counter() - started:.0f} s", flush=True)
    whole: dict[tuple[str, ...], str] = {}
    for key, options in product():
        whole[key] = outcome(options, library)
        if len(whole) % 500 == 0:
            print(f"{len(whole)} of the product, {time.perf_counter() - started:.0f} s", flush=True)
    seconds = time.perf_counter() - started
    return "\n".join(page(alone, whole, seconds))


def page(
    alone: dict[tuple[str, ...], str], whole: dict[tuple[str, ...], str], seconds: float
) -> Iterator[str]:
    """The page's lines."""
    ran = sum(found == "ok" for found in whole.values())
    yield "# What goes together\n"
    yield (
        f"`scripts/combinations.py` ran {len(whole):,} combinations of adapter kind, rule, "
        f"pre-aggregator, server optimiser and head policy for two rounds ({ran:,} run, the others "
        f"are refused before anything is trained), and every strategy with each of these parts, in "
        f"{seconds / 60:.0f} min on 2 CPU cores. `pytest -m long tests/runs/test_combinations.py` "
        "runs them again.\n"
    )
    yield "## Strategies and adapter kinds\n"
    yield from _table("strategy", list(KINDS), [(n, _kinds(alone, n)) for n in strategy_names()])
    yield "\n✓: with every rule, pre-aggregator, server optimiser, head; ✓ (n): but for reason n.\n"
    reasons = _numbered(alone)
    yield from (f"{number}. {reason}" for reason, number in reasons.items())
    yield "\n## The full product\n"
    yield (
        "Of each kind and rule, how many of the 75 combinations of pre-aggregator, server "
        "optimiser and head policy run.\n"
    )
    rows = [(rule, [_count(whole, kind, rule) for kind in KINDS]) for rule in RULES]
    yield from _table("rule", list(KINDS), rows)
    yield "\nWhy the others do not:\n"
    yield from (f"- {reason}: {count:,}" for reason, count in _reasons(whole))
    yield ""


def private_part(found: dict[tuple[str, ...], str]) -> Iterator[str]:
    """Lines on what runs under which mechanism."""
    said = sorted({_private_reason(why) for why in found.values() if why != "ok"})
    numbers = {reason: number for number, reason in enumerate(said, 1)}

    def cell(key: tuple[str, ...]) -> str:
        return "✓" if found[key] == "ok" else f"– ({numbers[_private_reason(found[key])]})"

    columns = [f"{mechanism} level" for mechanism in MECHANISMS]
    yield PRIVATE
    yield (
        "`scripts/combinations.py --only-privacy`: two rounds each, noise multiplier 1; "
        "[what it promises](../privacy.md).\n"
    )
    kept = {key[:-1]: [cell((*key[:-1], m)) for m in MECHANISMS] for key in found}
    pairs = [(", ".join(key), cells) for key, cells in kept.items() if len(key) == 2]
    rules = [(key[0], cells) for key, cells in kept.items() if len(key) == 1]
    yield from _table("strategy, kind", columns, pairs)
    yield ""
    yield from _table("rule (fedavg)", columns, rules)
    yield "\n–: refused before anything is trained, for reason\n"
    yield from (f"{number}. {reason}" for reason, number in numbers.items())
    yield ""


def _private_reason(text: str) -> str:
    """A refusal's key and why, whatever the value."""
    key, _, why = text.removeprefix("scenario: ").partition(": ")
    return f"`{key.split(' = ')[0]}`: {re.sub(r', and privacy.mechanism.*|; allowed.*', '', why)}"


def _kinds(alone: dict[tuple[str, ...], str], name: str) -> list[str]:
    reasons = _numbered(alone)
    cells = []
    for kind in KINDS:
        found = {key: said for key, said in alone.items() if key[:2] == (name, kind)}
        if len(found) == 1:
            cells.append("–")
            continue
        numbers = sorted({reasons[_reason(said)] for said in found.values() if said != "ok"})
        cells.append("✓" + (f" ({', '.join(map(str, numbers))})" if numbers else ""))
    return cells


def _numbered(alone: dict[tuple[str, ...], str]) -> dict[str, int]:
    said = {
        _reason(found)
        for key, found in alone.items()
        if found != "ok" and key[1] in find_strategy(key[0]).accepts
    }
    return {reason: number for number, reason in enumerate(sorted(said), 1)}


def _reasons(whole: dict[tuple[str, ...], str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for found in whole.values():
        if found != "ok":
            counts[_reason(found)] = counts.get(_reason(found), 0) + 1
    return sorted(counts.items(), key=lambda pair: -pair[1])


def _reason(text: str) -> str:
    """What is refused and why, without the values that were given."""
    text = text.split("; allowed")[0].split(", e.g.")[0].removeprefix("scenario: ")
    key = re.match(r"[a-z_]+\.[a-z_]+", text)
    why = re.sub(r"(strategy )?'[a-z-]+'", "the strategy", text.partition(": ")[2])
    return f"`{key.group()}`: {why}" if key else text


def _count(whole: dict[tuple[str, ...], str], kind: str, rule: str) -> str:
    found = [said for key, said in whole.items() if key[:2] == (kind, rule)]
    ran = sum(said == "ok" for said in found)
    return "–" if not ran else str(ran)


def _table(first: str, columns: list[str], rows: list[tuple[str, list[str]]]) -> Iterator[str]:
    yield "| " + " | ".join([first, *columns]) + " |"
    yield "|" + "---|" * (len(columns) + 1)
    yield from ("| " + " | ".join([name, *cells]) + " |" for name, cells in rows)


if __name__ == "__main__":
    main()
