from pathlib import Path

import numpy as np
import pytest

from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.records import DISTRACTOR
from autoreid.errors import DataError

FILES = {
    "bounding_box_train": ["0007_c2s3_000451_03.jpg", "0002_c1s1_000451_03.jpg", "1501_c6s4_110001_01.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c5s1_001051_00.jpg"],
    "bounding_box_test": [
        "-1_c3s1_000401_03.jpg",
        "0000_c1s1_000151_01.jpg",
        "0001_c2s1_000151_01.jpg",
        "0003_c4s1_000151_01.jpg",
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, names in FILES.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    return tmp_path


def test_reads_identities_and_cameras_in_the_order_of_the_names(root):
    dataset = read_market1501(root)
    assert dataset.train.paths.tolist() == sorted(str(p) for p in (root / "bounding_box_train").iterdir())
    np.testing.assert_array_equal(dataset.train.identities, [2, 7, 1501])
    np.testing.assert_array_equal(dataset.train.cameras, [1, 2, 6])
    np.testing.assert_array_equal(dataset.query.identities, [1, 3])
    np.testing.assert_array_equal(dataset.query.cameras, [1, 5])
    for split in (dataset.train, dataset.query, dataset.gallery):
        assert split.identities.dtype == split.cameras.dtype == np.int64


def test_gallery_keeps_distractors_and_drops_junk(root):
    gallery = read_market1501(root).gallery
    np.testing.assert_array_equal(gallery.identities, [DISTRACTOR, 1, 3])
    np.testing.assert_array_equal(gallery.cameras, [1, 2, 4])
    assert not any("-1_" in Path(path).name for path in gallery.paths)


def test_ignores_what_is_no_image(root):
    for name in ("Thumbs.db", "readme.txt", "._0002_c1s1_000451_03.jpg"):
        (root / "bounding_box_train" / name).touch()
    assert len(read_market1501(root).train) == 3


@pytest.mark.parametrize(
    "name", ["portrait.jpg", "-2_c1s1_0_0.jpg", "0002c1.png", "0002_s1.JPG", "--1_c1.jpg"]
)
def test_names_the_file_that_does_not_follow_the_layout(root, name):
    (root / "query" / name).touch()
    with pytest.raises(DataError) as error:
        read_market1501(root)
    assert str(root / "query" / name) in str(error.value)
    assert "0002_c1s1_000451_03.jpg" in str(error.value)


@pytest.mark.parametrize("folder", ["bounding_box_train", "query"])
@pytest.mark.parametrize("name", ["-1_c1s1_000401_03.jpg", "0000_c1s1_000401_03.jpg"])
def test_refuses_junk_and_distractors_outside_the_gallery(root, folder, name):
    (root / folder / name).touch()
    with pytest.raises(DataError, match="junk") as error:
        read_market1501(root)
    assert str(root / folder / name) in str(error.value)
    assert "a person needs another name, or a number from 1" in str(error.value)


@pytest.mark.parametrize("name", ["9223372036854775808_c1s1_0.jpg", "0002_c99999999999999999999s1_0.jpg"])
def test_names_a_number_that_is_too_large(root, name):
    (root / "bounding_box_train" / name).touch()
    with pytest.raises(DataError, match=r"the number [0-9]+ is too large: must fit into 63 bits") as error:
        read_market1501(root)
    assert name in str(error.value)


def test_reads_the_largest_number(root):
    (root / "bounding_box_train" / "9223372036854775807_c1s1_0.jpg").touch()
    assert read_market1501(root).train.identities.max() == 2**63 - 1


@pytest.mark.parametrize("folder", FILES)
def test_names_the_folder_that_is_empty_or_missing(root, folder):
    for path in (root / folder).iterdir():
        path.unlink()
    with pytest.raises(DataError, match="contains no image") as error:
        read_market1501(root)
    assert str(root / folder) in str(error.value)
    (root / folder).rmdir()
    with pytest.raises(DataError, match="no such folder") as error:
        read_market1501(root)
    assert str(root / folder) in str(error.value)


def test_refuses_a_missing_root_and_a_gallery_of_junk_alone(root):
    with pytest.raises(DataError, match="bounding_box_train"):
        read_market1501(root / "absent")
    for path in (root / "bounding_box_test").iterdir():
        if not path.name.startswith("-1"):
            path.unlink()
    with pytest.raises(DataError, match="all images are junk"):
        read_market1501(root)
