"""Synthetic pedestrians: what a person wears, how they stand, and how both are drawn.

Lengths are in units of the person's height; x is 0 at the spine and increases to the right of the picture, y is
0 at the top of the head and 1 at the soles. There are few colours, so identities differ in where a colour and
which pattern is worn rather than in the amount of each colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: tuple[Colour, ...] = (
    (38, 38, 44),  # black
    (226, 224, 218),  # white
    (128, 130, 134),  # grey
    (176, 44, 44),  # red
    (44, 72, 158),  # blue
    (52, 122, 68),  # green
    (208, 172, 62),  # yellow
    (112, 76, 48),  # brown
    (196, 116, 150),  # pink
)
_SKINS: tuple[Colour, ...] = ((238, 200, 172), (208, 160, 124), (146, 100, 72), (92, 62, 46))
_HAIRS: tuple[Colour, ...] = ((30, 26, 26), (84, 56, 36), (186, 148, 88), (150, 148, 146))
PATTERNS = ("plain", "horizontal", "vertical", "checks", "dots", "logo", "band", "sash")
LEGWEAR = ("trousers", "shorts", "skirt")
LEG_PATTERNS = ("plain", "seam", "cuffs")
BAGS = ("none", "backpack", "shoulder", "hand")


@dataclass(frozen=True)
class Person:
    """What is the same in all images of an identity."""

    skin: Colour
    hair: Colour
    hair_length: float
    hat: Colour | None
    upper: Colour
    pattern: str
    pattern_colour: Colour
    pattern_size: float
    long_sleeves: bool
    hem: float
    legwear: str
    lower: Colour
    leg_pattern: str
    leg_pattern_colour: Colour
    shoes: Colour
    bag: str
    bag_colour: Colour
    #: the side of the body that the bag is on: -1 or 1
    bag_side: int
    #: width of the body relative to the average
    build: float


@dataclass(frozen=True)
class Pose:
    """What differs between two images of an identity, relative to the camera."""

    #: from -1 (walking left) over 0 (towards or away from the camera) to 1 (walking right)
    turn: float
    from_behind: bool
    #: angles in radians: a leg and an arm from the vertical, and the bend of the elbow
    stride: float
    arm: float
    elbow: float
    #: sideways shift of the head, in units of the height
    lean: float


def pick_colours(rng: np.random.Generator, count: int) -> list[Colour]:
    """Sample different colours of the palette."""
    return [PALETTE[i] for i in rng.choice(len(PALETTE), count, replace=False)]


def pick_person(rng: np.random.Generator, wardrobes: list[list[Colour]]) -> Person:
    """Sample a person dressed in the three colours of one of the wardrobes, in any order."""
    wardrobe = wardrobes[rng.integers(len(wardrobes))]
    upper, lower, accent = (_vary(wardrobe[i], rng) for i in rng.permutation(3))
    return Person(
        skin=_vary(_SKINS[rng.integers(len(_SKINS))], rng),
        hair=_vary(_HAIRS[rng.integers(len(_HAIRS))], rng),
        hair_length=float(rng.choice((0.0, 0.0, 0.05, 0.12))),
        hat=(None, None, None, accent, lower)[rng.integers(5)],
        upper=upper,
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        pattern_colour=(lower, accent)[rng.integers(2)],
        pattern_size=float(rng.uniform(0.8, 1.25)),
        long_sleeves=bool(rng.random() < 0.6),
        hem=float(rng.choice((0.49, 0.52, 0.62))),
        legwear=LEGWEAR[rng.choice(3, p=(0.6, 0.2, 0.2))],
        lower=lower,
        leg_pattern=LEG_PATTERNS[rng.integers(len(LEG_PATTERNS))],
        leg_pattern_colour=(upper, accent)[rng.integers(2)],
        shoes=(upper, lower, accent)[rng.integers(3)],
        bag=BAGS[rng.integers(len(BAGS))],
        bag_colour=(lower, accent, accent)[rng.integers(3)],
        bag_side=int(rng.choice((-1, 1))),
        build=float(rng.uniform(0.88, 1.18)),
    )


def pick_pose(rng: np.random.Generator) -> Pose:
    """Sample a pose: standing or walking in any direction."""
    return Pose(
        turn=float(rng.uniform(-1, 1)),
        from_behind=bool(rng.random() < 0.5),
        stride=float(rng.uniform(-0.45, 0.45)),
        arm=float(rng.uniform(-0.5, 0.5)),
        elbow=float(rng.uniform(0.0, 0.9)),
        lean=float(rng.uniform(-0.03, 0.03)),
    )


def _vary(colour: Colour, rng: np.random.Generator, spread: int = 10) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue


def _shade(colour: Colour, factor: float = 0.78) -> Colour:
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


def draw_person(
    image: Image.Image, person: Person, pose: Pose, centre: float, top: float, size: float
) -> None:
    """Draw a person of `size` pixels height into the image, with the top of the head at pixel (centre, top)."""
    _Figure(image, person, pose, centre, top, size).draw()


class _Figure:
    """One person in one pose on one image."""

    def __init__(
        self, image: Image.Image, person: Person, pose: Pose, centre: float, top: float, size: float
    ) -> None:
        self.image, self.person, self.pose = image, person, pose
        self.pen = ImageDraw.Draw(image)
        self.centre, self.top, self.size = centre, top, size
        self.side_on = abs(pose.turn)
        self.forward = 1 if pose.turn >= 0 else -1
        #: half the width of shoulders and hips; smaller when seen from the side
        self.shoulder = 0.118 * person.build * (1 - 0.3 * self.side_on)
        self.hip = 0.092 * person.build * (1 - 0.2 * self.side_on)
        #: the side of the picture that the bag is on
        self.bag_side = person.bag_side if pose.from_behind else -person.bag_side

    def at(self, x: float, y: float) -> Point:
        return (self.centre + (x + self.pose.lean * (1 - y)) * self.size, self.top + y * self.size)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        self.pen.polygon([self.at(x, y) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.pen.rounded_rectangle(
            (*self.at(left, top), *self.at(right, bottom)), radius=0.02 * self.size, fill=colour
        )

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        left, top = self.at(x, y)
        rx, ry = radius_x * self.size, radius_y * self.size
        self.pen.ellipse((left - rx, top - ry, left + rx, top + ry), fill=colour)

    def limb(self, points: list[Point], width: float, colour: Colour) -> None:
        pixels = [self.at(x, y) for x, y in points]
        self.pen.line(pixels, fill=colour, width=max(1, round(width * self.size)), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, colour)

    def draw(self) -> None:
        near = -self.forward  # on the picture, the arm and leg farther from the camera are drawn first
        if self.person.hair_length and not self.pose.from_behind:
            self.ellipse(0, 0.09, 0.062, 0.065 + self.person.hair_length, self.person.hair)
        if self.person.bag == "backpack" and self.side_on > 0.35:
            self._backpack_from_the_side()
        self._arm(-near, far=True)
        self._leg(-near, far=True)
        self._leg(near, far=False)
        if self.person.legwear == "skirt":
            self._skirt()
        self._torso()
        self._head()
        if self.person.bag == "backpack" and self.side_on <= 0.35:
            self._backpack_from_front_or_back()
        if self.person.bag == "shoulder":
            self._shoulder_bag()
        self._arm(near, far=False)

    def _leg(self, side: int, far: bool) -> None:
        person = self.person
        angle = side * self.pose.stride * (0.15 + 0.85 * self.side_on)
        hip = (side * self.hip * 0.5, 0.5)
        knee = (hip[0] + 0.23 * math.sin(angle), hip[1] + 0.23 * math.cos(angle))
        shin = angle - self.forward * 0.5 * abs(angle)  # a bent knee trails behind
        ankle = (knee[0] + 0.22 * math.sin(shin), knee[1] + 0.22 * math.cos(shin))
        width = 0.082 * person.build
        cloth = _shade(person.lower) if far else person.lower
        second = _shade(person.leg_pattern_colour) if far else person.leg_pattern_colour
        bare = _shade(person.skin) if far else person.skin
        self.limb([knee, ankle], width * 0.85, cloth if person.legwear == "trousers" else bare)
        self.limb([hip, knee], width, bare if person.legwear == "skirt" else cloth)
        if person.legwear == "trousers" and person.leg_pattern == "cuffs":
            above = ((knee[0] + ankle[0]) / 2, (knee[1] + ankle[1]) / 2)
            self.limb([above, ankle], width * 0.9, second)
        elif person.legwear == "trousers" and person.leg_pattern == "seam":
            self.limb([hip, knee, ankle], width * 0.3, second)
        elif person.legwear == "shorts" and person.leg_pattern != "plain":
            self.limb([knee, (knee[0], knee[1] - 0.02)], width, second)
        toe = 0.05 * self.pose.turn
        self.ellipse(ankle[0] + toe, ankle[1] + 0.025, 0.035 + 0.02 * self.side_on, 0.024, person.shoes)

    def _skirt(self) -> None:
        hem, waist = self.hip * 1.35, self.hip
        self.polygon([(-waist, 0.46), (waist, 0.46), (hem, 0.72), (-hem, 0.72)], self.person.lower)
        if self.person.leg_pattern != "plain":
            edge = hem * 0.95
            colour = self.person.leg_pattern_colour
            self.polygon([(-edge, 0.67), (edge, 0.67), (hem, 0.72), (-hem, 0.72)], colour)

    def _torso(self) -> None:
        person, shoulder, hip = self.person, self.shoulder, self.hip
        self.limb([(0, 0.11), (0, 0.16)], 0.05, _shade(person.skin, 0.9))
        outline = [
            (-shoulder * 0.55, 0.145),
            (shoulder * 0.55, 0.145),
            (shoulder, 0.18),
            (hip * 0.95, 0.36),
            (hip * 1.08, person.hem),
            (-hip * 1.08, person.hem),
            (-hip * 0.95, 0.36),
            (-shoulder, 0.18),
        ]
        self.polygon(outline, person.upper)
        if person.pattern == "plain":
            return
        # The pattern is drawn on a separate image and pasted through the outline of the torso.
        left, top = (int(v) for v in self.at(-0.2, 0.13))
        right, bottom = (int(v) for v in self.at(0.2, person.hem + 0.02))
        size = (right - left, bottom - top)
        cloth = Image.new("RGB", size, person.upper)
        self._pattern(ImageDraw.Draw(cloth), *size)
        mask = Image.new("L", size)
        shifted = [(x - left, y - top) for x, y in (self.at(x, y) for x, y in outline)]
        ImageDraw.Draw(mask).polygon(shifted, fill=255)
        self.image.paste(cloth, (left, top), mask)

    def _pattern(self, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
        person, colour = self.person, self.person.pattern_colour
        step = 0.075 * person.pattern_size * self.size
        middle = width / 2 + 0.05 * self.pose.turn * self.size
        rows = [(i, i * step) for i in range(int(height / step) + 1)]
        columns = [(i, middle + i * step) for i in range(-4, 5)]
        if person.pattern == "horizontal":
            for _, y in rows:
                pen.rectangle((0, y, width, y + step / 2), fill=colour)
        elif person.pattern == "vertical":
            for _, x in columns:
                pen.rectangle((x - step / 4, 0, x + step / 4, height), fill=colour)
        elif person.pattern == "checks":
            for i, y in rows:
                for j, x in columns:
                    if (i + j) % 2:
                        pen.rectangle((x - step / 2, y, x + step / 2, y + step), fill=colour)
        elif person.pattern == "dots":
            radius = 0.3 * step
            for i, y in rows:
                for _, x in columns:
                    x += step / 2 * (i % 2)
                    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif person.pattern == "logo":
            pen.rectangle((middle - step, 1.2 * step, middle + step, 3.0 * step), fill=colour)
        elif person.pattern == "band":
            pen.rectangle((0, 2.2 * step, width, 3.8 * step), fill=colour)
        elif person.pattern == "sash":
            slope = self.bag_side * 2.2 * step
            pen.line((middle - slope, 0, middle + slope, 5.5 * step), fill=colour, width=round(step))

    def _arm(self, side: int, far: bool) -> None:
        person = self.person
        angle = -side * self.pose.arm * (0.2 + 0.8 * self.side_on) + side * 0.16 * (1 - self.side_on)
        shoulder = (side * self.shoulder * (0.95 - 0.6 * self.side_on), 0.185)
        elbow = (shoulder[0] + 0.16 * math.sin(angle), shoulder[1] + 0.16 * math.cos(angle))
        bend = angle + self.forward * self.pose.elbow * self.side_on
        hand = (elbow[0] + 0.15 * math.sin(bend), elbow[1] + 0.15 * math.cos(bend))
        sleeve = _shade(person.upper, 0.7 if far else 0.88)
        skin = _shade(person.skin) if far else person.skin
        if person.bag == "hand" and side == self.bag_side:
            self.box(hand[0] - 0.06, hand[1], hand[0] + 0.06, hand[1] + 0.15, person.bag_colour)
        self.limb([elbow, hand], 0.046 * person.build, sleeve if person.long_sleeves else skin)
        self.limb([shoulder, elbow], 0.056 * person.build, sleeve)
        self.ellipse(*hand, 0.022, 0.026, skin)

    def _head(self) -> None:
        person, behind = self.person, self.pose.from_behind
        self.ellipse(0, 0.075, 0.052, 0.072, person.hair if behind else person.skin)
        if behind:
            if person.hair_length:
                length = person.hair_length
                self.box(-0.05, 0.06, 0.05, 0.12 + length, person.hair)
        else:  # hair on top, and at the back of the head when turned
            self.ellipse(-0.035 * self.pose.turn, 0.04, 0.054, 0.042, person.hair)
        if person.hat:
            left, top = self.at(-0.058, -0.012)
            right, bottom = self.at(0.058, 0.09)
            self.pen.pieslice((left, top, right, bottom), 180, 360, fill=person.hat)
            brim = 0.05 * self.pose.turn
            self.box(brim - 0.06, 0.034, brim + 0.06, 0.05, _shade(person.hat))

    def _backpack_from_the_side(self) -> None:
        inner = -self.forward * self.hip * 0.6
        outer = inner - self.forward * 0.11
        self.box(min(inner, outer), 0.17, max(inner, outer), 0.41, self.person.bag_colour)

    def _backpack_from_front_or_back(self) -> None:
        if self.pose.from_behind:
            self.box(-0.08, 0.17, 0.08, 0.41, self.person.bag_colour)
            self.box(-0.055, 0.3, 0.055, 0.38, _shade(self.person.bag_colour))
            return
        for side in (-1, 1):
            x = side * self.shoulder * 0.6
            self.limb([(x, 0.16), (x, 0.36)], 0.03, self.person.bag_colour)

    def _shoulder_bag(self) -> None:
        side, colour = self.bag_side, self.person.bag_colour
        x = side * self.hip * 1.05
        self.limb([(-side * self.shoulder * 0.7, 0.16), (x, 0.46)], 0.022, colour)
        self.box(x - 0.065, 0.44, x + 0.065, 0.57, colour)
