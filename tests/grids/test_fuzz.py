"""Mutated replies against the server: no crash, no number that is not finite, a reason for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from fedtune.grids.arrays import to_record, to_tensors
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.form import ReplyForm
from strategies import FedAvg

CLIENTS = 5
DTYPES = ["float16", "float64", "int64", "uint8", "bool", "complex64", ">f4", "object", "S4", "?x"]
EXTREMES = [np.nan, np.inf, -np.inf, 1e38, -3.4e38, 1e-45, 1e300]
NUMBERS = [0, -1, -1e-9, 1e13, 2**62, float("nan"), float("inf"), 1e-300, 1e308]


def model() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(2, 3),
        "b.weight": torch.randn(4),
        "steps": torch.tensor([3, 5]),
        "c.bias": torch.randn(1, 1),
    }


SENT = model()


class Mutant:
    """One honest reply, and what is done to it.

    Args:
        draw: decides everything.
    """

    def __init__(self, draw: np.random.Generator) -> None:
        self.draw = draw
        self.arrays: dict[str, Array] = {}
        for name, tensor in SENT.items():
            moved = tensor + torch.ones_like(tensor)
            self.arrays[name] = Array.from_numpy_ndarray(moved.numpy())
        self.metrics: dict[str, object] = {"num-examples": 7, "loss": 0.5}
        self.records: dict[str, object] = {}

    def pick(self) -> str:
        return str(self.draw.choice(sorted(self.arrays))) if self.arrays else ""

    def replace(self, name: str, **changes: object) -> None:
        if name:
            a = self.arrays[name]
            parts = {"dtype": a.dtype, "shape": a.shape, "stype": a.stype, "data": a.data}
            self.arrays[name] = Array(*{**parts, **changes}.values())

    def key(self) -> None:
        name = self.pick()
        if not name:
            return
        what = self.draw.integers(3)
        array = self.arrays.pop(name) if what < 2 else self.arrays[name]
        if what:
            self.arrays[str(self.draw.choice(["", "z", name.upper(), name + "\0", "x" * 999]))] = (
                array
            )

    def bytes(self) -> None:
        name = self.pick()
        data = bytearray(self.arrays[name].data) if name else bytearray()
        if not data:
            return
        at = int(self.draw.integers(len(data)))
        what = self.draw.integers(5)
        if what == 0:
            data[at] ^= 1 << int(self.draw.integers(8))
        elif what == 1:
            del data[at:]
        elif what == 2:
            data += bytes(self.draw.integers(0, 256, 9, dtype=np.uint8))
        elif what == 3:
            data[:] = bytes(self.draw.integers(0, 256, len(data), dtype=np.uint8))
        else:
            data[:] = data.replace(b"(2, 3)", b"(9999999999999, 3)"[: 6 + at])
        self.replace(name, data=bytes(data))

    def header(self) -> None:
        what = self.draw.integers(3)
        if what == 0:
            self.replace(self.pick(), dtype=str(self.draw.choice(DTYPES)))
        elif what == 1:
            shapes = [(), (0,), (3, 2), (6,), (-1,), (2, 3, 1), (10**12,)]
            self.replace(self.pick(), shape=shapes[int(self.draw.integers(len(shapes)))])
        else:
            self.replace(self.pick(), stype=str(self.draw.choice(["", "pickle", "torch", "NPY"])))

    def values(self) -> None:
        name = self.pick()
        if not name or name not in SENT:
            return
        kinds = [d for d in DTYPES if d not in ("object", "?x")]
        what = self.draw.integers(3)
        made = SENT[name].numpy().astype(np.float32)
        if what == 0:
            made = made.astype(str(self.draw.choice(kinds)))
        elif what == 1:
            made = made.astype(np.float64)
            made.flat[int(self.draw.integers(made.size))] = self.draw.choice(EXTREMES)
        else:
            made = np.resize(made, tuple(self.draw.integers(0, 4, int(self.draw.integers(4)))))
        self.arrays[name] = Array.from_numpy_ndarray(made)

    def numbers(self) -> None:
        what = self.draw.integers(4)
        if what == 0:
            self.metrics.pop(str(self.draw.choice(["num-examples", "loss"])), None)
        elif what == 1:
            self.metrics["num-examples"] = NUMBERS[int(self.draw.integers(len(NUMBERS)))]
        elif what == 2:
            self.metrics["loss"] = NUMBERS[int(self.draw.integers(len(NUMBERS)))]
        else:
            self.metrics[str(self.draw.choice(["num-examples", "loss", "other"]))] = [1.0, 2.0]

    def shape_of_content(self) -> None:
        what = self.draw.integers(4)
        if what == 0:
            self.records["arrays"] = None
        elif what == 1:
            self.records["metrics"] = None
        elif what == 2:
            self.records["again"] = ArrayRecord({"a.weight": self.arrays.get("a.weight", _one())})
        else:
            self.records["config"] = ConfigRecord({"server-round": -1})

    def content(self) -> RecordDict:
        for _ in range(int(self.draw.integers(0, 4))):
            steps = (self.key, self.bytes, self.header, self.values, self.numbers)
            steps += (self.shape_of_content,)
            steps[int(self.draw.integers(len(steps)))]()
        found = {"arrays": ArrayRecord(self.arrays), "metrics": MetricRecord(self.metrics)}
        made = {**found, **self.records}
        return RecordDict({name: record for name, record in made.items() if record is not None})


def _one() -> Array:
    return Array.from_numpy_ndarray(np.ones(1))


def mutated(asked: list[Message], draw: np.random.Generator) -> list[Message]:
    """The replies of a round, in any order, some missing, repeated, failed or of elsewhere."""
    replies = []
    for message in asked:
        fate = draw.integers(20)
        if fate == 0:
            continue
        if fate == 1:
            reason = ["", "\x1b[31mboom", "a\nb"][int(draw.integers(3))]
            replies.append(Message(Error(int(draw.integers(300)), reason), reply_to=message))
            continue
        reply = Message(Mutant(draw).content(), reply_to=message)
        if fate == 2:
            reply.metadata.__dict__["_reply_to_message_id"] = "f" * 64
        if fate == 3:
            reply.metadata.__dict__["_src_node_id"] = int(draw.integers(1, 99))
        if fate == 4:
            reply.metadata.__dict__["_message_type"] = "evaluate"
        replies += [reply, reply] if fate == 5 else [reply]
    return [replies[i] for i in draw.permutation(len(replies))]


def fuzz(count: int, seed: int, **parameters: object) -> dict[str, int]:
    """Rounds of mutated replies; counts what became of them."""
    draw = np.random.default_rng(seed)
    strategy = FedAvg(**parameters)
    strategy.warns = False
    grid = CohortGrid(None, range(CLIENTS))
    became = {"used": 0, "failed": 0, "rejected": 0, "lost": 0}
    record, sent = to_record(SENT), 0
    with grid.serving():
        for number in range(1, count // CLIENTS + 1):
            asked = list(strategy.configure_train(number, record, ConfigRecord(), grid))
            for message in asked:
                message.metadata.__dict__["_message_id"] = f"{(sent := sent + 1):064x}"
            arrays, _ = strategy.aggregate_train(number, mutated(asked, draw))
            report = strategy.report
            problems = {**report.failed, **report.rejected}
            assert all(isinstance(reason, str) and reason for reason in problems.values())
            answered = set(report.used) | set(report.lost) | set(problems)
            assert answered >= set(range(CLIENTS))
            assert not set(report.used) & set(report.lost)
            for kind in became:
                became[kind] += len(getattr(report, kind))
            if arrays is None:
                continue
            found = to_tensors(arrays)
            assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
                n: (t.dtype, t.shape) for n, t in SENT.items()
            }
            assert all(bool(t.isfinite().all()) for t in found.values())
    return became


@pytest.mark.parametrize("rule", ["mean", "median", "krum", "geometric-median"])
def test_mutated_replies_do_no_harm_and_each_has_its_reason(rule):
    became = fuzz(1000, 3, rule=rule, f=1)
    assert all(became[kind] > 10 for kind in became)
    assert became["used"] < 0.6 * 1000


@pytest.mark.long
def test_a_hundred_thousand_mutated_replies_do_no_harm():
    became = fuzz(100_000, 0)
    assert became["rejected"] > 30_000


def test_a_check_that_is_left_out_is_found(monkeypatch):
    """The same replies with the check of arrays taken away."""
    monkeypatch.setattr(ReplyForm, "_array_fault", lambda form, record: None)
    with pytest.raises(Exception):  # noqa: B017 - whatever the first bad array does
        fuzz(1000, 3)
