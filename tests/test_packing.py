from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from autoreid.data.packing import Packed
from tests.helpers.traffic import META, traffic

DTYPES = (torch.uint8, torch.int64, torch.float32, torch.float64, torch.int16, torch.bool)


def some_tensor(rng, dtype, shape):
    return torch.from_numpy(rng.integers(0, 100, shape)).to(dtype)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), max_size=3)), max_size=5),
    st.lists(st.integers(1, 7), max_size=4),
)
def test_tensors_come_back_as_they_were(seed, kinds, blank):
    rng = np.random.default_rng(seed)
    tensors = {str(n): some_tensor(rng, dtype, shape) for n, (dtype, shape) in enumerate(kinds)}
    packed = Packed.of({**tensors, "nothing": None}, blank=tuple(blank))
    found = packed.tensors()
    assert set(found) == {*tensors, "blank"}
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    found["blank"].fill_(255)  # must not change the other tensors
    assert packed.tensors()["blank"].shape == tuple(blank)
    assert torch.equal(packed.tensors()["blank"], found["blank"])
    assert all(torch.equal(packed.tensors()[name], tensor) for name, tensor in tensors.items())
    assert all(view.data_ptr() % 16 == 0 for view in found.values())


def a_batch():
    return Packed.of(
        {"labels": torch.arange(3), "jitter": torch.ones(3, 3), "erased": None}, pixels=(3, 3, 5, 7)
    )


def test_all_of_it_reaches_a_device_by_one_copy():
    packed = a_batch()
    with traffic() as found:
        tensors = packed.to(META).tensors()
    assert found.copies == 1
    assert all(tensor.is_meta for tensor in tensors.values())
    assert {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()} == packed.layout


def test_a_loader_pins_the_one_buffer(monkeypatch):
    """Traverses a batch as torch's DataLoader does for pinning; pinning itself needs a GPU."""
    pinned = []

    def pin(tensor, device=None):  # older releases of torch pass a device
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    packed = a_batch()
    found = pin_memory((packed, "a message", None))
    assert list(found[1:]) == ["a message", None]
    assert [tensor is packed.buffer for tensor in pinned] == [True]
    assert isinstance(found[0], Packed)
    for name, tensor in packed.tensors().items():
        assert torch.equal(found[0].tensors()[name], tensor)


@pytest.mark.parametrize(
    "action",
    [
        lambda there, here: there.sum().item(),
        lambda there, here: there.cpu(),
        lambda there, here: there[there > 0],
        lambda there, here: there[[0, 1]],
        lambda there, here: there[torch.tensor([0])],
        lambda there, here: there + here,
        lambda there, here: torch.tensor([1.0, 2.0], device=META),
    ],
)
def test_what_would_wait_for_a_device_is_noticed(action):
    there, here = torch.zeros(3, device=META), torch.zeros(3)
    with pytest.raises((AssertionError, NotImplementedError)), traffic():
        action(there, here)
