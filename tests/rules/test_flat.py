"""Named tensors as vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedtune.adapters.packed import Packed, Places
from fedtune.rules.flat import are_finite, differences, flat

EXTREME = float(np.finfo(np.float32).max)


@given(
    st.lists(
        arrays.arrays(
            np.float32,
            arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5),
            elements=st.floats(width=32) | st.sampled_from([EXTREME, -EXTREME]),
        ),
        max_size=4,
    )
)
def test_finite_is_what_numpy_calls_finite(found):
    expected = all(bool(np.isfinite(one).all()) for one in found)
    assert are_finite([torch.from_numpy(np.asarray(one)) for one in found]) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_tensors_of_several_dtypes_are_looked_at_together(dtype, broken):
    whole = torch.ones(300, dtype=dtype)
    assert are_finite([whole, torch.ones(3)])
    assert not are_finite([whole, torch.tensor([1.0, broken])])


def test_what_float32_cannot_hold_is_not_finite():
    """Two such clients end `dnc` and `flag` in an error of the eigenvalues in float64."""
    assert are_finite([torch.tensor([3e38, -3e38], dtype=torch.float64)])
    assert not are_finite([torch.tensor([1e200], dtype=torch.float64)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_several_devices_are_looked_at_together():
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    assert are_finite([here, there])
    assert not are_finite([here, there / 0])


def test_integers_are_subtracted_exactly_and_widen_what_is_beside_them():
    sent = {"n": torch.tensor([2**24 + 1, 5]), "w": torch.ones(1, dtype=torch.float16)}
    reply = {"n": torch.tensor([2**24 + 3, 2]), "w": torch.full((1,), 3.0, dtype=torch.float16)}
    found = differences([reply], sent)
    assert found.dtype == torch.float32
    assert found.tolist() == [[2.0, -3.0, 2.0]]
    bits = {"b": torch.tensor([1, 0], dtype=torch.uint8)}
    assert differences([{"b": 1 - bits["b"]}], bits).tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("numbers", [1, 2, 5])
def test_a_reply_of_another_size_is_an_error(numbers):
    with pytest.raises(ValueError, match=f"a reply of {numbers} numbers, not 3"):
        differences([{"w": torch.ones(numbers)}], {"w": torch.ones(3)})


NAMES = ["x", "y", "z"]


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
@pytest.mark.parametrize("mine", [torch.float32, torch.float64])
@pytest.mark.parametrize("theirs", [torch.float32, torch.float64, torch.bfloat16])
def test_differences_of_packed_replies_are_those_of_any(order, mine, theirs):
    torch.manual_seed(0)
    shapes = {name: (2, i + 1) for i, name in enumerate(order)}
    packed = [Packed(Places(shapes), torch.randn(12).to(theirs)) for _ in range(3)]
    sent = {name: torch.randn(2, i + 1).to(mine) for i, name in enumerate(NAMES)}
    if order != NAMES:
        sent = {name: sent[name].new_ones(shapes[name]) for name in NAMES}
    found = differences(packed, sent)
    assert torch.equal(found, differences([dict(one) for one in packed], sent))
    sent = {**sent, "y": sent["y"].to(torch.bfloat16)}  # what is rounded to each stays so
    assert torch.equal(differences(packed, sent), differences([dict(one) for one in packed], sent))
    less = {name: sent[name] for name in ("x", "z")}
    assert torch.equal(differences(packed, less), differences([dict(one) for one in packed], less))


def test_the_vector_of_packed_tensors_is_their_own():
    whole = Packed(Places({"x": (2,), "y": ()}), torch.arange(3.0))
    assert flat(whole) is whole.vector
    bits = Packed(whole.places, torch.tensor([1, 0, 1]))
    assert flat(bits).dtype == torch.float32
