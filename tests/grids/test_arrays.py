"""Lazy arrays are Flower arrays to everybody else; sizes equal what Flower serialises."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedtune.adapters.packed import Packed, Places
from fedtune.grids.arrays import LazyArray, packed, to_record, to_tensors
from fedtune.grids.compat import content_to_bytes, task_identity
from fedtune.grids.sizes import Size, message_size
from fedtune.rules.flat import flat


def deflated(node) -> int:
    """Bytes of every object of a message's tree, as Flower writes them; equal ones count twice."""
    if isinstance(node, Message):
        children = [node.content] if node.has_content() else []
    elif isinstance(node, RecordDict | ArrayRecord):
        children = list(node.values())
    else:
        children = [c for _, c in node.slice_array()] if isinstance(node, Array) else []
    return len(node.deflate()) + sum(deflated(child) for child in children)


def tensors(dtype=torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layer.{i}.lora_B.weight": torch.randn(7, i + 1).to(dtype) for i in range(4)}


def message(content) -> Message:
    with task_identity(7):
        return Message(content, 123456789, "train")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_a_lazy_array_reads_as_flowers_own(dtype):
    for tensor in tensors(dtype).values():
        lazy, plain = LazyArray(tensor), Array(tensor.numpy())
        assert (lazy.dtype, lazy.shape, lazy.stype) == (plain.dtype, plain.shape, plain.stype)
        assert lazy.data == plain.data
        assert lazy.object_id == plain.object_id
        np.testing.assert_array_equal(lazy.numpy(), plain.numpy())


def test_nothing_is_serialised_in_process():
    record = to_record(tensors())
    for name, tensor in to_tensors(record).items():
        assert tensor.data_ptr() == record[name].__dict__["tensor"].data_ptr()
    assert not any("bytes" in array.__dict__ for array in record.values())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_plain_arrays_of_their_own(clone):
    lazy = LazyArray(torch.arange(6.0))
    other = clone(lazy)
    assert type(other) is Array
    assert other.data == lazy.data


def test_a_copy_for_numpy_does_not_share_memory():
    lazy = LazyArray(torch.zeros(3))
    lazy.numpy()[0] = 9
    assert float(to_tensors(ArrayRecord({"x": lazy}))["x"][0]) == 0


def test_setting_the_bytes_changes_the_tensor():
    lazy = LazyArray(torch.zeros(3))
    lazy.data = Array(np.ones(3, dtype=np.float32)).data
    np.testing.assert_array_equal(lazy.numpy(), np.ones(3))


def packed_tensors(dtype=torch.float32) -> Packed:
    found = tensors(dtype)
    places = Places({name: tuple(tensor.shape) for name, tensor in found.items()})
    return Packed(places, flat(found))


LOOKS = {
    "keys": lambda record: list(record.keys()),
    "iteration": list,
    "length": len,
    "items": lambda record: [(n, a.data) for n, a in record.items()],
    "values": lambda record: [a.shape for a in record.values()],
    "one": lambda record: record["layer.2.lora_B.weight"].numpy().tolist(),
    "contains": lambda record: ("layer.2.lora_B.weight" in record, "x" in record),
    "bytes": lambda record: (record.object_id, record.deflate()),
    "count": lambda record: record.count_bytes(),
    "numpy": lambda record: [a.tolist() for a in record.to_numpy_ndarrays()],
    "state": lambda record: [t.tolist() for t in record.to_torch_state_dict().values()],
    "copy": lambda record: [(n, a.data) for n, a in record.copy().items()],
    "deep copy": lambda record: [(n, a.data) for n, a in copy.deepcopy(record).items()],
    "pickle": lambda record: [(n, a.data) for n, a in pickle.loads(pickle.dumps(record)).items()],
    "protocol": lambda record: content_to_bytes(RecordDict({"arrays": record})),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_packed_record_reads_as_any_other(look):
    assert LOOKS[look](to_record(packed_tensors())) == LOOKS[look](to_record(tensors()))
    assert to_record(packed_tensors()) != to_record({})


def test_neither_sizes_nor_tensors_make_arrays_of_a_packed_record():
    whole = packed_tensors()
    record = to_record(whole)
    message_size(message(RecordDict({"arrays": record})))
    assert packed(record) is whole
    found = to_tensors(record)
    assert all(found[name].data_ptr() == whole[name].data_ptr() for name in whole)


def test_a_packed_record_can_be_changed_and_is_then_packed_no_more():
    for change in (
        lambda record: record.__setitem__("layer.1.lora_B.weight", Array(np.ones((7, 2)))),
        lambda record: setattr(
            record["layer.1.lora_B.weight"], "data", Array(np.ones((7, 2), np.float32)).data
        ),
    ):
        record = to_record(packed_tensors())
        change(record)
        assert packed(record) is None
        found = to_tensors(record)
        assert found.pop("layer.1.lora_B.weight").tolist() == [[1.0, 1.0]] * 7
        assert all(torch.equal(tensor, tensors()[name]) for name, tensor in found.items())
    del record["layer.0.lora_B.weight"]
    assert "layer.0.lora_B.weight" not in to_tensors(record)


CONTENTS = {
    "packed arrays": lambda: RecordDict({"arrays": to_record(packed_tensors())}),
    "packed arrays of doubles": lambda: RecordDict(
        {"arrays": to_record(packed_tensors(torch.float64))}
    ),
    "lazy arrays": lambda: RecordDict({"arrays": to_record(tensors())}),
    "plain arrays": lambda: RecordDict(
        {"arrays": ArrayRecord({n: Array(t.numpy()) for n, t in tensors().items()})}
    ),
    "several chunks": lambda: RecordDict({"arrays": to_record({"x": torch.randn(1_400_000)})}),
    "a scalar and an empty array": lambda: RecordDict(
        {"arrays": to_record({"x": torch.tensor(1.5), "y": torch.zeros(0, 3)})}
    ),
    "all records": lambda: RecordDict(
        {
            "arrays": to_record(tensors(torch.float64)),
            "metrics": MetricRecord({"num-examples": 12, "loss": 0.5, "many": [1.0, 2.0]}),
            "config": ConfigRecord({"server-round": 3, "name": "abc", "blob": b"123"}),
        }
    ),
    "nothing": RecordDict,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_sizes_equal_what_flower_serialises(name):
    sent = message(CONTENTS[name]())
    size = message_size(sent)
    records = sent.content.array_records.values()
    assert size.payload == sum(a.numpy().nbytes for r in records for a in r.values())
    assert size.payload + size.framing == deflated(sent)
    reply = Message(CONTENTS[name](), reply_to=sent)
    whole = message_size(reply)
    assert whole.payload + whole.framing == deflated(reply)


def test_an_error_reply_has_no_payload():
    reply = Message(Error(2, "broken"), reply_to=message(RecordDict()))
    assert message_size(reply) == Size(0, deflated(reply))


NUMBERS = st.integers(-(2**63), 2**63 - 1)
NODES = st.integers(0, 2**64 - 1)
KEYS = st.sampled_from(["a", "é"])
WORDS = st.one_of(st.text("aé😀", max_size=3), st.text(max_size=200), st.binary(max_size=200))
LISTS = st.one_of(st.lists(NUMBERS, max_size=9), st.lists(st.floats(), max_size=9))
SAID = st.dictionaries(KEYS, st.one_of(NUMBERS, st.floats(), st.booleans(), WORDS, LISTS))
TOLD = st.dictionaries(KEYS, st.one_of(NUMBERS, st.floats(), LISTS))


@given(NODES, NODES, st.text("aé", max_size=3), st.floats(1e-3, 1e6), SAID, TOLD)
def test_sizes_equal_what_flower_serialises_whatever_is_said(run, node, group, ttl, said, told):
    """Equal also where the size is known of another message of the same widths."""
    records = {"config": ConfigRecord(said), "metrics": MetricRecord(told)}
    with task_identity(run):
        sent = Message(RecordDict(records), node, "train", ttl=ttl, group_id=group)
        unset = Message(RecordDict(records), node, "train", ttl=ttl, group_id=group)
    unset.metadata.__dict__["_ttl"] = 0.0
    for one in (sent, unset, Message(RecordDict(records), reply_to=sent)):
        for _ in range(2):
            assert message_size(one) == Size(0, deflated(one))
