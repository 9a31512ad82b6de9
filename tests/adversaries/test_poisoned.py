"""Poisoned examples: what is changed in one follows from it and its data, never from its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.adversaries.poisoned import Backdoor, CatMap, LabelFlip, Poisoned
from fedtune.tasks.base import Batch, Images, Table
from fedtune.tasks.pixels import PixelTable
from fedtune.tasks.synthetic import SyntheticImages
from fedtune.tasks.tokens import TokenTable

ROWS, PAD, TRIGGER = 12, 7, 99
ORDERS = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=6)


def dark_and_bright(channels=3):
    """uint8 images, each with a largest byte of its own."""
    draw = np.random.default_rng(0)
    tops = np.linspace(0, 255, ROWS).astype(int)
    made = [draw.integers(0, top + 1, (channels, 6, 6)) for top in tops]
    pixels = torch.from_numpy(np.stack(made).astype(np.uint8))
    pixels[-1, :, 0, 0] = 255
    return pixels


AFFINE = torch.tensor([[0.02, 0.03, 0.01], [-1.0, -2.0, 0.5]], dtype=torch.float64)
IDENTITY = torch.tensor([[1.0] * 3, [0.0] * 3], dtype=torch.float64)
LABELS = torch.arange(ROWS) % 4
IMAGES = {
    "bytes": PixelTable(dark_and_bright(), LABELS, AFFINE[:, :, None, None]),
    "values": PixelTable(dark_and_bright() / 100.0, LABELS, IDENTITY[:, :, None, None]),
    "made": SyntheticImages(ROWS, (3, 6, 6), 0, torch.device("cpu"), torch.float32),
}


def texts(typed=True):
    draw = np.random.default_rng(1)
    lengths = np.asarray([1, 2, 3, 9, 1, 4, 2, 6, 5, 3, 1, 8])
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    tokens = {"input_ids": torch.from_numpy(draw.integers(10, 90, int(offsets[-1])))}
    if typed:
        tokens["token_type_ids"] = torch.from_numpy(draw.integers(0, 2, int(offsets[-1])))
    return TokenTable(tokens, offsets, lengths, PAD, LABELS)


def everywhere(data, change):
    return Poisoned(data, torch.ones(ROWS, dtype=torch.bool), change)


def one_by_one(data, rows):
    return [data.gather(torch.tensor([row])) for row in rows]


@pytest.mark.parametrize("kind", list(IMAGES))
@pytest.mark.parametrize("change", [Backdoor(1, 2), "white", CatMap(2), LabelFlip(4)],
                         ids=["own", "white", "cat-map", "flip"])  # fmt: skip
@given(rows=ORDERS)
def test_an_image_is_changed_alike_in_every_batch(kind, change, rows):
    data = IMAGES[kind]
    if change == "white":
        change = Backdoor(1, 2, white=data.white)
    poisoned = everywhere(data, change)
    together = poisoned.gather(torch.tensor(rows))
    for index, alone in enumerate(one_by_one(poisoned, rows)):
        assert torch.equal(together.inputs["pixel_values"][index], alone.inputs["pixel_values"][0])
        assert together.labels[index] == alone.labels[0]


@given(rows=ORDERS, typed=st.booleans())
def test_a_text_is_changed_alike_however_it_is_padded(rows, typed):
    data = texts(typed)
    poisoned = everywhere(data, Backdoor(target=1, token=TRIGGER))
    together, plain = poisoned.gather(torch.tensor(rows)), data.gather(torch.tensor(rows))
    for index, (row, alone) in enumerate(zip(rows, one_by_one(poisoned, rows), strict=True)):
        length = int(data.lengths[row])
        assert together.inputs.keys() == alone.inputs.keys() == plain.inputs.keys()
        for name, found in together.inputs.items():
            assert torch.equal(found[index, :length], alone.inputs[name][0])
            assert torch.equal(found[index, length:], plain.inputs[name][index, length:])
            if name != "input_ids":
                assert torch.equal(found, plain.inputs[name])
        place = min(1, length - 1)
        words = alone.inputs["input_ids"][0]
        assert (words == TRIGGER).nonzero().ravel().tolist() == [place]
    assert (together.labels == 1).all()


@given(rows=ORDERS)
def test_padding_on_the_left_moves_the_trigger_along_with_the_text(rows):
    right = texts().gather(torch.tensor(rows))
    width = right.labels.new_tensor(right.inputs["input_ids"].shape[1])
    shift = width - right.inputs["attention_mask"].sum(1)
    left = {
        name: torch.stack([row.roll(int(by)) for row, by in zip(t, shift, strict=True)])
        for name, t in right.inputs.items()
    }
    trigger = Backdoor(token=TRIGGER)
    moved, still = trigger(Batch(left, right.labels)), trigger(right)
    for index, by in enumerate(shift):
        expected = still.inputs["input_ids"][index].roll(int(by))
        assert torch.equal(moved.inputs["input_ids"][index], expected)


def test_without_a_mask_all_tokens_are_seen():
    data = Table({"input_ids": torch.arange(6).view(2, 3) + 10}, torch.zeros(2, dtype=torch.long))
    found = everywhere(data, Backdoor(token=TRIGGER)).inner.gather(torch.arange(2))
    changed = Backdoor(token=TRIGGER)(found).inputs["input_ids"]
    assert changed.tolist() == [[10, TRIGGER, 12], [13, TRIGGER, 15]]
    assert not isinstance(data, Images)


@pytest.mark.parametrize("kind", list(IMAGES))
def test_the_square_is_as_bright_in_a_dark_image_as_in_a_bright_one(kind):
    data = IMAGES[kind]
    assert isinstance(data, Images)
    assert data.white.shape == (3, 1, 1)
    plain = data.gather(torch.arange(ROWS)).inputs["pixel_values"]
    assert (plain <= data.white).all()
    if kind != "made":
        assert torch.equal(data.white.ravel(), plain.amax((0, 2, 3)))
    trigger = Backdoor(size=2, white=data.white)
    found = everywhere(data, trigger).gather(torch.arange(ROWS)).inputs["pixel_values"]
    assert torch.equal(found[..., -2:, -2:], data.white.expand(ROWS, 3, 2, 2))
    changed = (found != plain).nonzero()
    assert (changed[:, 2:] >= 4).all()


def test_rows_that_are_not_chosen_stay():
    chosen = torch.arange(ROWS) % 3 == 0
    data = IMAGES["bytes"]
    poisoned = Poisoned(data, chosen, Backdoor(target=2, white=data.white))
    found, plain = (one.gather(torch.arange(ROWS)) for one in (poisoned, data))
    same = (found.inputs["pixel_values"] == plain.inputs["pixel_values"]).flatten(1).all(1)
    assert torch.equal(same | chosen, torch.ones(ROWS, dtype=torch.bool))
    assert torch.equal(found.labels, torch.where(chosen, 2, plain.labels))
