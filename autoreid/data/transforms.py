"""Image transforms, all torchvision's, from a decoded PIL image to a normalised tensor."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

#: ImageNet's channel means and deviations, on a scale of 0 to 1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _to_tensor() -> list[v2.Transform]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]


def training_transform(
    height: int,
    width: int,
    padding: int = 10,
    flip: float = 0.5,
    erasing: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
) -> v2.Compose:
    """Resize (bicubic), pad and crop at random, flip, jitter, normalise, erase: PIL image -> (3, H, W) float32."""
    steps: list[v2.Transform] = [v2.Resize((height, width), v2.InterpolationMode.BICUBIC)]
    if padding:
        steps.append(v2.RandomCrop((height, width), padding=padding))
    steps.append(v2.RandomHorizontalFlip(flip))
    if brightness or contrast:
        steps.append(v2.ColorJitter(brightness=brightness, contrast=contrast))
    steps += _to_tensor()
    if erasing:
        steps.append(v2.RandomErasing(erasing))
    return v2.Compose(steps)


def evaluation_transform(height: int, width: int) -> v2.Compose:
    """Resize (bicubic) and normalise: PIL image -> (3, H, W) float32."""
    return v2.Compose([v2.Resize((height, width), v2.InterpolationMode.BICUBIC), *_to_tensor()])


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) normalised images back to uint8, to be looked at."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    deviation = torch.tensor(DEVIATION).view(3, 1, 1)
    return ((images.cpu() * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)
