"""OSNet's fused blocks equal the four separate ones: outputs, gradients, statistics, second derivatives."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoreid.config import OsnetAin, Search
from autoreid.layers import cpu
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.osnet_ain.space import OsnetAinSpace
from tests.helpers.fused import (
    assert_all_close,
    assert_recomputing_only_saves_memory,
    assert_same,
    first_derivatives,
    second_derivatives,
    statistics,
)
from tests.helpers.per_block import PerBlock


@pytest.fixture(params=["cpu", "cpu, large maps", "gpu"])
def form(request, monkeypatch):
    """All forms of the blocks; for large maps, the blocks and their streams are computed one after the other."""
    if request.param == "cpu, large maps":
        monkeypatch.setattr(cpu, "_CACHE_BYTES", 0)
    with cpu.gpu_forms() if request.param == "gpu" else nullcontext():
        yield request.param


def build(in_channels, out_channels):
    """A fused block in float64 with random gates and statistics, and its oracle."""
    torch.manual_seed(0)
    block = MixedBlock(in_channels, out_channels).double()
    for name, value in [*block.named_parameters(), *block.named_buffers()]:
        if "running" in name:
            value.uniform_(0.5, 1.5)
        elif "gate" in name:
            torch.nn.init.normal_(value)
    return block, PerBlock(block)


@pytest.mark.usefixtures("form")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.sampled_from([(16, 64), (64, 64), (24, 128)]),
    size=st.sampled_from([(8, 6), (9, 7), (3, 2), (1, 2)]),
    training=st.booleans(),
    channels_last=st.booleans(),
)
def test_outputs_gradients_and_statistics(channels, size, training, channels_last):
    block, oracle = (net.train(training) for net in build(*channels))
    x = torch.randn(3, channels[0], *size, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    mixing = torch.rand(4, dtype=torch.float64, requires_grad=True)
    (found, weights), (expected, expected_weights) = (
        first_derivatives(net, x, mixing) for net in (block, oracle)
    )
    assert_all_close(found, expected)
    assert_same(weights, expected_weights)
    assert_same(statistics(block), statistics(oracle))


@pytest.mark.usefixtures("form")
def test_second_derivatives():
    block, oracle = build(16, 64)
    x = torch.randn(2, 16, 4, 3, dtype=torch.float64, requires_grad=True)
    mixing = torch.rand(4, dtype=torch.float64, requires_grad=True)
    found, expected = (second_derivatives(net, x, mixing) for net in (block, oracle))
    assert_all_close(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("form")
def test_recomputing_blocks_changes_nothing_but_what_is_kept():
    images = torch.randn(4, 3, 64, 32, dtype=torch.float64)
    mixing = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    nets = []
    for setting in ("none", "cell"):
        torch.manual_seed(0)
        search = Search(space="osnet_ain", osnet_ain=OsnetAin(width=0.25), activation_checkpointing=setting)
        nets.append(OsnetAinSpace(search).build_supernet(5).double())
    assert_recomputing_only_saves_memory(*nets, images, {"blocks": mixing}, share=0.3)
