"""Tensors that lie in one vector are those of its parts."""

from __future__ import annotations

import pickle

import pytest
import torch

from fedtune.adapters.layout import Layout, TensorSpec
from fedtune.adapters.packed import Packed

SHAPES = {"a.lora_A.weight": (2, 3), "a.lora_B.weight": (3, 2), "bias": (4,), "scale": ()}


def made() -> tuple[Layout, Packed]:
    roles = ("A", "B", "head", "head")
    specs = [
        TensorSpec(name, name, shape, role, trained=True, sent=True)
        for (name, shape), role in zip(SHAPES.items(), roles, strict=True)
    ]
    layout = Layout(tuple(specs))
    return layout, Packed(layout.places, torch.arange(float(layout.width)))


def test_they_are_what_the_layout_splits():
    layout, packed = made()
    split = layout.split(packed.vector)
    assert list(packed) == list(split) == list(SHAPES)
    for name, tensor in packed.items():
        assert torch.equal(tensor, split[name])
        assert tensor.shape == split[name].shape
        assert tensor.data_ptr() == split[name].data_ptr()
    numbers = [number for t in packed.values() for number in t.reshape(-1).tolist()]
    assert numbers == packed.vector.tolist()
    assert [tuple(tensor.shape) for tensor in packed.values()] == list(SHAPES.values())
    stacked = layout.split(torch.stack([packed.vector, packed.vector + 1.0]))
    assert all(torch.equal(stacked[name][1], packed[name] + 1.0) for name in packed)


def test_of_a_part_of_the_layout_they_are_that_part():
    layout, _ = made()
    part = layout.training(["bias", "a.lora_A.weight"])
    packed = Packed(part.places, torch.arange(10.0))
    assert list(packed) == ["a.lora_A.weight", "bias"]
    assert packed["bias"].tolist() == [6.0, 7.0, 8.0, 9.0]


def test_flattened_again_they_are_the_vector_in_the_order_of_the_layout():
    layout, packed = made()
    assert layout.flatten(packed) is packed.vector
    other = Layout(layout.specs[::-1])
    assert torch.equal(other.flatten(packed), other.flatten(dict(packed)))


def test_a_pickle_holds_the_vector_once():
    _, packed = made()
    assert "bias" in packed
    other = pickle.loads(pickle.dumps(packed))
    assert torch.equal(other.vector, packed.vector)
    assert all(torch.equal(other[name], packed[name]) for name in packed)
    assert other["bias"].data_ptr() == other.vector[12:].data_ptr()


def test_nothing_can_be_put_in_its_place():
    _, packed = made()
    with pytest.raises(TypeError):
        packed["bias"] = torch.zeros(4)


def test_with_others_they_make_a_dict():
    _, packed = made()
    more = {"bias": torch.zeros(4), "x": torch.ones(1)}
    assert list(packed | more) == [*SHAPES, "x"]
    assert (packed | more)["bias"].tolist() == [0.0] * 4
    assert (more | packed)["bias"].tolist() == [12.0, 13.0, 14.0, 15.0]
    assert type(packed | more) is type(more | packed) is dict
