"""A miniature of every published data set: its folders, file names and lists, with small images of noise."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

DISTRACTOR, JUNK = "distractor", "junk"


class Row(NamedTuple):
    """An image and its true labels; person and camera are names."""

    split: str
    path: str
    person: str
    camera: str


class Miniature:
    """A folder that is being filled, and its contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Row] = []

    def add(self, split: str, path: str, person: object, camera: object, empty: bool = False) -> None:
        """Write an image, or an empty file instead."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"" if empty else picture(len(self.rows), file.suffix))
        self.rows.append(Row(split, path, str(person), str(camera)))

    def text(self, path: str, lines: list[str]) -> None:
        """Write a list."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")


def noise(seed: int, height: int = 12, width: int = 6) -> np.ndarray:
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int, suffix: str = ".jpg") -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP"}[suffix]
    Image.fromarray(noise(seed)).save(file, kind)
    return file.getvalue()


def market1501(folder: Path, inside: str = "Market-1501-v15.09.15/") -> list[Row]:
    made = Miniature(folder)
    for person in (2, 7, 1500):
        for camera in (1, 3, 6):
            name = f"{person:04d}_c{camera}s1_{person * 10:06d}_0{camera}.jpg"
            made.add("train", f"{inside}bounding_box_train/{name}", person, camera)
    for person in (1, 1501):
        for camera in (1, 2):
            made.add("query", f"{inside}query/{person:04d}_c{camera}s1_001051_00.jpg", person, camera)
            name = f"{person:04d}_c{camera}s3_000151_01.jpg"
            made.add("gallery", f"{inside}bounding_box_test/{name}", person, camera)
    made.add("gallery", f"{inside}bounding_box_test/0000_c1s1_000151_01.jpg", DISTRACTOR, 1)
    made.add("none", f"{inside}bounding_box_test/-1_c3s1_000401_03.jpg", JUNK, 3)
    made.add("none", f"{inside}gt_bbox/0001_c1s1_001051_00.jpg", 1, 1)
    made.text(f"{inside}readme.txt", ["Market-1501"])
    (folder / inside / "bounding_box_test/Thumbs.db").write_bytes(b"Windows leaves these")
    return made.rows


def market1501_500k(folder: Path) -> list[Row]:
    more = Miniature(folder)
    for number in range(3):
        more.add("gallery", f"images/0000_c{number + 1}s1_{number:06d}_00.jpg", DISTRACTOR, number + 1)
    return market1501(folder) + more.rows


def dukemtmc(folder: Path) -> list[Row]:
    made = Miniature(folder)
    inside = "DukeMTMC-reID/"
    for person in (1, 5):
        for camera in (2, 8):
            name = f"{person:04d}_c{camera}_f00{camera}6182.jpg"
            made.add("train", f"{inside}bounding_box_train/{name}", person, camera)
    for camera in (1, 2):
        made.add("query", f"{inside}query/0007_c{camera}_f0046182.jpg", 7, camera)
        for frame in (47302, 47422):
            name = f"0007_c{camera}_f00{frame}.jpg"
            made.add("gallery", f"{inside}bounding_box_test/{name}", 7, camera)
    made.add("gallery", f"{inside}bounding_box_test/4999_c7_f0092302.jpg", 4999, 7)
    return made.rows


def occluded_duke(folder: Path) -> list[Row]:
    """As created by the authors' script."""
    made = Miniature(folder)
    for split, part in (
        ("train", "bounding_box_train"),
        ("query", "query"),
        ("gallery", "bounding_box_test"),
    ):
        for person in (1, 5) if split == "train" else (19, 21):
            for camera in (1, 4):
                name = f"{person:04d}_c{camera}_f0051{'350' if split == 'query' else '230'}.jpg"
                made.add(split, f"Occluded_Duke/{part}/{name}", person, camera)
    return made.rows


def _cuhk03(folder: Path, kind: str) -> list[Row]:
    """CUHK03-NP, the layout in which the authors of the protocol distribute the images."""
    made = Miniature(folder)
    for other in ("labeled", "detected"):
        rows = len(made.rows)
        for part, split, people in (
            ("bounding_box_train", "train", (1, 2)),
            ("query", "query", (3, 1467)),
            ("bounding_box_test", "gallery", (3, 1467)),
        ):
            for person in people:
                for camera in (1, 2):
                    name = f"{person:04d}_c{camera}_{len(made.rows)}.png"
                    made.add(split, f"cuhk03-np/{other}/{part}/{name}", person, camera)
        if other != kind:
            del made.rows[rows:]
    return made.rows


def cuhk03_labeled(folder: Path) -> list[Row]:
    return _cuhk03(folder, "labeled")


def cuhk03_detected(folder: Path) -> list[Row]:
    return _cuhk03(folder, "detected")


