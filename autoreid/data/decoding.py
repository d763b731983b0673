"""Decoding and resizing image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from autoreid.errors import DataError


def decode(path: str | Path) -> Image.Image:
    """Return the decoded image in RGB.

    Raises:
        DataError: the image cannot be read; the message names the file and the reason.
    """
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except Exception as error:  # on broken files, PIL's decoders raise almost any exception
        raise DataError(f"{path}: cannot read this image: {_reason(path, error)}") from error


def resize(picture: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize a picture (bicubic); returns (3, H, W) uint8."""
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format" if Path(path).stat().st_size else "the file is empty"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
