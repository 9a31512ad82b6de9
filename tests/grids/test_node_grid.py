"""Flower's own grid with logical clients behind it; malformed replies in any form."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedtune.adapters.packed import Packed, Places
from fedtune.errors import RunError
from fedtune.grids.arrays import to_record
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.directory import directory_of
from fedtune.grids.form import ReplyForm
from fedtune.grids.node_grid import NodeGrid
from fedtune.grids.replies import reason_of
from fedtune.grids.sizes import message_size


class Answering:
    """A client side whose nodes answer queries with what they are told to."""

    def __init__(self, answers):
        self.answers = answers

    def handle(self, messages):
        return [
            Message(RecordDict({"config": ConfigRecord(self.answers[client])}), reply_to=message)
            for client, message in messages
        ]


def grid_of(answers, eligible=None) -> NodeGrid:
    inner = CohortGrid(Answering(answers), range(len(answers)))
    return NodeGrid(inner, len(answers), eligible or range(len(answers)))


def test_logical_ids_are_what_the_nodes_say_not_their_order():
    grid = grid_of([{"client-id": 2}, {"client-id": 0}, {"client-id": 1}], eligible=[0, 2])
    with grid.inner.serving():
        directory = directory_of(grid)
    assert list(directory.clients) == [0, 2]
    inner = grid.inner.directory
    assert [inner.client(directory.node(client)) for client in (0, 2)] == [1, 0]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"client-id": 0}, {"client-id": 0}], "two nodes say that they are client 0"),
        ([{"client-id": 0}, {"client-id": 5}], "no node is client 1"),
        ([{"client-id": 0}, {"name": 1}], "does not say which client it is"),
        ([{"client-id": "first"}, {"client-id": 1}], "does not say which client it is"),
    ],
)
def test_nodes_that_cannot_be_told_apart_end_the_run_in_a_line(answers, said):
    grid = grid_of(answers)
    with grid.inner.serving(), pytest.raises(RunError, match=said):
        _ = grid.directory


def test_a_remote_traceback_is_cut_to_its_last_line():
    grid = CohortGrid(Answering([{}]), [0])
    with grid.serving():
        asked = Message(RecordDict(), 2, "train")
        long = "<class 'X'>:<'\x1b[36mray::f()\x1b[39m\n  File \"a.py\"\nValueError: no sensor'>"
        reply = Message(Error(1, long), reply_to=asked)
    assert reason_of(reply) == "ValueError: no sensor"


EXPECTED = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
BROKEN = {
    "truncated": (Array("float64", (2,), "numpy.ndarray", b"\x93NUMPY\x01"), "cannot be read"),
    "unknown type": (Array("bogus", (2,), "numpy.ndarray", b"xx"), "cannot be read"),
    "another shape inside": (None, r"a has shape \(3,\), not \(2,\)"),
    "complex": (Array.from_numpy_ndarray(np.zeros(2, dtype=np.complex128)), "complex"),
    "squares that overflow": (Array.from_numpy_ndarray(np.full(2, 1e200)), "a holds NaN or Inf"),
}


def test_tensors_of_several_kinds_are_checked_together():
    """A counter beside half precision is no fault; a NaN beside a mask is one."""
    sent = {
        "n": torch.tensor(70000), "w": torch.zeros(2, dtype=torch.float16),
        "m": torch.tensor([True, False]),
    }  # fmt: skip
    form = ReplyForm(sent, "num-examples")
    metrics = MetricRecord({"num-examples": 1})
    good = RecordDict({"arrays": to_record(sent), "metrics": metrics})
    assert form.fault(good) is None
    bad = to_record({**sent, "w": torch.full((2,), float("nan"), dtype=torch.float16)})
    fault = form.fault(RecordDict({"arrays": bad, "metrics": metrics}))
    assert fault == "w holds NaN or Inf as float32"


def packed_cases() -> dict[str, Packed]:
    """Replies that lie in one vector, for a form of a (2, 2) and b (3,)."""
    places = Places({"a": (2, 2), "b": (3,)})
    cases = {"good": torch.ones(7), "wide": torch.ones(7, dtype=torch.float64)}
    cases |= {"whole numbers": torch.ones(7, dtype=torch.int64)}
    for place in (0, 3, 4, 6):
        for value in (float("nan"), float("inf"), 1e200):
            cases[f"{value} at {place}"] = torch.ones(7, dtype=torch.float64)
            cases[f"{value} at {place}"][place] = value
    found = {name: Packed(places, vector) for name, vector in cases.items()}
    for shapes in ({"a": (4,), "b": (3,)}, {"b": (3,), "a": (2, 2)}, {"a": (2, 2)}, {"a": (7,)}):
        found[str(shapes)] = Packed(
            Places(shapes), torch.ones(sum(map(math.prod, shapes.values())))
        )
    return found


@pytest.mark.parametrize("name", packed_cases())
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.float32, torch.float16)])
def test_a_packed_reply_is_judged_as_any(name, dtypes):
    sent = {"a": torch.zeros(2, 2, dtype=dtypes[0]), "b": torch.zeros(3, dtype=dtypes[1])}
    form, metrics = ReplyForm(sent, "num-examples"), MetricRecord({"num-examples": 1})
    packed = packed_cases()[name]
    faults = [
        form.fault(RecordDict({"arrays": to_record(one), "metrics": metrics}))
        for one in (packed, dict(packed))
    ]
    assert faults[0] == faults[1]
    assert (faults[0] is None) == (name in ("good", "wide") or name.startswith("{'b'"))


@pytest.mark.parametrize("name", BROKEN)
def test_no_bytes_of_a_client_break_the_server(name):
    array, said = BROKEN[name]
    if array is None:
        array = Array.from_numpy_ndarray(np.zeros(3))
        array.shape = (2,)
    arrays = ArrayRecord({"a": array, "b": Array.from_numpy_ndarray(np.zeros(2))})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    fault = ReplyForm(EXPECTED, "num-examples").fault(content)
    assert fault is not None
    assert re.search(said, fault), fault
    grid = CohortGrid(Answering([{}]), [0])
    with grid.serving():
        reply = Message(content, reply_to=Message(RecordDict(), 2, "train"))
    assert message_size(reply).payload > 0
