"""MSINet's fused cells equal plain ones: outputs, gradients, statistics, second derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoreid.config import Msinet, Search
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.spaces.msinet.cells import Cell
from autoreid.spaces.msinet.interactions import MixedInteraction
from autoreid.spaces.msinet.space import MsinetSpace
from tests.helpers.msinet import PlainCell, fixture, of_supernet, plain_cells
from tests.helpers.torchreid import formula_state, their_images

EXACT = {"rtol": 1e-9, "atol": 1e-9}


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


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def statistics(net):
    return {name: value for name, value in net.named_buffers() if not name.endswith("num_batches_tracked")}


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
    results = []
    for net in (cell, oracle):
        output = net(x, mixing[0], None, mixing[1], None)
        weights = dict(net.named_parameters())
        loss = (output * output.detach().cos()).sum()
        gradients = torch.autograd.grad(loss, [x, mixing, *weights.values()])
        results.append((output, *gradients[:2], dict(zip(weights, gradients[2:], strict=True))))
    *found, weights = results[0]
    *expected, expected_weights = results[1]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, **EXACT)
    assert_same(weights, of_supernet(expected_weights))
    assert_same(statistics(cell), of_supernet(statistics(oracle)))


@pytest.mark.usefixtures("form")
def test_second_derivatives():
    cell, oracle = build(16, 64)
    x = torch.randn(2, 16, 4, 3, dtype=torch.float64, requires_grad=True)
    mixing = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for net in (cell, oracle):
        with frozen_statistics(net):
            output = net(x, mixing[0], None, mixing[1], None)
            gradients = torch.autograd.grad(output.tanh().sum(), list(net.parameters()), create_graph=True)
            length = sum(gradient.square().sum() for gradient in gradients)
            found.append(torch.autograd.grad(length, [mixing, x]))
    for value, wanted in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-7, atol=1e-7)


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
    found, kept = [], []
    for setting in ("none", "cell"):
        torch.manual_seed(0)
        search = Search(space="msinet", msinet=Msinet(width=0.25), activation_checkpointing=setting)
        net = MsinetSpace(search).build_supernet(5).double()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: (s.append(t.nbytes), t)[1], lambda t: t
        ):
            embedding, logits = net(images, {"interactions": mixing})
        kept.append(sum(sizes))
        leaves = [mixing, *(value for value in net.parameters() if value.requires_grad)]
        gradients = torch.autograd.grad(embedding.sin().sum() + logits.square().sum(), leaves)
        found.append([embedding, logits, *gradients, *net.buffers()])
    assert all(torch.equal(value, wanted) for value, wanted in zip(*found, strict=True))
    assert kept[1] < 0.3 * kept[0]
