from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autoreid.errors import RunError
from autoreid.reporting.activation_maps import activation_maps, draw_activation_maps, rainbow
from autoreid.spaces.build import build_model
from tests.helpers.trained import HEIGHT, OPTIONS, WIDTH


class Pooled(nn.Module):
    """Ends with pooling by a module, whose output is also 4-D."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.layers(images).flatten(1)


def test_the_map_is_the_sum_of_squares_of_what_is_pooled():
    network, images = Pooled().eval(), torch.randn(2, 3, 33, 17)
    maps = activation_maps(network, images)
    features = network.layers[:2](images).detach().double().numpy()
    np.testing.assert_allclose(maps.numpy(), (features**2).sum(1), rtol=1e-5)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["resnet50", "pcb", "osnet_x0_25", "osnet_ain_x0_25"])
def test_every_network_shows_the_map_that_it_pools(name):
    network, images = build_model(name, 3).eval(), torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        expected = network.feature_map(images).square().sum(1)
    torch.testing.assert_close(activation_maps(network, images), expected)


def test_msinet_shows_the_map_of_its_last_cell():
    """And not what its second head makes of an earlier map, although that is computed later."""
    network, images = build_model("msinet_x1_0", 3).eval(), torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        expected = network.feature_maps(images)[-1].square().sum(1)
    torch.testing.assert_close(activation_maps(network, images), expected)


def test_a_derived_network_shows_its_last_cell():
    torch.manual_seed(0)
    network, images = build_model("derived", 7, **OPTIONS).eval(), torch.randn(2, 3, HEIGHT, WIDTH)
    # The embedding that is ranked is the mean of that cell's map, after the neck's norm.
    with torch.inference_mode():
        embedding = network(images)
    outputs = []
    hook = network.cells[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    maps = activation_maps(network, images)
    hook.remove()
    torch.testing.assert_close(network.neck.norm(outputs[0].mean((2, 3))), embedding)
    torch.testing.assert_close(maps, outputs[0].square().sum(1))


def test_a_network_without_a_feature_map_is_refused():
    with pytest.raises(RunError, match="Sequential: no module has a feature map"):
        activation_maps(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.zeros(1, 3, 4, 4))


def test_the_sheet_shows_image_map_and_overlay_and_is_reddest_where_the_activation_is():
    images = torch.full((2, 3, 32, 16), -10.0)  # black
    images[:, :, 8:12, 4:8] = 10.0  # and a white spot
    network = nn.Sequential(nn.Hardtanh(0, 1))
    sheet = np.asarray(draw_activation_maps(network, images))
    assert sheet.shape == (6 * 32 + 12, 2 * (6 * 3 * 16 + 6) + 6, 3)  # enlarged six times
    for number in range(2):
        left = 6 + number * (6 * 3 * 16 + 6)
        triple = sheet[6:-6:6, left : left + 6 * 3 * 16 : 6].astype(int)
        image, heat, overlay = np.split(triple, 3, axis=1)
        assert image[9, 5].tolist() == [255] * 3
        assert image[20, 10].tolist() == [0] * 3
        assert heat[9, 5].tolist() == [128, 0, 0]  # dark red
        assert heat[20, 10].tolist() == [0, 0, 128]  # dark blue
        np.testing.assert_allclose(overlay, 0.4 * image + 0.6 * heat, atol=1)


def test_colours_go_from_blue_to_red_over_cyan_and_yellow():
    colours = rainbow(torch.tensor([[[0.0, 0.125, 0.375, 0.625, 0.875, 1.0]]]))[0, :, 0].T
    expected = [[0, 0, 0.5], [0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0], [0.5, 0, 0]]
    torch.testing.assert_close(colours, torch.tensor(expected))
