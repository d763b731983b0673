"""The backgrounds of synthetic pedestrians, the obstacles in front of them, and the cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from autoreid.data.synthetic.drawing import Colour

BACKGROUNDS = ("street", "brick", "park", "hall", "shop", "harbour")


@dataclass(frozen=True)
class Camera:
    """What all images of one camera have in common."""

    #: the background, larger than an image; each image shows a part of it
    scene: Image.Image
    #: (3,) factors for red, green and blue
    gains: npt.NDArray[np.float64]
    gamma: float
    contrast: float
    saturation: float
    #: standard deviation in pixels
    blur: float
    #: standard deviation in grey levels
    noise: float

    def develop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Apply the camera's colours, blur and noise, and random lighting."""
        light = self.gains * rng.uniform(0.85, 1.15) * 255
        levels = (np.arange(256) / 255) ** (self.gamma * rng.uniform(0.9, 1.1))
        levels = light[:, None] * ((levels - 0.5) * self.contrast + 0.5)
        image = image.point(np.clip(np.rint(levels), 0, 255).astype(int).ravel().tolist())
        image = ImageEnhance.Color(image).enhance(self.saturation)
        image = image.filter(ImageFilter.GaussianBlur(self.blur + rng.uniform(0, 0.5)))
        noise = self.noise * rng.standard_normal((image.height, image.width, 1), dtype=np.float32)
        return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def pick_camera(
    rng: np.random.Generator, background: str, style: float | None, size: tuple[int, int]
) -> Camera:
    """Sample a camera in front of a background, for images of (width, height) pixels.

    `style` belongs to the domain: an angle on a circle of colour temperatures and exposures, or None for the
    centre of the circle.
    """
    warmth, light = (math.cos(style), math.sin(style)) if style is not None else (0.0, 0.0)
    temperature = 1 + 0.2 * warmth * np.array([1, 0, -1])
    return Camera(
        scene=_draw_scene(rng, background, 2 * size[0], size[1] * 9 // 8),
        gains=rng.uniform(0.88, 1.12, 3) * rng.uniform(0.84, 1.12) * temperature,
        gamma=float(rng.uniform(0.88, 1.18) * 1.5**-light),
        contrast=float(rng.uniform(0.82, 1.1)),
        saturation=float(rng.uniform(0.75, 1.15) * (1 - 0.3 * light)),
        blur=float(rng.uniform(0.0, 0.9)),
        noise=float(rng.uniform(2.0, 8.0)),
    )


def _draw_scene(rng: np.random.Generator, background: str, width: int, height: int) -> Image.Image:
    scene = Image.new("RGB", (width, height), _muted(rng))
    pen = ImageDraw.Draw(scene)
    horizon = round(height * rng.uniform(0.35, 0.6))
    ground = _muted(rng, green=30 if background == "park" else 0)
    pen.rectangle((0, horizon, width, height), fill=ground)
    if background == "brick":
        _bricks(pen, width, horizon, _darker(scene.getpixel((0, 0))))
    elif background == "park":
        _foliage(pen, rng, width, horizon)
    elif background == "hall":
        _floor_tiles(pen, width, horizon, height, _darker(ground))
        _boxes(pen, rng, width, 0, horizon, count=5)
    elif background == "shop":
        _boxes(pen, rng, width, horizon // 4, horizon - 4, count=9)
    elif background == "harbour":
        pen.rectangle((0, 0, width, horizon // 2), fill=(188, 204, 222))
        _boxes(pen, rng, width, horizon // 2, horizon, count=12)
        _floor_tiles(pen, width, horizon, height, _darker(ground), rows=5)
    else:
        _boxes(pen, rng, width, 0, horizon, count=4)
        _lane(pen, width, horizon, height)
    return _roughen(scene.filter(ImageFilter.GaussianBlur(1.5)), rng)


def _roughen(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add stains and grain."""
    grain = rng.normal(0, 5, (scene.height, scene.width, 1))
    stains = Image.fromarray(rng.integers(0, 256, (scene.height // 24, scene.width // 24), dtype=np.uint8))
    soft = np.asarray(stains.resize(scene.size, Image.Resampling.BICUBIC), dtype=np.float64)[..., None]
    pixels = np.asarray(scene) * (0.8 + 0.4 * soft / 255) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _bricks(pen: ImageDraw.ImageDraw, width: int, bottom: int, mortar: Colour) -> None:
    for row, y in enumerate(range(0, bottom, 14)):
        pen.line((0, y, width, y), fill=mortar, width=2)
        for x in range(14 * (row % 2), width, 28):
            pen.line((x, y, x, min(y + 14, bottom)), fill=mortar, width=2)


def _foliage(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, horizon: int) -> None:
    for _ in range(90):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, horizon), rng.uniform(6, 22)
        shade = int(rng.integers(60, 140))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(shade // 2, shade, shade // 3))


def _floor_tiles(
    pen: ImageDraw.ImageDraw, width: int, top: int, bottom: int, joint: Colour, rows: int = 9
) -> None:
    for row in range(rows):
        y = top + (bottom - top) * (row / rows) ** 1.6
        pen.line((0, y, width, y), fill=joint, width=2)
    for x in range(-width, 2 * width, 36):
        pen.line((width / 2 + (x - width / 2) * 0.5, top, x, bottom), fill=joint, width=2)


def _boxes(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, top: int, bottom: int, count: int
) -> None:
    """Draw windows, doors, columns or containers: upright boxes between two heights."""
    for _ in range(count):
        x, half = rng.uniform(0, width), rng.uniform(6, 30)
        upper = top + (bottom - top) * rng.uniform(0, 0.5)
        pen.rectangle((x - half, upper, x + half, bottom), fill=_muted(rng, spread=45))


def _lane(pen: ImageDraw.ImageDraw, width: int, horizon: int, height: int) -> None:
    kerb = horizon + (height - horizon) // 5
    pen.rectangle((0, horizon, width, kerb), fill=(150, 148, 142))
    for x in range(0, width, 80):
        pen.rectangle((x, (kerb + height) // 2, x + 44, (kerb + height) // 2 + 6), fill=(206, 204, 190))


def draw_obstacle(image: Image.Image, rng: np.random.Generator) -> None:
    """Hide part of the image behind something near the camera: a box, a pole, a car or a bush."""
    pen, (width, height) = ImageDraw.Draw(image), image.size
    colour = _muted(rng)
    x, kind = width * rng.uniform(0.1, 0.9), rng.integers(4)
    if kind == 0:
        top = height * rng.uniform(0.6, 0.8)
        pen.rectangle((x - 0.3 * width, top, x + 0.3 * width, height), fill=colour)
        pen.rectangle((x - 0.3 * width, top, x + 0.3 * width, top + 0.04 * height), fill=_darker(colour))
    elif kind == 1:
        pen.rectangle((x - 0.05 * width, 0, x + 0.05 * width, height), fill=colour)
    elif kind == 2:
        top, edge = height * rng.uniform(0.62, 0.8), 0.1 * width
        pen.rounded_rectangle((-2 * edge, top, width + 2 * edge, height + 2 * edge), radius=edge, fill=colour)
        pen.rounded_rectangle((edge, top + 5, width - edge, top + 22), radius=5, fill=(60, 70, 80))
    else:
        _bush(pen, rng, x, width, height)


def _bush(pen: ImageDraw.ImageDraw, rng: np.random.Generator, centre: float, width: int, height: int) -> None:
    for _ in range(9):
        radius = width * rng.uniform(0.1, 0.2)
        x, y = centre + width * rng.uniform(-0.3, 0.3), height * rng.uniform(0.72, 1.0)
        leaves = (40, int(rng.integers(70, 110)), 40)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=leaves)


def _muted(rng: np.random.Generator, spread: int = 12, green: int = 0) -> Colour:
    red, leaf, blue = (rng.integers(102, 156) + rng.integers(-spread, spread + 1, 3)).tolist()
    return red, leaf + green, blue


def _darker(colour: object) -> Colour:
    red, green, blue = np.asarray(colour).tolist()
    return int(red * 0.7), int(green * 0.7), int(blue * 0.7)
