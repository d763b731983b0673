"""Transforms of uint8 pixels: random views, sampled for a whole batch at once and finished on any device.

A view depends only on a seed and on the image's position in the batch, not on the process that computes it.
Workers crop and flip, which costs no more than copying into the batch; the rest is arithmetic on the whole batch.

Shape letters: B batch, H height, W width.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as F

#: ImageNet's channel means and standard deviations, on a scale of 0 to 1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Random erasing: range of the area (as a share of the image's) and of the aspect ratio, and number of attempts.
_AREAS, _RATIOS, _TRIES = (0.02, 0.33), (0.3, 3.3), 10
#: Number of random numbers that are sampled for each image.
_NUMBERS = 9 + 2 * _TRIES


class Finish(NamedTuple):
    """The remaining transforms of B cropped images; tensors are on the images' device.

    Attributes:
        jitter: (B, 3) float32: brightness factor, contrast factor, and 1 if brightness comes first; or None.
        erased: (B, 4) int64 rectangles: first row, first column, and the row and column after the last; or None.
    """

    jitter: Tensor | None
    erased: Tensor | None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Jitter, normalise and erase (B, 3, H, W) uint8 pixels; returns float32. Never waits for the device."""
        images = F.to_dtype(pixels, torch.float32, scale=True)
        if self.jitter is not None:
            _jitter(images, self.jitter)
        mean, deviation = _statistics(images.device)
        images.sub_(mean).div_(deviation)
        if self.erased is not None:
            erase = _erase_slices if images.device.type == "cpu" else _erase_masked
            erase(images, self.erased)
        return images


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return MEAN and DEVIATION as (3, 1, 1) on a device; cached, because copying them blocks the host."""
    mean, deviation = (torch.tensor(values, dtype=torch.float32) for values in (MEAN, DEVIATION))
    return mean.view(3, 1, 1).to(device), deviation.view(3, 1, 1).to(device)


def _erase_slices(images: Tensor, rectangles: Tensor) -> None:
    """Set (B, 4) rectangles of (B, 3, H, W) images to zero by slicing, which is fast on CPUs."""
    for image, (top, left, bottom, right) in zip(images, rectangles.tolist(), strict=True):
        image[:, top:bottom, left:right] = 0


def _erase_masked(images: Tensor, rectangles: Tensor) -> None:
    """The same with a few kernels for the whole batch, without reading the rectangles on the host."""
    corners = rectangles.view(-1, 2, 2, 1)
    inside = []
    for axis, size in enumerate(images.shape[2:]):
        begun, ended = (torch.arange(size, device=images.device) >= corners[:, :, axis]).unbind(1)
        inside.append(begun != ended)
    rows, columns = inside
    images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


class Views(NamedTuple):
    """Random views of B images.

    Attributes:
        shift: (B, 2) int64, offset of the crop from the image's corner, down and right.
        mirrored: (B,) bool, horizontal flips.
        finish: the remaining transforms.
        policies: (B,) int64, a seed of AutoAugment for each image that it changes, -1 for the others; None for none.
    """

    shift: npt.NDArray[np.int64]
    mirrored: npt.NDArray[np.bool_]
    finish: Finish
    policies: npt.NDArray[np.int64] | None = None

    def crop(self, place: int, pixels: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        """Copy the view at one position of the batch from (3, H, W) pixels into a black image."""
        if self.policies is not None and self.policies[place] >= 0:
            pixels = _autoaugment(pixels, int(self.policies[place]))
        down, right = self.shift[place].tolist()
        (rows, rows_out), (columns, columns_out) = (
            _overlap(shift, size) for shift, size in zip((down, right), pixels.shape[1:], strict=True)
        )
        if self.mirrored[place]:
            out = out[:, :, ::-1]
        out[:, rows_out, columns_out] = pixels[:, rows, columns]


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Return the visible part of an image axis and its place in the shifted view; both may be empty."""
    length = max(size - abs(shift), 0)
    first, first_out = max(shift, 0), max(-shift, 0)
    return slice(first, first + length), slice(first_out, first_out + length)


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation; by default there is none.

    Attributes:
        padding: black pixels added on each side before a random crop to the original size.
        flip: probability of a horizontal flip.
        erasing: probability that a rectangle is set to the mean colour (arXiv 1708.04896).
        brightness: the factor is uniform in 1 ± this value, as in torchvision's ColorJitter.
        contrast: likewise; the two are applied in random order.
        autoaugment: probability that AutoAugment's policy for ImageNet changes the image.
    """

    padding: int = 0
    flip: float = 0.0
    erasing: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    autoaugment: float = 0.0

    def sample(self, seed: int, share: slice, height: int, width: int) -> Views:
        """Sample the views of a slice of a global batch; they do not depend on how the batch is sliced."""
        numbers = np.random.default_rng(seed).random((share.stop, _NUMBERS))[share.start :]
        down, right, mirror, brightness, contrast, order, erase, row, column = numbers[:, :9].T
        shift = np.stack([down, right], axis=1) * (2 * self.padding + 1)
        jitter = erased = None
        if self.brightness or self.contrast:
            factors = [_factor(brightness, self.brightness), _factor(contrast, self.contrast), order < 0.5]
            jitter = torch.from_numpy(np.stack(factors, axis=1).astype(np.float32))
        if self.erasing:
            rectangles = _rectangles(numbers[:, 9:], row, column, height, width)
            erased = torch.from_numpy(rectangles * (erase < self.erasing)[:, None])
        policies = self._policies(seed, share) if self.autoaugment else None
        finish = Finish(jitter, erased)
        return Views(shift.astype(np.int64) - self.padding, mirror < self.flip, finish, policies)

    def _policies(self, seed: int, share: slice) -> npt.NDArray[np.int64]:
        """Sample the seeds of AutoAugment; from another generator, so that the other transforms stay the same."""
        chance, policy = np.random.default_rng([seed, 1]).random((share.stop, 2))[share.start :].T
        return np.where(chance < self.autoaugment, (policy * 2**53).astype(np.int64), -1)


def _autoaugment(pixels: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """Apply torchvision's AutoAugment to (3, H, W) pixels, with random numbers that only depend on the seed."""
    # It samples from torch's global generator, whose state belongs to the run.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        result: Tensor = _autoaugment_policy()(torch.tensor(pixels))
    return result.numpy()


