"""Folders as people make them: kinds of images, names of splits, levels of folders, and what is left out."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoreid.data.datasets import read_folder
from autoreid.data.decoding import decode
from autoreid.data.prepare import prepare_dataset
from autoreid.data.records import DISTRACTOR
from autoreid.errors import DataError


def write(folder: Path, *paths: str) -> None:
    """Write images of 6 x 4 pixels."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 6), (number, 0, 0)).save(folder / path)


def people(*names: str, cameras: str = "ab", inside: str = "") -> list[str]:
    return [f"{inside}{name}/{camera}/1.png" for name in names for camera in cameras]


def found(split, folder):
    return sorted(str(Path(path).relative_to(folder)) for path in split.paths)


def test_every_kind_of_image_that_pillow_opens_is_read(tmp_path):
    """Also in upper case."""
    suffixes = ("jpg", "JPEG", "png", "bmp", "webp", "tif", "TIFF", "jfif", "gif", "ppm", "jp2", "tga")
    paths = [f"{person}/door/1.{suffix}" for person in ("anna", "bo") for suffix in suffixes]
    write(tmp_path, *paths)
    dataset = read_folder(tmp_path, "x")
    assert found(dataset.train, tmp_path) == sorted(paths)
    assert dataset.notes == ()
    for path in dataset.train.paths:
        decode(path)
    assert len(dataset.train) == 2 * len(suffixes)


def test_what_is_passed_over_is_told_in_one_note(tmp_path):
    write(tmp_path, *people("anna", "bo"), "anna/loose.jpg", "anna/a/deeper/1.jpg", "lost.jpg")
    (tmp_path / "anna/a/2.heic").touch()
    (tmp_path / "bo/c").mkdir()
    (tmp_path / "cy").mkdir()
    for harmless in ("README.md", "anna/a/1.json", ".DS_Store", "bo/Thumbs.db"):
        (tmp_path / harmless).touch()
    dataset = read_folder(tmp_path, "x")
    assert found(dataset.train, tmp_path) == people("anna", "bo")
    (note,) = dataset.notes
    example = re.escape(str(tmp_path / "lost.jpg")) + r" \(not in a folder of a person and a camera\)"
    assert re.fullmatch(f"6 files and folders are skipped, such as {example}", note)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("train", "query", "gallery"), None),
        (("Train", "PROBE", "Test"), None),
        (("val", "probe", "gallery"), "val: used for training"),
        (("train", "test/query", "test/gallery"), None),
    ],
)
def test_splits_have_their_usual_names_in_any_case(tmp_path, names, note):
    train, query, gallery = names
    write(tmp_path, *people("anna", "bo", inside=f"{train}/"))
    write(tmp_path, *people("cy", "di", cameras="a", inside=f"{query}/"))
    write(tmp_path, *people("cy", "di", cameras="b", inside=f"{gallery}/"))
    dataset = read_folder(tmp_path, "x")
    assert found(dataset.train, tmp_path / train) == people("anna", "bo")
    assert found(dataset.query, tmp_path / query) == people("cy", "di", cameras="a")
    assert found(dataset.gallery, tmp_path / gallery) == people("cy", "di", cameras="b")
    assert [one.endswith(note) for one in dataset.notes] == ([True] if note else [])


def test_train_and_val_are_both_for_training(tmp_path):
    write(tmp_path, *people("anna", inside="train/"), *people("anna", "bo", inside="val/"))
    dataset = read_folder(tmp_path, "x")
    assert len(dataset.train) == 6
    assert dataset.train.num_identities == 2
    assert dataset.notes == (f"{tmp_path / 'val'}: used for training",)


def test_val_alone_is_a_person(tmp_path):
    write(tmp_path, *people("anna", "Val"))
    assert read_folder(tmp_path, "x").train.num_identities == 2


@pytest.mark.parametrize("other", ["probe", "Query"])
def test_two_folders_of_the_same_split_are_refused(tmp_path, other):
    write(tmp_path, *people("anna", "bo", inside="query/"), *people("anna", "bo", inside=f"{other}/"))
    with pytest.raises(DataError, match="are the query images; keep one of them"):
        read_folder(tmp_path, "x")