def _msmt17(folder: Path, inside: str, train: str, test: str) -> list[Row]:
    made = Miniature(folder)
    for file, split, images, people in (
        ("list_train.txt", "train", train, (0, 1, 1040)),
        ("list_val.txt", "train", train, (0, 1)),
        ("list_query.txt", "query", test, (0, 3059)),
        ("list_gallery.txt", "gallery", test, (0, 2, 3059)),
    ):
        lines = []
        for person in people:
            for camera in (1, 15):
                path = (
                    f"{person:04d}/{person:04d}_{len(made.rows):03d}_{camera:02d}_0303morning_0015_0_ex.jpg"
                )
                # Both parts number their people from 0.
                made.add(split, f"{inside}/{images}/{path}", f"{images} {person}", camera)
                lines.append(f"{path} {person}")
        made.text(f"{inside}/{file}", lines)
    return made.rows


def msmt17(folder: Path) -> list[Row]:
    return _msmt17(folder, "MSMT17_V1", "train", "test")


def msmt17_v2(folder: Path) -> list[Row]:
    return _msmt17(folder, "MSMT17_V2", "mask_train_v2", "mask_test_v2")


def cuhk_sysu(folder: Path) -> list[Row]:
    made = Miniature(folder)
    for person in (0, 1, 11933):
        for number in (1, 2):
            path = f"cropped_images/p{person}_s{person + 5000 + number}_{number}.jpg"
            made.add("train", path, person, "the only one")
    return made.rows


def viper(folder: Path, people: int = 6) -> list[Row]:
    """The split of each row is "pair", because the splits are computed by the reader."""
    made = Miniature(folder)
    for person in range(people):
        for camera, angle in (("a", 0), ("b", 90)):
            path = f"VIPeR/cam_{camera}/{person:03d}_{angle}.bmp"
            made.add("pair", path, person, camera, empty=people > 6)
    return made.rows


def grid(folder: Path, people: int = 6, strangers: int = 3, splits: int = 10) -> list[Row]:
    """The same; split k has the training people `grid_training_people`."""
    made = Miniature(folder)
    for person in range(1, people + 1):
        for part, camera in (("probe", 1 + person % 2), ("gallery", 3 + person % 2)):
            path = f"underground_reid/{part}/{person:04d}_{camera}_25004_107_32_106_221.jpeg"
            made.add("pair", path, person, camera, empty=people > 6)
    for number in range(strangers):
        path = f"underground_reid/gallery/0000_{1 + number % 8}_{25000 + number}_169_19_94_252.jpeg"
        made.add("stranger", path, DISTRACTOR, 1 + number % 8, empty=people > 6)
    cells = np.empty((1, splits), dtype=object)
    for split in range(splits):
        chosen = grid_training_people(people, split)
        fields = {"probeImIdx": 2 * chosen, "galleryImIdx": 2 * chosen - 1, "personIdx": chosen}
        cells[0, split] = {name: values[None].astype(float) for name, values in fields.items()}
    savemat(folder / "underground_reid/features_and_partitions.mat", {"trainIdxAll": cells})
    return made.rows


def veri776(folder: Path) -> list[Row]:
    made = Miniature(folder)
    for vehicle in (1, 776):
        for camera in (1, 20):
            made.add("train", f"VeRi/image_train/{vehicle:04d}_c{camera:03d}_00016450_0.jpg", vehicle, camera)
    for vehicle in (2, 9):
        for camera in (2, 19):
            for part in ("query", "test") if camera == 2 else ("test",):
                split = "query" if part == "query" else "gallery"
                path = f"VeRi/image_{part}/{vehicle:04d}_c{camera:03d}_00030600_0.jpg"
                made.add(split, path, vehicle, camera)
    made.text("VeRi/name_query.txt", ["0002_c002_00030600_0.jpg"])
    return made.rows


def vehicleid(folder: Path, vehicles: int = 800, images: int = 3) -> list[Row]:
    """The split of each test image is "test", because the reader chooses the gallery."""
    made = Miniature(folder)
    tested = range(26_000, 26_000 + vehicles)
    for split, file, people in (("train", "train_list", (0, 7)), ("test", "test_list_800", tested)):
        lines = []
        for vehicle in people:
            for _ in range(images):
                number = f"{len(made.rows) + 1:07d}"
                made.add(split, f"VehicleID/image/{number}.jpg", vehicle, "unknown", empty=vehicles > 6)
                lines.append(f"{number} {vehicle}")
        made.text(f"VehicleID/train_test_split/{file}.txt", lines)
    return made.rows


