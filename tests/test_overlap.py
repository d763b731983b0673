"""Images and people that data sets with different names share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoreid.data import overlap
from autoreid.data.datasets import read_dataset, read_folder
from autoreid.data.overlap import check_overlap, copied_queries, seen_people
from autoreid.errors import DataError
from tests.helpers import miniatures

PEOPLE = {"train": ("anna", "bo"), "query": ("cy", "di"), "gallery": ("cy", "di")}


def write(root: Path, name: str, seed: int, people: dict[str, tuple[str, ...]] = PEOPLE) -> Path:
    """A data set with two images of each person in each split, all different; returns its folder."""
    numbers = iter(range(100 * seed, 100 * seed + 100))
    for split, persons in people.items():
        for person in persons:
            folder = root / name / split / person / ("b" if split == "gallery" else "a")
            folder.mkdir(parents=True)
            for number in (1, 2):
                (folder / f"{number}.png").write_bytes(miniatures.picture(next(numbers), ".png"))
    return root / name


def check(root, sources, targets):
    splits = [(name, read_dataset(root, name).train) for name in sources]
    return check_overlap(splits, [read_dataset(root, name) for name in targets])


def test_different_data_sets_are_left_alone(tmp_path):
    write(tmp_path, "one", 1)
    write(tmp_path, "two", 2)
    assert check(tmp_path, ["one", "two"], ["one", "two"]) == {"one": (), "two": ()}


def rename_images(folder):
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"again_{path.name}"))


@pytest.mark.parametrize("how", ["link", "copy", "hard links", "renamed"])
def test_a_source_under_another_name_is_no_other_source(tmp_path, how):
    one, two = write(tmp_path, "one", 1), tmp_path / "two"
    if how == "link":
        two.symlink_to(one)
    else:
        shutil.copytree(one, two, copy_function=os.link if how == "hard links" else shutil.copy2)
    if how == "renamed":
        rename_images(two)
    with pytest.raises(DataError) as error:
        check(tmp_path, ["one", "two"], [])
    message = str(error.value)
    assert message.startswith(
        "one and two show the same people, who would be trained as different identities"
    )
    first, _, second = message.partition("; ")[2].partition(" and ")
    assert Path(first).read_bytes() == Path(second.removesuffix(" are the same image")).read_bytes()
    assert (first.startswith(f"{one}/"), second.startswith(f"{two}/")) == (True, True)


def test_test_images_that_are_trained_on_are_found(tmp_path):
    """The target's queries are the training images of the source, with other names."""
    one = write(tmp_path, "one", 1)
    two = write(tmp_path, "two", 2, {"train": ("x", "y"), "gallery": ("cy", "di")})
    shutil.copytree(one / "train", two / "query")
    rename_images(two / "query")
    with pytest.raises(DataError) as error:
        check(tmp_path, ["one"], ["two"])
    assert str(error.value).startswith(
        "two: of 8 images that were compared, 4 are also trained on in one, such as "
    )
    assert str(error.value).endswith("choose other data sets in data.sources or data.targets")


def test_within_a_data_set_it_is_a_warning(tmp_path):
    one = write(tmp_path, "one", 1)
    shutil.copy(one / "train/anna/a/1.png", one / "gallery/di/b/3.png")
    write(tmp_path, "two", 2, {"train": ("anna", "bo"), "query": ("anna", "di"), "gallery": ("anna", "di")})
    (note,) = check(tmp_path, ["one"], ["one"])["one"]
    assert note == (
        f"one: of 9 images that were compared, 1 are also trained on in one, such as {one / 'gallery/di/b/3.png'}, "
        f"which is the same image as {one / 'train/anna/a/1.png'}"
    )
    (note,) = check(tmp_path, ["two"], ["two"])["two"]
    assert note.startswith("two: 1 of its 2 people are also trained on in two, as in ")
    assert note.endswith("query/anna/a/1.png")


def test_people_of_own_folders_of_the_same_name_are_compared_within_a_folder_only(tmp_path):
    """`evaluate` may get another folder with the name of the source."""
    people = {"train": ("anna", "bo"), "query": ("anna", "di"), "gallery": ("anna", "di")}
    ours, others = write(tmp_path / "ours", "shop", 1, people), write(tmp_path / "others", "shop", 2, people)
    trained = [("shop", read_dataset(ours.parent, "shop").train)]
    assert seen_people(trained, [read_folder(others, "shop")]) == []
    (note,) = seen_people(trained, [read_folder(ours, "shop")])
    assert note.startswith("shop: 1 of its 2 people are also trained on in shop, as in ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dukemtmc", "occluded_duke"),
        ("cuhk03_labeled", "cuhk03_detected"),
        ("msmt17", "msmt17_v2"),
        ("market1501", "market1501_500k"),
        ("viper", "viper_3"),
        ("grid_2", "grid"),
    ],
)
def test_published_data_sets_of_the_same_people_are_known(tmp_path, one, other):
    """Their images may differ: other boxes, blurred faces. With `all_people`, people of the test set are trained on."""
    for name in {one.partition("_")[0] if one[:4] in ("vipe", "grid") else one, other.rstrip("_3")}:
        miniatures.MINIATURES[name](tmp_path / overlap.BENCHMARKS[name].folders[0])
    first, second = (read_dataset(tmp_path, name) for name in (one, other))
    with pytest.raises(DataError, match=f"{one} and {other} show the same people"):
        check_overlap([(one, first.train), (other, second.train)], [])
    with pytest.raises(DataError, match=f"^{other}: .* are also trained on in {one}, .* choose other data"):
        check_overlap([(one, first.all_people())], [second])
    if one[:4] not in ("vipe", "grid"):
        assert check_overlap([(one, first.train)], [second]) == {other: ()}


def test_queries_that_were_copied_into_the_gallery_are_told(tmp_path):
    one = write(tmp_path, "one", 1)
    assert copied_queries(read_dataset(tmp_path, "one")) == ()
    shutil.copy(one / "query/cy/a/1.png", one / "gallery/cy/b/copy.png")
    (note,) = copied_queries(read_dataset(tmp_path, "one"))
    assert note.startswith(
        "one: of 4 queries that were compared, 1 are also gallery images under another name, such as"
    )
    assert f"{one / 'query/cy/a/1.png'} and {one / 'gallery/cy/b/copy.png'}" in note


def test_files_of_one_size_are_told_apart_by_all_bytes(tmp_path):
    """Also where they differ outside of the bytes that are compared first."""
    one, two = np.zeros(20_000, np.uint8), np.zeros(20_000, np.uint8)
    two[100] = 1
    paths = [str(tmp_path / name) for name in ("one", "two", "one again", "empty", "gone")]
    for path, data in zip(paths, (one, two, one, b""), strict=False):
        Path(path).write_bytes(bytes(data))
    contents = overlap._Contents([paths[0], paths[3], paths[4]])
    assert contents.twins(paths) == [(paths[2], paths[0])]


def test_large_data_sets_are_sampled_evenly(monkeypatch, tmp_path):
    split = read_dataset(write(tmp_path, "one", 1).parent, "one").train
    monkeypatch.setattr(overlap, "SAMPLE", 2)
    assert overlap._sample(split) == [split.paths[0], split.paths[-1]]
