"""OSNet's fused blocks equal the four separate ones: outputs, gradients, statistics, second derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoreid.config import OsnetAin, Search
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.osnet_ain.space import OsnetAinSpace
from tests.helpers.per_block import PerBlock

EXACT = {"rtol": 1e-9, "atol": 1e-9}


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


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def _statistics(net):
    return {name: value for name, value in net.named_buffers() if not name.endswith("num_batches_tracked")}


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
    results = []
    for net in (block, oracle):
        output = net(x, mixing)
        weights = dict(net.named_parameters())
        loss = (output * output.detach().cos()).sum()
        gradients = torch.autograd.grad(loss, [x, mixing, *weights.values()])
        results.append((output, *gradients[:2], dict(zip(weights, gradients[2:], strict=True))))
    *found, weights = results[0]
    *expected, expected_weights = results[1]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, **EXACT)
    assert_same(weights, expected_weights)
    assert_same(_statistics(block), _statistics(oracle))


@pytest.mark.usefixtures("form")
def test_second_derivatives():
    block, oracle = build(16, 64)
    x = torch.randn(2, 16, 4, 3, dtype=torch.float64, requires_grad=True)
    mixing = torch.rand(4, dtype=torch.float64, requires_grad=True)
    found = []
    for net in (block, oracle):
        with frozen_statistics(net):
            gradients = torch.autograd.grad(
                net(x, mixing).tanh().sum(), list(net.parameters()), create_graph=True
            )
            length = sum(gradient.square().sum() for gradient in gradients)
            found.append(torch.autograd.grad(length, [mixing, x]))
    for value, wanted in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted, **EXACT)


@pytest.mark.usefixtures("form")
def test_recomputing_blocks_changes_nothing_but_what_is_kept():
    images = torch.randn(4, 3, 64, 32, dtype=torch.float64)
    mixing = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    found, kept = [], []
    for setting in ("none", "cell"):
        torch.manual_seed(0)
        search = Search(space="osnet_ain", osnet_ain=OsnetAin(width=0.25), activation_checkpointing=setting)
        net = OsnetAinSpace(search).build_supernet(5).double()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: (s.append(t.nbytes), t)[1], lambda t: t
        ):
            embedding, logits = net(images, {"blocks": mixing})
        kept.append(sum(sizes))
        gradients = torch.autograd.grad(
            embedding.sin().sum() + logits.square().sum(), [mixing, *net.parameters()]
        )
        found.append([embedding, logits, *gradients, *net.buffers()])
    assert all(torch.equal(value, wanted) for value, wanted in zip(*found, strict=True))
    assert kept[1] < 0.3 * kept[0]