def grid_training_people(people: int, split: int) -> np.ndarray:
    """Half of the people, numbered from 1; a different half for each split."""
    return np.sort(np.random.default_rng(split).permutation(people)[: people // 2] + 1)


def cuhk03_release(folder: Path) -> dict[str, np.ndarray]:
    """Write cuhk-03.mat and the two protocols in the authors' format; returns the images by name.

    The pairs of cameras have 3, 2, 0, 0 and 1 people, each with up to 10 images: 1 to 5 from one camera, 6 to 10 from
    the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: dict[str, np.ndarray] = {}
    with h5py.File(folder / "cuhk-03.mat", "w") as file:
        for kind in ("labeled", "detected"):
            pairs = [
                _cuhk03_pair(file, kind, pair, people, images) for pair, people in enumerate((3, 2, 0, 0, 1))
            ]
            file.create_dataset(kind, data=np.array([pairs], dtype=h5py.ref_dtype))
    for kind in ("labeled", "detected"):
        names = sorted(name.partition("/")[2] for name in images if name.startswith(kind))
        _cuhk03_protocol(folder / f"cuhk03_new_protocol_config_{kind}.mat", names)
    return images


def _cuhk03_pair(
    file: h5py.File, kind: str, pair: int, people: int, images: dict[str, np.ndarray]
) -> h5py.Reference:
    cells = np.empty((10, people), dtype=h5py.ref_dtype)
    for person in range(people):
        for number in range(10):
            name = f"{kind}/{pair + 1}_{person + 1:03d}_{1 + number // 5}_{number + 1:02d}.png"
            place = f"{kind}-{pair}-{person}-{number}"
            if (number % 5) < 2:
                images[name] = noise(len(images), 9 + number, 5)
                stored = file.create_dataset(place, data=images[name].T)
            else:  # an empty cell, as MATLAB stores it
                stored = file.create_dataset(place, data=np.zeros(2, dtype=np.uint64))
            cells[number, person] = stored.ref
    return file.create_dataset(f"{kind}-{pair}", data=cells, dtype=h5py.ref_dtype).ref


def _cuhk03_protocol(path: Path, names: list[str]) -> None:
    """Train on the people of the first pair; of the others, the first image from each camera is a query."""
    people = [name[:5] for name in names]
    labels = np.unique(people, return_inverse=True)[1] + 1
    cameras = np.array([int(name.split("_")[2]) for name in names])
    is_train = np.array([name.startswith("1_") for name in names])
    is_query = ~is_train & np.array([int(name[-6:-4]) in (1, 6) for name in names])
    filelist = np.empty((len(names), 1), dtype=object)
    filelist[:, 0] = names
    content = {"filelist": filelist, "labels": labels[:, None].astype(float), "camId": cameras[:, None]}
    for key, chosen in (("train", is_train), ("query", is_query), ("gallery", ~is_train & ~is_query)):
        content[f"{key}_idx"] = np.flatnonzero(chosen)[:, None] + 1
    savemat(path, content)


def cuhk_sysu_release(folder: Path) -> dict[str, np.ndarray]:
    """Write scenes and Person.mat in the authors' format; returns the people's pixels by image name."""
    scenes = {f"s{number}.jpg": number for number in (101, 102, 103)}
    (folder / "dataset/Image/SSM").mkdir(parents=True)
    (folder / "dataset/annotation").mkdir()
    pixels = {}
    for name, seed in scenes.items():
        file = folder / "dataset/Image/SSM" / name
        Image.fromarray(noise(seed, 40, 60)).save(file, quality=95)
        pixels[name] = np.asarray(Image.open(file))
    places = {
        "p1": [("s101.jpg", (3, 5, 10, 20)), ("s103.jpg", (50, 30, 10, 10))],
        "p20": [("s101.jpg", (20, 0, 8, 16))],
        "p300": [("s102.jpg", (55, 25, 30, 30)), ("s101.jpg", (0, 0, 60, 40))],
    }
    expected = {}
    people = np.empty((1, len(places)), dtype=[(key, object) for key in ("idname", "nAppear", "scene")])
    for place, (person, seen) in enumerate(places.items()):
        scene = np.empty((1, len(seen)), dtype=[(key, object) for key in ("imname", "idlocate", "ishard")])
        for number, (name, (left, top, width, height)) in enumerate(seen):
            scene[0, number] = (name, np.array([[left, top, width, height]]), 0)
            crop = pixels[name][top : top + height, left : left + width]
            expected[f"{person}_{Path(name).stem}_{number + 1}.jpg"] = crop
        people[0, place] = (person, len(seen), scene)
    savemat(folder / "dataset/annotation/Person.mat", {"Person": people})
    return expected


#: Writers of the miniatures, by name of the data set.
MINIATURES: dict[str, Callable[[Path], list[Row]]] = {
    "market1501": market1501,
    "market1501_500k": market1501_500k,
    "dukemtmc": dukemtmc,
    "occluded_duke": occluded_duke,
    "cuhk03_labeled": cuhk03_labeled,
    "cuhk03_detected": cuhk03_detected,
    "msmt17": msmt17,
    "msmt17_v2": msmt17_v2,
    "cuhk_sysu": cuhk_sysu,
    "viper": viper,
    "grid": grid,
    "veri776": veri776,
    "vehicleid_800": partial(vehicleid, vehicles=3),
}
