"""Embeddings of images from a trained network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from autoreid.architecture import Architecture
from autoreid.config import Precision
from autoreid.data.decoding import decode, resize, to_rgb
from autoreid.data.transforms import normalise
from autoreid.errors import ConfigError, DataError
from autoreid.networks import load_network
from autoreid.training.build import memory_format
from autoreid.training.embedding import EmbeddingPass
from autoreid.training.precision import PassPrecision

_log = logging.getLogger(__name__)

#: An image of a person: a file, an (H, W, 3) uint8 RGB array, or a PIL image of any mode.
Picture = str | Path | npt.NDArray[np.uint8] | Image.Image


class Embedder:
    """Compute embeddings of images with a trained network.

    Args:
        network: returns embeddings (B, D) in evaluation mode.
        height, width: size in pixels to which pictures are resized.
        device: where the network runs.
        precision: number format of the computation.
        layout: memory format of weights and images.

    Raises:
        ConfigError: the device is not available.
    """

    def __init__(
        self,
        network: nn.Module,
        height: int,
        width: int,
        device: str | torch.device,
        precision: Precision = "float32",
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        try:
            self.device = torch.device(device)
            network.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
            self.network = network.eval()
        except (RuntimeError, AssertionError) as error:  # raised by torch if the device is not available
            raise ConfigError(f"device = {str(device)!r}: {str(error).splitlines()[0]}") from error
        self.height, self.width = height, width
        self._embed = EmbeddingPass(self.network, PassPrecision(precision, self.device), layout)

    def __call__(self, images: Picture | Iterable[Picture] | Tensor, batch_size: int = 64) -> Tensor:
        """Embed images, one batch at a time.

        Args:
            images: one picture or several, each a file, a uint8 RGB array (H, W, 3) or a PIL image; they are resized
                and normalised as in training. Or a tensor (N, 3, H, W) of images that already are.
            batch_size: number of images in a batch.

        Returns:
            (N, D) float32 on the CPU, one row per image, in order.

        Raises:
            DataError: an image cannot be read or is not an image; the message names the file or the index.
            ConfigError: the batch size is less than 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
        with torch.no_grad():
            features = [self._embed(batch) for batch in self._batches(images, batch_size)]
        if not features:
            raise DataError("no images to embed")
        return torch.cat(features).cpu()

    def _batches(self, images: Picture | Iterable[Picture] | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield normalised batches on the device."""
        if isinstance(images, Tensor):
            if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
                raise DataError(
                    f"{images.dtype} tensor of shape {tuple(images.shape)}: must be normalised floats (N, 3, H, W)"
                )
            for batch in images.split(batch_size):
                yield batch.to(self.device, torch.float32)
            return
        alone = isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", 0) == 3
        if not alone and not isinstance(images, Iterable):
            raise DataError(
                f"images has type {type(images).__name__}: must be one or several files, arrays or PIL images"
            )
        numbered = enumerate([images] if alone else images)  # type: ignore[arg-type]
        while some := list(islice(numbered, batch_size)):
            pictures = [_decode(image, index) for index, image in some]
            pixels = [resize(picture, self.height, self.width) for picture in pictures]
            yield normalise(torch.from_numpy(np.stack(pixels)).to(self.device))


def load_embedder(
    path: str | Path,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    architecture: Architecture | None = None,
) -> Embedder:
    """Load a network as an embedder, for images of the size used in training; see `load_network`.

    Args:
        precision: number format of the computation; None for that of the training.
        architecture: the network, for weights of another program.
    """
    network, config, report = load_network(Path(path), architecture)
    if report is not None:
        _log.info("%s", report)
    elif architecture is not None:
        raise ConfigError(
            f"model = {architecture.name!r}: {path} is a training's checkpoint, which names its network"
        )
    training, data = config.training, config.data
    precision = precision or training.precision
    return Embedder(network, data.height, data.width, device, precision, memory_format(training))


def _decode(image: object, index: int) -> Image.Image:
    if isinstance(image, str | Path):
        return decode(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as error:  # PIL images are read lazily, see `decode`
            raise DataError(f"image {index}: cannot read this image: {error}") from error
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return Image.fromarray(image)
        what = f"a {image.dtype} array of shape {image.shape}"
    else:
        what = f"a {type(image).__name__}"
    raise DataError(f"image {index} is {what}: must be a file, a uint8 array (H, W, 3) or a PIL image")
