import errno
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from autoreid.config import SyntheticPeople
from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.records import DISTRACTOR
from autoreid.data.synthetic import people as synthetic_people
from autoreid.data.synthetic.cameras import pick_camera
from autoreid.data.synthetic.drawing import (
    PALETTE,
    PATTERNS,
    Pose,
    draw_person,
    pick_colours,
    pick_person,
    pick_pose,
)
from autoreid.data.synthetic.people import SETTINGS_FILE, write_synthetic_people
from autoreid.errors import DataError, RunError

SMALL = SyntheticPeople(
    train_identities=3, test_identities=2, images_per_identity=8, cameras=3, distractors=4, junk=5
)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def changed(**settings: int) -> SyntheticPeople:
    return SyntheticPeople(**{**SMALL.model_dump(), **settings})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "people"
    write_synthetic_people(root, SMALL)
    return root


def test_equal_settings_give_equal_files(root, tmp_path):
    write_synthetic_people(tmp_path / "again", SMALL)
    assert contents(root) == contents(tmp_path / "again")


def test_an_image_depends_on_its_identity_and_index_not_on_what_else_is_drawn(root, tmp_path):
    write_synthetic_people(tmp_path / "more", changed(train_identities=5, distractors=0, junk=9))
    more = contents(tmp_path / "more")
    train = {name: data for name, data in contents(root).items() if "train" in name}
    assert len(train) == 3 * 8
    assert train.items() <= more.items()


@pytest.mark.parametrize("setting", ["seed", "domain"])
def test_seed_and_domain_change_every_image(root, tmp_path, setting):
    write_synthetic_people(tmp_path / "other", changed(**{setting: 1}))
    ours, other = contents(root), contents(tmp_path / "other")
    assert ours.keys() == other.keys()
    assert not [name for name in ours if name.endswith(".jpg") and ours[name] == other[name]]


def test_reads_back_as_a_benchmark(root):
    dataset = read_market1501(root)
    assert Counter(dataset.train.identities.tolist()) == dict.fromkeys((1, 2, 3), 8)
    views = zip(dataset.query.identities.tolist(), dataset.query.cameras.tolist(), strict=True)
    assert sorted(views) == [(identity, camera) for identity in (4, 5) for camera in (1, 2, 3)]
    assert Counter(dataset.gallery.identities.tolist()) == {DISTRACTOR: 4, 4: 5, 5: 5}
    assert len(list((root / "bounding_box_test").glob("-1_*.jpg"))) == 5, "the reader drops junk"
    for path in (*dataset.train.paths, *dataset.query.paths, *dataset.gallery.paths):
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (64, 128), "RGB")


@pytest.mark.parametrize("cameras", [2, 3, 6])
def test_every_query_has_a_match_under_another_camera(tmp_path, cameras):
    write_synthetic_people(tmp_path / "p", changed(cameras=cameras, images_per_identity=cameras + 2))
    dataset = read_market1501(tmp_path / "p")
    same = dataset.query.identities[:, None] == dataset.gallery.identities
    assert (same & (dataset.query.cameras[:, None] != dataset.gallery.cameras)).any(axis=1).all()
    with pytest.raises(ValidationError, match=f"expected at least {cameras + 2}"):
        changed(cameras=cameras, images_per_identity=cameras + 1)


def test_settings_are_strict():
    for settings in ({"identities": 3}, {"height": "128"}, {"cameras": 1}):
        with pytest.raises(ValidationError):
            SyntheticPeople(**settings)


def portrait(person, pose: Pose) -> np.ndarray:
    image = Image.new("RGB", (64, 128), (127, 127, 127))
    draw_person(image, person, pose, centre=32, top=4, size=120)
    return np.asarray(image, dtype=np.float64)


def test_an_identity_looks_more_like_itself_in_another_pose_than_like_others():
    rng = np.random.default_rng(0)
    wardrobes = [pick_colours(rng, 3) for _ in range(3)]
    people = [pick_person(rng, wardrobes) for _ in range(40)]
    first, second = (
        np.stack([portrait(person, pick_pose(rng)).ravel() for person in people]) for _ in range(2)
    )
    distance = np.linalg.norm(first[:, None] - second[None], axis=2)
    own = np.diag(distance)
    assert np.mean(distance > own[:, None]) > 0.8, "0.5 by chance"
    assert len(set(people)) == len(people)


