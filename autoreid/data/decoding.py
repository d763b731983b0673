"""Decoding and resizing image files: every image becomes RGB with 8 bits a channel, upright and opaque."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from autoreid.errors import DataError

#: The colour behind transparent parts: that of the padding in random crops.
_BACKGROUND = (0, 0, 0, 255)
#: Formats whose integers (mode I) have 16 bits: Pillow scales those of PPM, and old versions read PNG like this.
_SIXTEEN_BITS = ("PNG", "PPM")
#: TIFF's tags for the number of bits, and for what 0 means; 0 if it means white.
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
#: What turns a picture upright, by its EXIF orientation.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def decode(path: str | Path) -> Image.Image:
    """Return the decoded image as `to_rgb` does; of an animation or a stack, the first frame.

    Raises:
        DataError: the image cannot be read; the message names the file and the reason.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(file)
    except Exception as error:  # on broken files, PIL's decoders raise almost any exception
        raise DataError(f"{path}: cannot read this image: {_reason(path, error)}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB with 8 bits a channel.

    Its EXIF orientation is applied, the upper 8 of 16 bits are kept, and transparent parts are shown over black.

    Raises:
        ValueError: the picture consists of integers or floats whose range is not known.
        Exception: the picture is read lazily and its file is broken.
    """
    picture.load()  # some formats store the orientation after the pixels
    bits = _stated_bits(picture)
    upright = _UPRIGHT.get(_orientation(picture))
    if bits != 8:
        picture = _scale(picture, bits)
    elif picture.has_transparency_data:
        # Pillow converts premultiplied grey to nothing but grey with alpha.
        layer = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, _BACKGROUND), layer)
    picture = picture.convert("RGB")
    return picture if upright is None else picture.transpose(upright)


def resize(picture: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize a picture (bicubic); returns (3, H, W) uint8."""
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _stated_bits(picture: Image.Image) -> int:
    """Return the number of bits of a picture's values, which all formats and modes but some state."""
    if picture.mode.startswith("I;16"):
        return int(_tags(picture).get(_BITS_PER_SAMPLE, (16,))[0])
    if picture.mode == "I" and picture.format in _SIXTEEN_BITS:
        return 16
    if picture.mode in ("I", "F"):
        kind = "integers" if picture.mode == "I" else "floating-point numbers"
        raise ValueError(f"it consists of {kind} of unknown range; convert it to 8 or 16 bits")
    return 8


def _tags(picture: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF file, and none for other pictures."""
    return getattr(picture, "tag_v2", {})


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation; 1, which is upright, if there is none or EXIF is damaged."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on broken EXIF, Pillow raises almost any exception; the pixels are intact
        return 1


def _scale(picture: Image.Image, bits: int) -> Image.Image:
    """Return a grey picture with its upper 8 bits, as Pillow reads colours of 16 bits."""
    values = np.asarray(picture)
    grey = (values >> (bits - 8)).astype(np.uint8)
    if _tags(picture).get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    if "transparency" in picture.info:
        grey[values == picture.info["transparency"]] = 0
    return Image.fromarray(grey)


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format" if Path(path).stat().st_size else "the file is empty"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
