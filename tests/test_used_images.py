"""Runs whose images change before they resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoreid import train
from autoreid.data.records import ReidDataset, Split
from autoreid.data.used_images import UsedImages, check_used_images
from autoreid.errors import DataError
from tests.helpers.tiny import write_tiny


def split(name, rows, root="/data/people"):
    paths = np.array([f"{root}/{path}" for path, _, _ in rows], dtype=object)
    identities, cameras = (np.array([row[column] for row in rows], dtype=np.int64) for column in (1, 2))
    return Split(name, paths, identities, cameras)


ROWS = [
    ("anna/c1/1.jpg", 1, 1),
    ("anna/c2/1.jpg", 1, 2),
    ("bob/c1/1.jpg", 2, 1),
    ("bob/c2/é,\udcff.jpg", 2, 2),
]


@pytest.fixture
def begun(tmp_path):
    """The digest and the list of a run with four images."""
    used = UsedImages(split("train", ROWS), ())
    used.save(tmp_path / "used_images.csv")
    return used.digest(), tmp_path / "used_images.csv"


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        (ROWS[:3], "1 removed, such as train: bob/c2/"),
        ([*ROWS, ("cleo/c1/1.jpg", 3, 1)], "1 added, such as train: cleo/c1/1.jpg"),
        (
            [*ROWS[:2], ("zoe/c1/1.jpg", 2, 1), ("zoe/c2/é,\udcff.jpg", 2, 2)],
            "2 removed, such as train: bob/c1/1.jpg, train: bob/c2/é,\udcff.jpg; 2 added, such as train: zoe/c1/1.jpg, "
            "train: zoe/c2/é,\udcff.jpg; bob seems to have been renamed to zoe",
        ),
        (
            [*ROWS[:2], (ROWS[2][0], 3, 1), (ROWS[3][0], 3, 2)],
            "2 with another identity, such as train: bob/c1/1.jpg (identity 2, is now 3)",
        ),
        (
            [ROWS[0], (ROWS[1][0], 1, 7), *ROWS[2:]],
            "1 with another camera, such as train: anna/c2/1.jpg (camera 2, is now 7)",
        ),
        ([ROWS[1], ROWS[0], *ROWS[2:]], "the order of the images"),
    ],
)
def test_what_differs_is_named(begun, rows, difference):
    with pytest.raises(DataError) as caught:
        check_used_images(begun[0], UsedImages(split("train", rows), ()), begun[1])
    assert "the images are not those that the run began with: " in str(caught.value)
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_images_elsewhere_and_older_checkpoints_are_accepted(begun):
    check_used_images(begun[0], UsedImages(split("train", ROWS, "/scratch/moved"), ()), begun[1])
    check_used_images(None, UsedImages(split("train", ROWS[:2]), ()), begun[1])


def test_a_lost_list_hides_no_difference(begun):
    begun[1].unlink()
    with pytest.raises(DataError, match=r"used_images\.csv is not readable"):
        check_used_images(begun[0], UsedImages(split("train", ROWS[:3]), ()), begun[1])


def test_images_for_evaluation_count_too():
    def used(gallery):
        target = ReidDataset("shop", split("train", []), split("query", ROWS[:1]), split("gallery", gallery))
        return UsedImages(split("train", ROWS), (target,))

    assert used(ROWS[1:]).digest() == used(ROWS[1:]).digest() != used(ROWS[2:]).digest()
    assert [row.use for row in used(ROWS[3:])] == ["train"] * 4 + ["shop query", "shop gallery"]


def write_people(folder):
    rng = np.random.default_rng(0)
    for person in range(6):
        for image in range(8):
            path = folder / f"p{person}" / f"c{image % 2}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)


def test_a_renamed_person_stops_a_run_that_would_resume(tmp_path, capsys):
    """Classes follow the order of the names: p0 as zz would be trained in the row of p5, and all others in another."""
    write_people(tmp_path / "shop")
    data = {"data__sources": ["shop"], "data__synthetic": {}, "data__batch_size": 8}
    path = write_tiny(tmp_path, **data, data__images_per_identity=2, training__epochs=1)
    assert train.main(["--config", str(path)]) == 0
    result = tmp_path / "runs/tiny/result.json"
    before = {file: file.read_bytes() for file in (tmp_path / "runs/tiny/checkpoints").iterdir()}
    digest = json.loads(result.read_text())["alpha_sha256"]
    shutil.move(tmp_path / "shop/p0", tmp_path / "shop/zz")
    assert train.main(["--config", str(path)]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "8 removed, such as train: p0/c0/0.png, train: p0/c0/2.png; 8 added, such as train: zz/c0/0.png"
        in complaint
    )
    assert "p0 seems to have been renamed to zz; 40 with another identity" in complaint
    assert {file: file.read_bytes() for file in before} == before
    # Restored, and in another folder, it is the same run.
    shutil.move(tmp_path / "shop/zz", tmp_path / "shop/p0")
    shutil.move(tmp_path / "shop", tmp_path / "elsewhere/shop")
    assert train.main(["--config", str(path), f"data.root={tmp_path / 'elsewhere'}"]) == 0
    assert json.loads(Path(result).read_text())["alpha_sha256"] == digest
