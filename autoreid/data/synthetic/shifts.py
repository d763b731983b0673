"""The shift of a domain that stays behind the instance norm of a network's first layers.

An instance norm removes what scales and offsets a whole channel, such as a camera's colours. It does not remove what
changes the content of the channels or changes with place: textures, blur, shading and local contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Plane = npt.NDArray[np.float32]

TEXTURES = ("waves", "grain", "hatching", "dots", "weave", "scales")
SHADINGS = ("top", "side", "window", "spot", "foliage")


@dataclass(frozen=True)
class LocalShift:
    """The local look of a domain; angles are in radians, lengths in heights of the image.

    Attributes:
        texture: the kind of texture over the whole picture, one of TEXTURES.
        period: distance between two lines or dots of the texture.
        angle: direction of the texture.
        strength: largest strength of the texture, as a fraction of the brightness.
        shading: the kind of light on the picture, one of SHADINGS.
        contrast: mean factor of the contrast to the surroundings.
        blur: largest standard deviation of the blur.
    """

    texture: str
    period: float
    angle: float
    strength: float
    shading: str
    contrast: float
    blur: float

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the image as this domain shows it. The strength of each effect differs from image to image."""
        width, height = image.size
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
        pixels = self._blurred(image, x, y, rng)
        around = _smooth(Image.fromarray(pixels.astype(np.uint8)), height / 8)
        pixels = around + self.contrast * math.exp(rng.uniform(-0.5, 0.5)) * (pixels - around)
        light = np.exp(rng.uniform(0, 0.5) * self._shading(x, y, rng))
        grain = 1 + self.strength * rng.uniform() * self._cover(x, y, rng) * self._texture(x, y, rng)
        return Image.fromarray(np.clip(pixels * (light * grain)[..., None], 0, 255).astype(np.uint8))

    def _blurred(self, image: Image.Image, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
        """Blur the image, more on one side than on the other."""
        share = self._cover(x, y, rng)[..., None]
        blurred = _smooth(image, self.blur * image.height * rng.uniform(0.3, 1.0))
        mixed: Plane = share * blurred + (1 - share) * np.asarray(image, dtype=np.float32)
        return mixed

    def _cover(self, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
        """Return a smooth mask between 0.3 and 1, which differs from image to image."""
        turn, phase = rng.uniform(0, 2 * math.pi, 2)
        wave: Plane = np.sin(5 * (x * math.cos(turn) + y * math.sin(turn)) + phase)
        return 0.65 + 0.35 * wave

    def _shading(self, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
        """Return the logarithm of the light, about -1 to 0.6."""
        where = float(rng.uniform(0.2, 0.8))
        u, v = 2 * x - where, y - where
        shade: npt.NDArray[np.floating]
        if self.shading == "side":
            shade = 0.6 - 1.6 * x / x.max()
        elif self.shading == "top":
            shade = 0.6 - 1.6 * y
        elif self.shading == "window":
            shade = np.where(np.abs(v + 0.6 * u) < 0.16, 0.6, -0.7)
        elif self.shading == "spot":
            shade = 0.6 - 1.6 * np.minimum(1, 2.5 * (0.5 * u * u + v * v))
        else:
            shade = 0.8 * np.sin(19 * u + 3 * where) * np.sin(13 * v + 7 * where) - 0.2
        return shade.astype(np.float32)

    def _texture(self, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
        """Return the texture, from -1 to 1, or noise of standard deviation 1."""
        if self.texture == "grain":
            return rng.standard_normal(x.shape, dtype=np.float32)
        k = 2 * math.pi / (self.period * float(rng.uniform(0.9, 1.1)))
        shift = rng.uniform(0, self.period, 2)
        u = k * (x * math.cos(self.angle) + y * math.sin(self.angle) + shift[0])
        v = k * (y * math.cos(self.angle) - x * math.sin(self.angle) + shift[1])
        plane: npt.NDArray[np.floating]
        if self.texture == "hatching":
            plane = np.sign(np.sin(u))
        elif self.texture == "dots":
            plane = 2 * (np.sin(u) * np.sin(v) > 0.25) - 1.0
        elif self.texture == "weave":
            plane = np.where(np.sin(u / 2) * np.sin(v / 2) > 0, np.sin(2 * u), np.sin(2 * v))
        elif self.texture == "scales":
            plane = np.sin(u + 2 * np.abs(np.sin(v / 2)))
        else:
            plane = np.sin(u + 1.5 * np.sin(v / 2))
        return plane.astype(np.float32)


def pick_shift(rng: np.random.Generator, domain: int) -> LocalShift:
    """Return the shift of a domain: neighbouring domains differ in texture, light, contrast and blur."""
    return LocalShift(
        texture=TEXTURES[domain % len(TEXTURES)],
        period=(0.09, 0.08, 0.07, 0.1)[domain % 4],
        angle=2.4 * domain,
        strength=0.5,
        shading=SHADINGS[domain % len(SHADINGS)],
        contrast=(0.9, 1.0, 0.8, 1.25)[domain % 4],
        blur=0.006 * float(rng.uniform(0.8, 1.2)),
    )


def _smooth(image: Image.Image, deviation: float) -> Plane:
    """Return the pixels (H, W, 3) of the image, blurred."""
    return np.asarray(image.filter(ImageFilter.GaussianBlur(deviation)), dtype=np.float32)
