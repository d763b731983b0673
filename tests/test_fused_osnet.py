"""OSNet's fused candidates are the four blocks by themselves: outputs, gradients, statistics, second derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import Search
from autoreid.distributed import frozen_statistics
from autoreid.models.weights import initialise
from autoreid.search.genotype import OSNET_BLOCKS
from autoreid.search.osnet_ain import OsnetAinSpace
from autoreid.search.osnet_blocks import MixedBlock
from tests.per_block import PerBlock

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def build(in_channels, out_channels):
    """A fused block in float64 with lively weights and statistics, and its oracle."""
    torch.manual_seed(0)
    block = MixedBlock(in_channels, out_channels).double()
    for name, value in [*block.named_parameters(), *block.named_buffers()]:
        if "running" in name:
            value.uniform_(0.5, 1.5)
        elif "gate" in name:
            torch.nn.init.normal_(value)
    return block, PerBlock(block)


def by_block(block, values):
    """A fused block's values by the names of the oracle's."""
    return {
        f"{name}.{key}": value
        for name in OSNET_BLOCKS
        for key, value in block.weights_of(name, values).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@settings(max_examples=15, deadline=None)
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
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)
    assert_same(by_block(block, weights), expected_weights)
    assert_same(by_block(block, dict(block.named_buffers())), dict(oracle.named_buffers()))


@pytest.mark.parametrize("column", range(4))
def test_one_block_alone(column):
    block, oracle = build(16, 64)
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for net in (block, oracle):
        output = net(x, torch.tensor(column))
        weights = dict(net.named_parameters())
        gradients = torch.autograd.grad(
            output.sin().sum(), [x, *weights.values()], allow_unused=True, materialize_grads=True
        )
        results.append((output, gradients[0], dict(zip(weights, gradients[1:], strict=True))))
    for mine, theirs in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)
    assert_same(by_block(block, results[0][2]), results[1][2])
    statistics = by_block(block, dict(block.named_buffers()))
    # All candidates count their batches together; nothing reads the count, for momentum is fixed.
    counts = {name for name in statistics if name.endswith("num_batches_tracked")}
    expected = {name: value for name, value in oracle.named_buffers() if name not in counts}
    assert_same({name: value for name, value in statistics.items() if name not in counts}, expected)


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
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_weights_start_as_those_of_blocks_by_themselves():
    """Each entry has the spread that a block's own has; drawn in one piece it would be up to 16 times too narrow."""
    torch.manual_seed(0)
    block = MixedBlock(64, 256)
    block.initialise()
    for name in OSNET_BLOCKS:
        expected = PerBlock(block)[name]
        drawn = {key: value.clone() for key, value in expected.state_dict().items()}
        initialise(expected)
        for key, value in expected.named_parameters():
            if value.numel() > 200:
                assert drawn[key].std().item() == pytest.approx(value.std().item(), rel=0.2), key
            elif key.endswith("bias"):
                assert not drawn[key].any()


def test_recomputing_blocks_changes_nothing_but_what_is_kept():
    images = torch.randn(4, 3, 64, 32, dtype=torch.float64)
    mixing = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    found, kept = [], []
    for setting in ("none", "cell"):
        torch.manual_seed(0)
        search = Search(space="osnet_ain", width=0.25, activation_checkpointing=setting)
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
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
    assert kept[1] < 0.3 * kept[0]
