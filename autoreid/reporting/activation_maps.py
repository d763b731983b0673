"""Activation maps: the activations of a network's last feature map, shown over the image.

Shape letters: B images, C channels, H and W size of the image, h and w size of the feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from autoreid.data.transforms import denormalise
from autoreid.errors import RunError

#: Opacity of the map in the overlay.
OPACITY = 0.6
#: Approximate height in pixels to which small images are enlarged.
HEIGHT = 192
#: Images per row of a sheet, each with its map and the overlay.
COLUMNS = 4


@torch.inference_mode()
def activation_maps(network: nn.Module, images: Tensor) -> Tensor:
    """Return the sum over channels of the squared activations of the last feature map (arXiv 1612.03928, eq. 2).

    The last feature map is the last 4-D output of a module with more than one pixel. In every network of this package
    it is the input of the global pooling.

    Args:
        network: network in evaluation mode.
        images: (B, 3, H, W), normalised, on the device of the network.

    Returns:
        The maps (B, h, w) in float32.

    Raises:
        RunError: no module has a feature map as its output.
    """
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            last[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise RunError(f"{type(network).__name__}: no module has a feature map (B, C, h, w) as its output")
    return last[0].float().square().sum(1)


def draw_activation_maps(network: nn.Module, images: Tensor) -> Image.Image:
    """Return a sheet with image, map and overlay for each image (B, 3, H, W), from blue (lowest) to red (highest)."""
    H, W = images.shape[2:]
    maps = activation_maps(network, images)[:, None].cpu()
    maps = F.interpolate(maps, (H, W), mode="bilinear", align_corners=False)[:, 0]
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    heat = rainbow((maps - least) / (most - least).clamp_min(1e-12))
    pictures = denormalise(images).float() / 255
    overlay = (1 - OPACITY) * pictures + OPACITY * heat
    triples = torch.stack([pictures, heat, overlay], dim=1)  # (B, 3, 3, H, W)
    # Each triple becomes one wide image, so that the gaps of the sheet are between people.
    wide = triples.permute(0, 2, 3, 1, 4).reshape(len(images), 3, H, 3 * W)
    wide = F.interpolate(wide, scale_factor=max(1, round(HEIGHT / H)))
    sheet = make_grid(wide, nrow=COLUMNS, padding=6, pad_value=1.0)
    return Image.fromarray((255 * sheet).round().byte().permute(1, 2, 0).numpy())


def rainbow(values: Tensor) -> Tensor:
    """Map values (B, H, W) from 0 to 1 to colours (B, 3, H, W) from blue over cyan and yellow to red."""
    centres = torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1)
    return (1.5 - (4 * values[:, None] - centres).abs()).clamp(0, 1)
