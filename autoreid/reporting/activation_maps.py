"""Where a network looks: its last feature map's activations over the image.

Shape letters: B images, C channels, H and W pixels, h and w the feature map's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from autoreid.data.transforms import denormalise
from autoreid.errors import RunError

#: Share of the map in the overlay.
OPACITY = 0.6
#: Small images are enlarged to about so many pixels.
HEIGHT = 192
#: Images side by side on a sheet, each with its map and the overlay.
COLUMNS = 4


@torch.inference_mode()
def activation_maps(network: nn.Module, images: Tensor) -> Tensor:
    """The sum over channels of the squared activations (arXiv 1612.03928, eq. 2) of the last feature map.

    That is the last 4-D tensor of more than one pixel that any module puts out: of every network here the
    one that it pools.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W), normalised, on the network's device.

    Returns:
        (B, h, w) float32.

    Raises:
        RunError: no module puts out a feature map.
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
        raise RunError(f"{type(network).__name__}: no module puts out a feature map (B, C, h, w)")
    return last[0].float().square().sum(1)


def draw_activation_maps(network: nn.Module, images: Tensor) -> Image.Image:
    """A sheet of image, map and overlay for each of the images (B, 3, H, W); blue is least, red is most."""
    H, W = images.shape[2:]
    maps = activation_maps(network, images)[:, None].cpu()
    maps = F.interpolate(maps, (H, W), mode="bilinear", align_corners=False)[:, 0]
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    heat = rainbow((maps - least) / (most - least).clamp_min(1e-12))
    pictures = denormalise(images).float() / 255
    overlay = (1 - OPACITY) * pictures + OPACITY * heat
    triples = torch.stack([pictures, heat, overlay], dim=1)  # (B, 3, 3, H, W)
    # Each triple becomes one wide image, so that the sheet's gaps stand between people.
    wide = triples.permute(0, 2, 3, 1, 4).reshape(len(images), 3, H, 3 * W)
    wide = F.interpolate(wide, scale_factor=max(1, round(HEIGHT / H)))
    sheet = make_grid(wide, nrow=COLUMNS, padding=6, pad_value=1.0)
    return Image.fromarray((255 * sheet).round().byte().permute(1, 2, 0).numpy())


def rainbow(values: Tensor) -> Tensor:
    """Values (B, H, W) from 0 to 1 as colours (B, 3, H, W): blue, cyan, yellow, red."""
    centres = torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1)
    return (1.5 - (4 * values[:, None] - centres).abs()).clamp(0, 1)
