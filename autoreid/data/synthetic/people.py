"""Generate a data set of synthetic pedestrians in the layout of Market-1501, to try everything without real data.

Each image depends only on the settings, the identity and the image index, so equal settings give identical
files, byte for byte, independently of the order in which they are drawn.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
from PIL import Image

from autoreid.config import SyntheticPeople
from autoreid.data.datasets.market1501 import FOLDERS
from autoreid.data.records import DISTRACTOR, JUNK
from autoreid.data.synthetic.cameras import BACKGROUNDS, Camera, draw_obstacle, pick_camera
from autoreid.data.synthetic.drawing import Person, draw_person, pick_colours, pick_person, pick_pose
from autoreid.errors import DataError, RunError

SETTINGS_FILE = "synthetic.json"
#: Increase this when the same settings give different pictures, so that old folders are not reused.
DRAWING_VERSION = 1
#: Pictures are drawn larger than they are saved, by this factor.
_OVERSIZE = 2
#: Number of wardrobes (three colours each) that a domain's people share.
_WARDROBES = 3


class _Stream(IntEnum):
    """Purpose of a random number stream; each purpose has its own numbers."""

    WARDROBES = 1
    CAMERA = 2
    PERSON = 3
    IMAGE = 4
    STRANGER = 5
    JUNK = 6


def write_synthetic_people(root: Path, people: SyntheticPeople) -> None:
    """Generate the people and write them to a folder, atomically.

    A folder that already holds the same people is left as it is.

    Raises:
        DataError: the folder exists with other content; it is never overwritten.
        RunError: the folder cannot be written.
    """
    root = Path(root)
    if root.exists():
        _check_same(root, people)
        return
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    try:
        for folder in FOLDERS.values():
            (partial / folder).mkdir(parents=True)
        for name, image in _pictures(people):
            image.save(partial / name, quality=90)
        (partial / SETTINGS_FILE).write_text(json.dumps(_settings(people), indent=1) + "\n", encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:
            if not root.exists():
                raise
            _check_same(root, people)  # another process finished first
    except OSError as error:
        raise RunError(f"{root}: cannot write the synthetic people: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rng(people: SyntheticPeople, stream: _Stream, number: int = 0, image: int = 0) -> np.random.Generator:
    # Always five numbers, because numpy treats [1, 2] and [1, 2, 0] as the same seed.
    return np.random.default_rng([people.seed, people.domain, stream, number, image])


def _settings(people: SyntheticPeople) -> dict[str, int]:
    return {"drawing_version": DRAWING_VERSION, **people.model_dump()}


def _check_same(root: Path, people: SyntheticPeople) -> None:
    advice = "use another folder name, or remove this folder"
    try:
        found = json.loads((root / SETTINGS_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: already exists, without a readable {SETTINGS_FILE}; {advice}") from error
    wanted = _settings(people)
    if found == wanted:
        return
    found = found if isinstance(found, dict) else {}
    differing = [
        f"{key} is {found.get(key, 'missing')}, not {wanted.get(key, 'a setting')}"
        for key in {**wanted, **found}
        if found.get(key) != wanted.get(key)
    ]
    raise DataError(f"{root}: contains different synthetic people ({'; '.join(differing)}); {advice}")


def _pictures(people: SyntheticPeople) -> Iterator[tuple[str, Image.Image]]:
    """Yield every image of the data set, with its path below the root."""
    studio = _Studio(people)
    last = people.train_identities + people.test_identities
    frame = 0
    for identity in range(1, last + 1):
        person = studio.person(_Stream.PERSON, identity)
        for i in range(people.images_per_identity):
            camera, frame = i % people.cameras, frame + 1
            if identity <= people.train_identities:
                folder = FOLDERS["train"]
            else:  # the first image of each camera is the query
                folder = FOLDERS["query"] if i < people.cameras else FOLDERS["gallery"]
            picture = studio.picture(_rng(people, _Stream.IMAGE, identity, i), camera, person)
            yield f"{folder}/{_name(identity, camera, frame)}", picture
    for i in range(people.distractors):
        camera, frame = i % people.cameras, frame + 1
        stranger = studio.person(_Stream.STRANGER, i)
        picture = studio.picture(_rng(people, _Stream.STRANGER, i, 1), camera, stranger)
        yield f"{FOLDERS['gallery']}/{_name(DISTRACTOR, camera, frame)}", picture
    for i in range(people.junk):
        camera, frame = i % people.cameras, frame + 1
        person = studio.person(_Stream.PERSON, last - i % people.test_identities)
        picture = studio.picture(_rng(people, _Stream.JUNK, i), camera, person, badly_cropped=True)
        yield f"{FOLDERS['gallery']}/{_name(JUNK, camera, frame)}", picture


def _name(identity: int, camera: int, frame: int) -> str:
    number = f"{identity:04d}" if identity >= 0 else str(identity)
    return f"{number}_c{camera + 1}s1_{frame:06d}_00.jpg"


class _Studio:
    """Draws people in front of the cameras of one domain."""

    def __init__(self, people: SyntheticPeople) -> None:
        self.people = people
        self.size = (people.width * _OVERSIZE, people.height * _OVERSIZE)
        rng = _rng(people, _Stream.WARDROBES)
        self.wardrobes = [pick_colours(rng, 3) for _ in range(_WARDROBES)]
        self.cameras = [self._camera(index) for index in range(people.cameras)]

    def person(self, stream: _Stream, number: int) -> Person:
        return pick_person(_rng(self.people, stream, number), self.wardrobes)

    def _camera(self, index: int) -> Camera:
        domain = self.people.domain
        background = BACKGROUNDS[(2 * domain + index % 2) % len(BACKGROUNDS)]
        rng = _rng(self.people, _Stream.CAMERA, index)
        return pick_camera(rng, background, 2.4 * domain if domain else None, self.size)

    def picture(
        self, rng: np.random.Generator, camera: int, person: Person, badly_cropped: bool = False
    ) -> Image.Image:
        """Draw a person as seen by a camera: in a random pose and crop, perhaps behind an obstacle."""
        style = self.cameras[camera]
        width, height = self.size
        left = int(rng.integers(style.scene.width - width + 1))
        top = int(rng.integers(style.scene.height - height + 1))
        image = style.scene.crop((left, top, left + width, top + height))
        size = height * rng.uniform(0.8, 1.0)
        centre = width * (0.5 + rng.uniform(-0.1, 0.1))
        head = (height - size) * rng.uniform(0.1, 0.9) + height * rng.uniform(-0.03, 0.03)
        if badly_cropped:
            size *= rng.uniform(1.6, 2.4)
            centre += width * rng.choice((-0.4, 0.4))
            head = -rng.uniform(0.1, 0.5) * size
        draw_person(image, person, pick_pose(rng), centre, head, size)
        if rng.random() < 0.4:
            draw_obstacle(image, rng)
        return style.develop(image.reduce(_OVERSIZE), rng)