@functools.cache
def _autoaugment_policy() -> AutoAugment:
    return AutoAugment(AutoAugmentPolicy.IMAGENET)


def _factor(uniform: npt.NDArray[np.float64], strength: float) -> npt.NDArray[np.float64]:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + uniform * (high - low)


def _rectangles(
    tries: npt.NDArray[np.float64],
    row: npt.NDArray[np.float64],
    column: npt.NDArray[np.float64],
    height: int,
    width: int,
) -> npt.NDArray[np.int64]:
    """Return (B, 4) rectangles of random area and aspect ratio: the first attempt that fits, or empty ones."""
    areas, ratios = tries[:, :_TRIES], tries[:, _TRIES:]
    area = height * width * (_AREAS[0] + areas * (_AREAS[1] - _AREAS[0]))
    low, high = math.log(_RATIOS[0]), math.log(_RATIOS[1])
    ratio = np.exp(low + ratios * (high - low))
    rows, columns = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (rows < height) & (columns < width)
    first = np.argmax(fits, axis=1)[:, None]
    rows, columns = (
        np.where(fits.any(1), np.take_along_axis(size, first, axis=1)[:, 0], 0) for size in (rows, columns)
    )
    top, left = np.floor(row * (height - rows + 1)), np.floor(column * (width - columns + 1))
    return np.stack([top, left, top + rows, left + columns], axis=1).astype(np.int64)


def _jitter(images: Tensor, jitter: Tensor) -> None:
    """Change brightness and contrast of (B, 3, H, W) images, on a scale of 0 to 1, in place, one factor per image."""
    brightness, contrast, first = jitter.view(-1, 3, 1, 1, 1).unbind(1)
    one = torch.ones_like(brightness)
    images.mul_(torch.where(first > 0, brightness, one)).clamp_(0, 1)
    # An image's mean grey value is the grey value of its mean colour.
    grey = F.rgb_to_grayscale(images.mean((2, 3), keepdim=True))
    images.mul_(contrast).add_((1 - contrast) * grey).clamp_(0, 1)
    images.mul_(torch.where(first > 0, one, brightness)).clamp_(0, 1)


def normalise(pixels: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) uint8 pixels to the float32 input of a network."""
    return Finish(None, None)(pixels)


def denormalise(images: Tensor) -> Tensor:
    """Convert (B, 3, H, W) normalised images back to uint8, for display."""
    mean, deviation = _statistics(torch.device("cpu"))
    return ((images.cpu() * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)