def test_folders_beside_the_splits_are_told(tmp_path):
    write(tmp_path, *people("anna", "bo", inside="train/"), *people("cy", inside="more/"))
    (note,) = read_folder(tmp_path, "x").notes
    assert note == (
        f"1 file or folder is skipped, such as {tmp_path / 'more'} (beside the folders of the splits)"
    )


def test_a_list_has_the_same_names_as_folders(tmp_path):
    lines = ["a.webp,anna,1,Train", "b.tif,bo,2,val", "c.jpg,cy,1,probe", "d.jpg,cy,2,TEST"]
    lines += ["e.jpg,0000,2,gallery", "f.jpg,-1,2,test"]
    (tmp_path / "images.csv").write_text("\n".join(["path,identity,camera,split", *lines]))
    dataset = read_folder(tmp_path, "x")
    assert f"{tmp_path / 'images.csv'}: the 1 images of split val are used for training" in dataset.notes
    assert found(dataset.train, tmp_path) == ["a.webp", "b.tif"]
    assert found(dataset.query, tmp_path) == ["c.jpg"]
    assert found(dataset.gallery, tmp_path) == ["d.jpg", "e.jpg"]
    assert dataset.gallery.identities.tolist() == [dataset.query.identities[0], DISTRACTOR]


def test_an_image_may_be_query_and_gallery(tmp_path):
    text = "path,identity,camera,split\na.jpg,anna,1,query\na.jpg,anna,1,gallery\nb.jpg,bo,1,gallery\n"
    (tmp_path / "images.csv").write_text(text)
    dataset = read_folder(tmp_path, "x")
    assert found(dataset.query, tmp_path) == ["a.jpg"]
    assert found(dataset.gallery, tmp_path) == ["a.jpg", "b.jpg"]
    for wrong, message in {
        text.replace("1,gallery", "2,gallery", 1): ":3: .*a.jpg has another identity or camera in line 2",
        text.replace("gallery", "train", 1): ":3: duplicate of line 2",
        text + "a.jpg,anna,1,gallery\n": ":5: duplicate of line 3",
    }.items():
        (tmp_path / "images.csv").write_text(wrong)
        with pytest.raises(DataError, match=message):
            read_folder(tmp_path, "x")


def test_markets_names_for_junk_and_distractors_are_told(tmp_path):
    write(tmp_path, *people("0001", "0002", inside="query/"))
    write(tmp_path, *people("0000", "-1", "0001", inside="gallery/"))
    dataset = read_folder(tmp_path, "x")
    assert sorted(dataset.gallery.identities.tolist()) == [DISTRACTOR] * 2 + [1, 1]
    assert dataset.notes == (
        f"{tmp_path}: the 2 gallery images of 0000 are distractors, who match no query, as in Market-1501",
        f"{tmp_path}: the 2 gallery images of -1 are junk, which is ignored, as in Market-1501",
    )


@pytest.mark.parametrize("name", ["0000", "-1"])
def test_they_are_not_trained_on(tmp_path, name):
    write(tmp_path, *people("0001", "0002", name))
    with pytest.raises(
        DataError, match=f"{name}/a/1.png: junk .* train images; .* a person needs another name"
    ):
        read_folder(tmp_path, "x")


def test_one_identity_is_a_layout_one_level_off(tmp_path):
    """SHOP/IDENTITY instead of IDENTITY/CAMERA."""
    write(tmp_path, *[f"shop/{person:04d}/1.png" for person in range(1, 9)])
    with pytest.raises(DataError) as error:
        read_folder(tmp_path, "x")
    assert str(error.value) == (
        f"{tmp_path}: read as folders IDENTITY/CAMERA with images: identities: 1, such as shop; cameras: 8, such as "
        "0001; expected two identities or more; are people and cameras swapped, or is a level of folders missing?"
    )


def test_a_single_person_among_distractors_can_be_searched_for(tmp_path):
    write(tmp_path, "query/anna/a/1.png", "gallery/anna/b/1.png", "gallery/distractor/b/1.png")
    assert len(read_folder(tmp_path, "x").query) == 1


