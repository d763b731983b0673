from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoreid.errors import ConfigError
from autoreid.models.osnet import OSBLOCKS, OSBlock, OSNet
from autoreid.spaces.build import build_model


def block_by_definition(block, x, in_inside, in_after):
    """The block of the papers in evaluation mode, computed from its state dict."""
    state = block.state_dict()

    def batch_norm(x, name):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def instance_norm(x, name):
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        normed = (x - mean) / (variance + 1e-5).sqrt()
        return normed * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def pointwise(x, name):
        return torch.einsum("oi,bihw->bohw", state[f"{name}.weight"].flatten(1), x)

    narrow = batch_norm(pointwise(x, "conv1.conv"), "conv1.bn").clamp(min=0)
    total = 0
    for stream in range(4):
        seen = narrow
        for layer in range(stream + 1):
            name = f"streams.{stream}.{layer}"
            seen = pointwise(seen, f"{name}.conv1")
            seen = F.conv2d(seen, state[f"{name}.conv2.weight"], padding=1, groups=seen.shape[1])
            seen = batch_norm(seen, f"{name}.bn").clamp(min=0)
        hidden = (
            pointwise(seen.mean((2, 3), keepdim=True), "gate.fc1") + state["gate.fc1.bias"][:, None, None]
        )
        gate = pointwise(hidden.clamp(min=0), "gate.fc2") + state["gate.fc2.bias"][:, None, None]
        total = total + seen / (1 + (-gate).exp())
    residual = pointwise(total, "conv3.conv")
    residual = instance_norm(residual, "norm_inside") if in_inside else batch_norm(residual, "conv3.bn")
    if "downsample.conv.weight" in state:
        x = batch_norm(pointwise(x, "downsample.conv"), "downsample.bn")
    result = residual + x
    return (instance_norm(result, "norm_after") if in_after else result).clamp(min=0)


@pytest.mark.parametrize("channels", [(32, 128), (128, 128)])
@pytest.mark.parametrize(
    ("kind", "in_inside", "in_after"),
    [("plain", False, False), ("in_inside", True, False), ("in_after", False, True), ("in_both", True, True)],
)
def test_each_block_is_what_the_papers_define(kind, in_inside, in_after, channels):
    torch.manual_seed(0)
    block = OSBlock(*channels, *OSBLOCKS[kind]).double().eval()
    with torch.no_grad():
        for value in (*block.parameters(), *block.buffers()):
            if value.is_floating_point():  # norms that are not the identity, with positive variances
                value.add_(torch.rand_like(value))
        x = torch.randn(2, channels[0], 9, 7, dtype=torch.float64)
        expected = block_by_definition(block, x, in_inside, in_after)
        torch.testing.assert_close(block(x), expected)


def test_streams_see_three_to_nine_pixels():
    block = OSBlock(64, 64).eval()
    for stream, reach in zip(block.streams, (1, 2, 3, 4), strict=True):
        for layer in stream:
            layer.conv1.weight.data.abs_()
            layer.conv2.weight.data.abs_()
        x = torch.zeros(1, 16, 15, 15)
        x[:, :, 7, 7] = 1
        touched = (stream(x) > 0).any(1)[0].nonzero()
        assert touched.min(0).values.tolist() == [7 - reach, 7 - reach]
        assert touched.max(0).values.tolist() == [7 + reach, 7 + reach]


def test_norms_without_scale_have_no_parameters():
    block = OSBlock(64, 256, in_inside=True, in_after=True, affine=False)
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d)]
    assert len(norms) == 1 + 10 + 1 + 2  # conv1, the streams' layers, downsample, both instance norms
    assert [list(norm.parameters()) for norm in norms] == [[]] * len(norms)


def test_the_layout_is_the_published_one():
    network = build_model("osnet_x1_0", 5).eval()
    shapes = {}
    for name in ("conv1", "maxpool", "conv2", "pool2", "conv3", "pool3", "conv4", "conv5"):
        getattr(network, name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:]))
        )
    with torch.no_grad():
        network(torch.zeros(1, 3, 256, 128))
    assert shapes == {
        "conv1": (64, 128, 64),
        "maxpool": (64, 64, 32),
        "conv2": (256, 64, 32),
        "pool2": (256, 32, 16),
        "conv3": (384, 32, 16),
        "pool3": (384, 16, 8),
        "conv4": (512, 16, 8),
        "conv5": (512, 16, 8),
    }


@pytest.mark.parametrize(
    ("family", "widths"), [("osnet_ain", ("x0_75", "x0_5", "x0_25")), ("osnet", ("x0_75", "x0_5", "x0_25"))]
)
def test_narrower_networks_have_the_same_layers_in_proportion(family, widths):
    whole = build_model(f"{family}_x1_0", 5).state_dict()
    for width in widths:
        narrow = build_model(f"{family}_{width}", 5).state_dict()
        assert list(narrow) == list(whole)
        share = float(width[1:].replace("_", "."))
        for key in ("conv1.conv.weight", "conv2.0.conv3.conv.weight", "pool3.0.bn.weight", "conv5.bn.weight"):
            assert len(narrow[key]) == share * len(whole[key])


@pytest.mark.parametrize(
    "blocks", [("plain",) * 5, ("plain",) * 7, ("plain", "in", "plain", "plain", "plain", "plain")]
)
def test_other_than_six_known_blocks_are_refused(blocks):
    with pytest.raises(ConfigError, match="must be six names from plain, in_inside, in_after, in_both"):
        OSNet(blocks, True, 0.25, 5)


def test_instance_norm_makes_the_embedding_blind_to_contrast():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 32)
    ain, plain = (build_model(name, 5).eval() for name in ("osnet_ain_x0_25", "osnet_x0_25"))
    with torch.no_grad():
        torch.testing.assert_close(ain(3 * images), ain(images), rtol=1e-3, atol=1e-6)
        assert (plain(3 * images) - plain(images)).norm() > 0.1 * plain(images).norm()
