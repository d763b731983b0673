"""Image files to pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from autoreid.errors import DataError


def decode(path: str | Path) -> Image.Image:
    """The whole image in RGB.

    Raises:
        DataError: it cannot be read; names the file and the reason.
    """
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except Exception as error:  # in broken files PIL's readers meet, and raise, nearly anything
        raise DataError(f"{path}: cannot read this image: {_reason(path, error)}") from error


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format" if Path(path).stat().st_size else "the file is empty"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