def test_identities_share_their_colours_and_not_their_pattern_and_placement():
    rng = np.random.default_rng(0)
    wardrobes = [pick_colours(rng, 3) for _ in range(3)]
    people = [pick_person(rng, wardrobes) for _ in range(200)]
    nearest = lambda colour: min(PALETTE, key=lambda c: np.abs(np.subtract(c, colour)).sum())  # noqa: E731
    worn = [
        {
            nearest(c)
            for c in (p.upper, p.lower, p.pattern_colour, p.leg_pattern_colour, p.bag_colour, p.shoes)
        }
        for p in people
    ]
    assert all(any(colours <= set(wardrobe) for wardrobe in wardrobes) for colours in worn)
    placements = {(nearest(p.upper), nearest(p.lower)) for p in people}
    assert all((lower, upper) in placements for upper, lower in placements), "also with exchanged colours"
    assert {p.pattern for p in people} == set(PATTERNS)


def test_every_pattern_bag_and_legwear_shows():
    rng = np.random.default_rng(3)
    person = pick_person(rng, [list(PALETTE[:3])])
    pose = Pose(turn=0.0, from_behind=True, stride=0.1, arm=0.1, elbow=0.2, lean=0.0)
    for field, values in (
        ("pattern", PATTERNS),
        ("bag", ("none", "backpack", "shoulder", "hand")),
        ("legwear", ("trousers", "shorts", "skirt")),
    ):
        base = {**vars(person), "bag": "none", "pattern": "plain", "hem": 0.49}
        drawn = {portrait(type(person)(**{**base, field: value}), pose).tobytes() for value in values}
        assert len(drawn) == len(values), field


def test_domains_shift_the_colours_of_all_cameras(tmp_path):
    blue_to_red = []
    for domain in (0, 1):
        write_synthetic_people(tmp_path / str(domain), changed(cameras=6, domain=domain))
        paths = read_market1501(tmp_path / str(domain)).train.paths
        mean = np.mean([np.asarray(Image.open(path)).mean(axis=(0, 1)) for path in paths], axis=0)
        blue_to_red.append(mean[2] / mean[0])
    assert blue_to_red[1] > 1.2 * blue_to_red[0], "domain 1 is colder"


def test_a_domain_shifts_a_camera_in_colour_temperature_and_exposure():
    grey = Image.new("RGB", (64, 128), (120, 120, 120))

    def seen(style: float | None) -> np.ndarray:
        camera = pick_camera(np.random.default_rng(5), "street", style, (128, 256))
        return np.asarray(camera.develop(grey, np.random.default_rng(6))).mean(axis=(0, 1))

    neutral, warm, cold, light, dark = (seen(style) for style in (None, 0, np.pi, np.pi / 2, -np.pi / 2))
    assert warm[0] / warm[2] > 1.2 * neutral[0] / neutral[2] > 1.4 * cold[0] / cold[2]
    assert light.mean() > 1.1 * neutral.mean() > 1.2 * dark.mean()


def test_leaves_a_folder_of_the_same_people_alone(root):
    before = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}
    write_synthetic_people(root, SMALL)
    assert {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))} == before


def test_refuses_a_folder_of_other_people_and_says_what_differs(root):
    before = contents(root)
    with pytest.raises(DataError, match=r"domain is 0, not 2; seed is 0, not 7") as error:
        write_synthetic_people(root, changed(domain=2, seed=7))
    assert str(root) in str(error.value)
    assert "cameras" not in str(error.value)
    assert contents(root) == before


@pytest.mark.parametrize("settings", [None, "", "[1]", '{"width": 64'])
def test_refuses_a_folder_that_it_did_not_write(tmp_path, settings):
    (tmp_path / "notes.txt").write_text("mine")
    if settings is not None:
        (tmp_path / SETTINGS_FILE).write_text(settings)
    before = contents(tmp_path)
    with pytest.raises(DataError) as error:
        write_synthetic_people(tmp_path, SMALL)
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before


def test_an_older_drawing_is_not_taken_for_this_one(root, monkeypatch):
    written = json.loads((root / SETTINGS_FILE).read_text())["drawing_version"]
    monkeypatch.setattr(synthetic_people, "DRAWING_VERSION", written + 1)
    with pytest.raises(DataError, match="drawing_version"):
        write_synthetic_people(root, SMALL)


@pytest.mark.parametrize(
    ("failure", "seen_as"),
    [(OSError(errno.ENOSPC, "No space left on device"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, failure, seen_as):
    save, saved = Image.Image.save, []

    def save_some(image, path, **options):
        if len(saved) == 20:
            path.write_bytes(b"half a picture")
            raise failure
        saved.append(path)
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_some)
    with pytest.raises(seen_as) as error:
        write_synthetic_people(tmp_path / "people", SMALL)
    if seen_as is RunError:
        assert str(tmp_path / "people") in str(error.value)
        assert "No space left" in str(error.value)
    assert len(saved) == 20
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once_agree(root, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write_synthetic_people, tmp_path / "people", SMALL) for _ in range(2)]:
            done.result()
    assert contents(tmp_path / "people") == contents(root)
    assert [path.name for path in tmp_path.iterdir()] == ["people"]
