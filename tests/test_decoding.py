"""Every kind of image as 8-bit RGB: 16 bits, unknown ranges, orientation, transparency."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from autoreid.data.decoding import decode, to_rgb
from autoreid.errors import DataError

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 2**16, (8, 6)).astype(np.uint16)
COLOUR16 = RNG.integers(0, 2**16, (8, 6, 3)).astype(np.uint16)
COLOUR = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)


def png16(values, colour_type, transparency=b""):
    """A PNG file of 16 bits a channel, written by hand because Pillow writes only grey ones."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    middle = chunk(b"tRNS", transparency) if transparency else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(data, width, height, bits, kind=1, photometric=1):
    """An uncompressed grey TIFF file; `kind` is 1 for unsigned, 2 for signed integers and 3 for floats."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def read(tmp_path, data, name="image"):
    (tmp_path / name).write_bytes(data)
    picture = decode(tmp_path / name)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(values):
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_grey_images_of_16_bits_keep_their_upper_8(tmp_path, suffix):
    path = tmp_path / f"infrared{suffix}"
    Image.fromarray(GREY16).save(path)
    np.testing.assert_array_equal(np.asarray(decode(path)), grey(GREY16 // 256))


def test_the_full_range_of_16_bits_is_that_of_8_bits(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(decode(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 1, 255]


def test_colours_of_16_bits(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, png16(COLOUR16, 2)), COLOUR16 // 256)


def test_tiff_states_how_many_bits_and_whether_0_is_white(tmp_path):
    white = tiff(GREY16.astype("<u2").tobytes(), 6, 8, 16, photometric=0)
    np.testing.assert_array_equal(read(tmp_path, white), grey(255 - GREY16 // 256))
    # Two values of 12 bits in three bytes.
    twelve = tiff(bytes([0xFF, 0xF0, 0x10, 0x80, 0x0F, 0xFF]), 4, 1, 12)
    assert read(tmp_path, twelve)[0, :, 0].tolist() == [0xFF, 0x01, 0x80, 0xFF]


@pytest.mark.parametrize(
    ("dtype", "bits", "kind", "what"),
    [
        ("<i2", 16, 2, "integers"),
        ("<u4", 32, 1, "integers"),
        ("<i4", 32, 2, "integers"),
        ("<f4", 32, 3, "floating-point numbers"),
    ],
)
def test_images_of_unknown_range_are_refused_by_name(tmp_path, dtype, bits, kind, what):
    data = tiff(GREY16.astype(dtype).tobytes(), 6, 8, bits, kind)
    message = f"depth.tif: cannot read this image: it consists of {what} of unknown range; convert it to 8 or"
    with pytest.raises(DataError, match=message):
        read(tmp_path, data, "depth.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_exif_orientation_is_applied(tmp_path, suffix):
    """Orientation 6: the first row of the file is the right side of the scene, 8: the left side."""
    stored = np.zeros((32, 16, 3), np.uint8)
    stored[:8] = 255
    for orientation, bright in ((1, np.s_[:8]), (6, np.s_[:, 24:]), (3, np.s_[24:]), (8, np.s_[:, :8])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}{suffix}"
        Image.fromarray(stored).save(path, exif=exif.tobytes())
        seen = np.asarray(decode(path))
        assert seen.shape == ((32, 16, 3) if orientation in (1, 3) else (16, 32, 3))
        expected = np.zeros_like(seen)
        expected[bright] = 255
        assert np.abs(seen.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_the_standard(tmp_path, orientation):
    """EXIF 2.3, 4.6.4: which sides of the scene the first row and the first column of the file are."""
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "x.png", exif=exif.tobytes())
    seen = np.asarray(decode(tmp_path / "x.png"))
    side = {"top": seen[0], "bottom": seen[-1], "left": seen[:, 0], "right": seen[:, -1]}
    reverse = {"top": 1, "left": 1, "bottom": -1, "right": -1}
    np.testing.assert_array_equal(side[row][:: reverse[column]], COLOUR[0])
    np.testing.assert_array_equal(side[column][:: reverse[row]], COLOUR[:, 0])


def test_damaged_exif_data_do_not_break_an_image(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff")
    with Image.open(tmp_path / "x.jpg") as file:
        np.testing.assert_array_equal(np.asarray(decode(tmp_path / "x.jpg")), np.asarray(file.convert("RGB")))


def test_colours_under_transparent_parts_stay_hidden(tmp_path):
    """The formula of alpha compositing over black, whatever the mode."""
    alpha = RNG.integers(0, 256, (8, 6, 1), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    seen = np.asarray(to_rgb(Image.fromarray(np.concatenate([COLOUR, alpha], axis=2))))
    np.testing.assert_allclose(seen, COLOUR * (alpha / 255.0), atol=1)
    np.testing.assert_array_equal(seen[0], 0)
    np.testing.assert_array_equal(seen[1], COLOUR[1])
    both = np.asarray(to_rgb(Image.fromarray(np.concatenate([COLOUR[..., :1], alpha], axis=2))))
    np.testing.assert_allclose(both, np.repeat(COLOUR[..., :1] * (alpha / 255.0), 3, axis=2), atol=1)
    for mode in ("RGBa", "La"):  # premultiplied, here with alpha 0 everywhere
        np.testing.assert_array_equal(np.asarray(to_rgb(Image.new(mode, (4, 4)))), 0)


def test_a_transparent_colour_is_hidden(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    hidden = np.asarray(palette) == 3
    expected = np.where(hidden[..., None], 0, np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "p.png")), expected)
    Image.fromarray(COLOUR).save(tmp_path / "rgb.png", transparency=tuple(COLOUR[2, 3].tolist()))
    seen = np.asarray(decode(tmp_path / "rgb.png"))
    assert seen[2, 3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(seen[0], COLOUR[0])
    secret = int(GREY16[0, 0])
    seen = read(tmp_path, png16(GREY16, 0, struct.pack(">H", secret)))
    np.testing.assert_array_equal(seen, grey(np.where(secret == GREY16, 0, GREY16 // 256)))


def test_common_images_have_the_pixels_that_pillow_gives(tmp_path):
    """JPEG in colour, grey and CMYK, palettes and bitmaps: as before, to the bit."""
    picture = Image.fromarray(RNG.integers(0, 256, (40, 20, 3), dtype=np.uint8))
    for number, (mode, suffix) in enumerate(
        [("RGB", ".jpg"), ("L", ".jpg"), ("CMYK", ".jpg"), ("P", ".png"), ("1", ".png"), ("RGB", ".bmp")]
    ):
        path = tmp_path / f"{number}{suffix}"
        picture.convert(mode).save(path)
        with Image.open(path) as file:
            np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(file.convert("RGB")))