@pytest.mark.parametrize("layout", ["folders", "list"])
def test_more_cameras_than_people_are_told(tmp_path, layout):
    """CAMERA/IDENTITY instead of IDENTITY/CAMERA."""
    rows = [(f"c{camera}", f"{person:04d}") for camera in (1, 2) for person in range(5)]
    if layout == "list":
        lines = [f"{number}.jpg,{one},{other}" for number, (one, other) in enumerate(rows)]
        (tmp_path / "images.csv").write_text("\n".join(["path,identity,camera", *lines]))
    else:
        write(tmp_path, *[f"{one}/{other}/1.png" for one, other in rows])
    (note,) = read_folder(tmp_path, "x").notes
    assert "identities: 2, such as c1; cameras: 5, such as 0000; are people and cameras swapped" in note
    assert ("listed in images.csv" if layout == "list" else "read as folders IDENTITY/CAMERA") in note


def test_a_camera_for_each_image_is_no_mistake(tmp_path):
    """The way out for people seen by one camera; an image may be query and gallery."""
    rows = [
        f"{who}{n}.jpg,{who},{who}{n},{split}"
        for who in "abc"
        for n in range(3)
        for split in ("query", "gallery")
    ]
    (tmp_path / "images.csv").write_text("\n".join(["path,identity,camera,split", *rows]))
    assert read_folder(tmp_path, "x").notes == ()


def test_a_level_too_many_is_told_with_what_was_assumed(tmp_path):
    write(tmp_path, *people("0001", "0002", inside="shop/"), *people("0003", inside="yard/"))
    with pytest.raises(
        DataError, match=r"unknown layout; expected .*shop/0001/a \(a folder below a camera's\)"
    ):
        read_folder(tmp_path, "x")


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize("top", ["", "people/", "backup/people/"])
@pytest.mark.parametrize("layout", ["people", "splits", "list"])
def test_archives_as_people_make_them(tmp_path, top, layout):
    """With a top folder, the litter of macOS and of Synology's servers, and a camera without images."""
    made = tmp_path / "made"
    inside = "train/" if layout == "splits" else ""
    paths = people("anna", "bo", inside=f"{top}{inside}")
    write(made, *paths)
    for litter in (
        f"{top}{inside}bo/nobody came/.DS_Store",
        f"__MACOSX/{top}{inside}anna/a/._1.png",
        f"{top}{inside}anna/a/@eaDir/1.png/SYNOPHOTO.jpg",
    ):
        (made / litter).parent.mkdir(parents=True)
        (made / litter).write_bytes(b"litter")
    if layout == "list":
        lines = [f"{person}/{camera}/1.png,{person},{camera}" for person in ("anna", "bo") for camera in "ab"]
        (made / top / "images.csv").write_text("\n".join(["path,identity,camera", *lines]))
    findings = prepare_dataset("mine", [pack(made, tmp_path / "mine.zip")], tmp_path / "data")
    assert findings.broken == []
    train = read_folder(tmp_path / "data/mine", "mine").train
    assert found(train, tmp_path / "data/mine") == paths
    np.testing.assert_array_equal(train.identities, [1, 1, 2, 2])
    if layout != "list":
        (note,) = findings.dataset.notes
        empty = tmp_path / "data/mine" / top / inside / "bo/nobody came"
        assert note == f"1 file or folder is skipped, such as {empty} (a camera without images)"


def test_what_is_beside_the_top_folder_is_told(tmp_path):
    write(tmp_path, *people("anna", "bo", inside="people/train/"), "more/anna/c/1.jpg")
    dataset = read_folder(tmp_path, "x")
    assert len(dataset.train) == 4
    assert "1 file or folder is skipped" in dataset.notes[0]
    assert "more (beside the folder of the data set)" in dataset.notes[0]


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    write(tmp_path, *people("a", "b", inside="one/train/"), *people("a", "b", inside="two/train/"))
    with pytest.raises(DataError, match=r"both one and two contain images\.csv or splits; keep one of them"):
        read_folder(tmp_path, "x")


def test_a_market_layout_of_ones_own_tells_what_is_passed_over(tmp_path):
    write(
        tmp_path,
        "bounding_box_train/0001_c1_1.webp",
        "query/0002_c1_1.tif",
        "bounding_box_test/0002_c2_1.jpg",
    )
    (tmp_path / "query/0003_c1_1.heic").touch()
    dataset = read_folder(tmp_path, "x")
    assert [len(split) for split in (dataset.train, dataset.query, dataset.gallery)] == [1, 1, 1]
    (note,) = dataset.notes
    assert note.startswith("1 file or folder is skipped, such as ")
    assert note.endswith("query/0003_c1_1.heic (no image that can be read)")
