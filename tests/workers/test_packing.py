"""Objects in parcels: what comes out is what went in, and shared tensors are not in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.adapters.packed import Packed, Places
from fedtune.errors import ClientFailure
from fedtune.workers.packing import Flat, pack, shared_by, unpack

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@dataclass
class Thing:
    """Something that holds tensors at several depths."""

    name: str
    tensors: dict[str, torch.Tensor]
    nested: list[tuple[int, torch.Tensor]]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99))
def test_a_tensor_comes_out_as_it_went_in(dtype, shape, seed):
    torch.manual_seed(seed)
    tensor = torch.randint(0, 2, tuple(shape)).to(dtype)
    found = unpack(pack({"t": tensor}), [], CPU)["t"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)
    assert found.shape == tensor.shape


def test_identity_within_a_parcel_is_kept():
    tensor = torch.arange(6.0)
    thing = Thing("x", {"a": tensor, "b": tensor}, [(1, tensor), (2, torch.ones(2))])
    found = unpack(pack(thing), [], CPU)
    assert found.tensors["a"] is found.tensors["b"] is found.nested[0][1]
    assert len(pack(thing).own) == 2


def test_what_several_hold_travels_once():
    broadcast, own = torch.randn(1000), [torch.randn(10) for _ in range(5)]
    things = [Thing(str(k), {"a": broadcast}, [(k, tensor)]) for k, tensor in enumerate(own)]
    shared = shared_by(things)
    assert [tensor is broadcast for tensor in shared] == [True]
    parcels = [pack(thing, shared) for thing in things]
    assert all(sum(flat.nbytes for flat in parcel.own) == 40 for parcel in parcels)
    arrived = [torch.clone(tensor) for tensor in shared]
    back = [unpack(parcel, arrived, CPU) for parcel in parcels]
    assert all(thing.tensors["a"] is arrived[0] for thing in back)
    assert all(torch.equal(thing.nested[0][1], own[k]) for k, thing in enumerate(back))


def test_a_view_carries_its_own_numbers_only():
    row = torch.randn(1000, 8)[3]
    assert Flat.of(row).nbytes == 32
    turned = torch.randn(4, 3).T
    assert torch.equal(Flat.of(turned).tensor(CPU), turned)


def test_what_arrives_can_be_written_to():
    arrived = Flat.of(torch.zeros(3)).tensor(CPU)
    arrived += 1
    assert arrived.tolist() == [1, 1, 1]


def test_a_clients_failure_travels():
    failure = unpack(pack(ClientFailure(3, "train", ValueError("no"))), [], CPU)
    assert (failure.client, failure.stage, failure.reason) == (3, "train", "ValueError: no")


def test_packed_tensors_of_a_cohort_travel_as_their_own_row():
    places = Places({"a": (2, 3), "b": (4,)})
    matrix = torch.randn(100, 10)
    parcel = pack([Packed(places, row) for row in matrix[:2]])
    assert [flat.nbytes for flat in parcel.own] == [40, 40]
    back = unpack(parcel, [], CPU)
    assert torch.equal(back[1]["a"], matrix[1, :6].view(2, 3))
    assert back[0].places is back[1].places
