"""MSINet's fused cells equal plain ones: outputs, gradients, statistics, second derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoreid.config import Msinet, Search
from autoreid.spaces.msinet.cells import Cell
from autoreid.spaces.msinet.interactions import MixedInteraction
from autoreid.spaces.msinet.space import MsinetSpace
from tests.helpers.fused import (
    EXACT,
    assert_all_close,
    assert_recomputing_only_saves_memory,
    assert_same,
    first_derivatives,
    second_derivatives,
    statistics,
)
from tests.helpers.msinet import PlainCell, fixture, of_supernet, plain_cells
from tests.helpers.torchreid import formula_state, their_images


def build(in_channels, out_channels):
    """A fused cell in float64 with random gates, attention and statistics, and its plain form."""
    torch.manual_seed(0)
    middle = out_channels // 4
    cell = Cell(in_channels, out_channels, [MixedInteraction(middle), MixedInteraction(middle)]).double()
    for name, value in [*cell.named_parameters(), *cell.named_buffers()]:
        if "running" in name or "bn" in name:
            value.data.copy_(torch.rand_like(value.double()) + 0.5)
        elif "interact" in name:
            torch.nn.init.normal_(value)
    return cell, PlainCell(cell)


@pytest.mark.usefixtures("form")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.sampled_from([(16, 64), (64, 64), (24, 128)]),
    size=st.sampled_from([(8, 6), (9, 7), (3, 2), (1, 1)]),
    training=st.booleans(),
    channels_last=st.booleans(),
)
def test_outputs_gradients_and_statistics(channels, size, training, channels_last):
    cell, oracle = (net.train(training) for net in build(*channels))
    x = torch.randn(3, channels[0], *size, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    mixing = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, mixing[0], None, mixing[1], None)
    (found, weights), (expected, expected_weights) = (
        first_derivatives(net, *inputs) for net in (cell, oracle)
    )
    assert_all_close(found, expected)
    assert_same(weights, of_supernet(expected_weights))
    assert_same(statistics(cell), of_supernet(statistics(oracle)))


@pytest.mark.usefixtures("form")
def test_second_derivatives():
    cell, oracle = build(16, 64)
    x = torch.randn(2, 16, 4, 3, dtype=torch.float64, requires_grad=True)
    mixing = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    found, expected = (second_derivatives(net, x, mixing[0], None, mixing[1], None) for net in (cell, oracle))
    assert_all_close(found, expected, tolerance=1e-7)


def test_the_plain_supernet_gives_the_authors_embedding():
    """With all cells replaced: the oracle of these tests and of benchmarks/search_step.py computes what they do."""
    recorded = fixture()["supernet"]
    network = MsinetSpace(Search(space="msinet")).build_supernet(recorded["num_classes"])
    network.load_state_dict(of_supernet(formula_state(recorded["state_dict"])))
    plain_cells(network)
    mixing = torch.sin(1.7 * torch.arange(48, dtype=torch.float64)).view(12, 4).softmax(1)
    with torch.no_grad():
        found = network.eval().double()(their_images(recorded["input"]).double(), {"interactions": mixing})[
            :, :8
        ]
    expected = torch.tensor(recorded["embedding_first8"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, **EXACT)


def test_attention_does_not_round_in_bfloat16():
    """Energies are sums over all pixels; in bfloat16 they would be off by more than the softmax can bear."""
    torch.manual_seed(0)
    attention = MixedInteraction(16)["cross_att"]
    maps = torch.randn(2, 32, 16, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.attention(maps)
    torch.testing.assert_close(found.double(), attention.attention(maps.double()), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("form")
def test_recomputing_cells_changes_nothing_but_what_is_kept():
    images = torch.randn(4, 3, 64, 32, dtype=torch.float64)
    mixing = torch.rand(12, 4, dtype=torch.float64, requires_grad=True)
    nets = []
    for setting in ("none", "cell"):
        torch.manual_seed(0)
        search = Search(space="msinet", msinet=Msinet(width=0.25), activation_checkpointing=setting)
        nets.append(MsinetSpace(search).build_supernet(5).double())
    assert_recomputing_only_saves_memory(*nets, images, {"interactions": mixing}, share=0.3)
