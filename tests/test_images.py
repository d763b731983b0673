"""The image cache, in one process and among ranks."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from autoreid.data import cache, images
from autoreid.data.datasets import read_dataset
from autoreid.data.images import Images
from autoreid.distributed.shared_work import work_while_others_wait
from autoreid.errors import RunError
from tests.helpers.image_folder import (
    HEIGHT,
    WIDTH,
    assert_pixels,
    by_pillow,
    caches,
    prepare,
    prepare_on_rank,
    write_people,
)
from tests.helpers.ranks import run_ranks


@pytest.fixture
def root(tmp_path):
    """A data set `people` of 4 identities with 4 images from 2 cameras, for training."""
    write_people(tmp_path)
    return tmp_path


def never(*_):
    raise AssertionError("an image was decoded")


def test_the_caches_pixels_are_those_of_decoding(root, monkeypatch):
    paths = read_dataset(root, "people").train.paths
    assert len(paths) == 16
    found, decoded = prepare(root), Images(HEIGHT, WIDTH)
    (folder,) = caches(root)
    assert folder.name.startswith("people-train-16x8-")
    whole = np.load(folder / "images.npy")
    assert (whole.shape, whole.dtype) == ((16, 3, HEIGHT, WIDTH), np.uint8)
    for row, path in zip(whole, paths, strict=True):
        np.testing.assert_array_equal(row, by_pillow(path))
        np.testing.assert_array_equal(decoded(path), row)
    monkeypatch.setattr(images, "decode", never)
    for row, path in zip(whole, paths, strict=True):
        np.testing.assert_array_equal(found(path), row)
    assert found.notes == ()
    # Mapped from the file, and read-only.
    with pytest.raises(ValueError, match="read-only"):
        found(paths[0])[:] = 0


def test_a_cache_is_made_once(root, monkeypatch):
    prepare(root)
    before = [path.stat().st_mtime_ns for path in caches(root)[0].iterdir()]
    monkeypatch.setattr(cache, "decode", never)
    monkeypatch.setattr(images, "decode", never)
    again = prepare(root)
    assert [path.stat().st_mtime_ns for path in caches(root)[0].iterdir()] == before
    monkeypatch.undo()
    assert_pixels(again, read_dataset(root, "people").train.paths)


def test_it_moves_with_the_data_sets_folder(root, monkeypatch):
    prepare(root)
    moved = root.with_name("moved")
    root.rename(moved)
    monkeypatch.setattr(cache, "decode", never)
    found = prepare(moved)
    monkeypatch.undo()
    assert_pixels(found, read_dataset(moved, "people").train.paths)


def another_size(root):
    return {"height": 2 * HEIGHT}


def another_content(root):
    path = root / "people/p1/c0/0.jpg"
    Image.fromarray(np.zeros((20, 10, 3), np.uint8)).save(path)
    return {}


def another_time(root):
    os.utime(root / "people/p1/c0/0.jpg", (1, 1))
    return {}


def one_less(root):
    (root / "people/p1/c0/0.jpg").unlink()
    return {}


def another_name(root):
    (root / "people/p1/c0/0.jpg").rename(root / "people/p1/c0/zero.jpg")
    return {}


@pytest.mark.parametrize("change", [another_size, another_content, another_time, one_less, another_name])
def test_a_change_makes_another_cache(root, change):
    prepare(root)
    options = change(root)
    found = prepare(root, **options)
    assert len(caches(root)) == 2
    path = read_dataset(root, "people").train.paths[4]
    np.testing.assert_array_equal(found(path), Images(found.height, WIDTH)(path))


def test_without_a_cache_images_are_decoded(root):
    found = prepare(root, cache=None)
    assert caches(root) == []
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_processes_that_are_sent_images_map_the_same_files(root):
    found = prepare(root)
    sent = pickle.dumps(found)
    (folder,) = caches(root)
    assert len(sent) < (folder / "images.npy").stat().st_size
    assert_pixels(pickle.loads(sent), read_dataset(root, "people").train.paths)  # noqa: S301


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other"])
def test_a_damaged_cache_is_made_anew(root, damage):
    prepare(root)
    file = caches(root)[0] / "images.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        np.save(file, np.zeros((2, 3)))
    else:
        file.write_bytes(file.read_bytes()[: 1000 if damage == "cut" else 0])
    found = prepare(root)
    assert len(caches(root)) == 1
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_what_a_killed_run_left_is_removed_when_it_is_old(root):
    prepare(root)
    (folder,) = caches(root)
    partial = {age: root / ".image_cache" / f".{folder.name}.{age}.partial" for age in ("old", "new")}
    for path in partial.values():
        shutil.copytree(folder, path)
    for path in (*partial["old"].iterdir(), partial["old"]):
        os.utime(path, (1, 1))
    shutil.rmtree(folder)
    prepare(root)
    assert caches(root) == sorted([folder, partial["new"]])


def test_another_run_may_be_faster(root, monkeypatch):
    """The other process finishes its cache while this one is still decoding."""
    decode_all = cache.decode_all

    def overtaken(paths, height, width):
        monkeypatch.setattr(cache, "decode_all", decode_all)
        prepare(root)
        yield from decode_all(paths, height, width)

    monkeypatch.setattr(cache, "decode_all", overtaken)
    found = prepare(root)
    assert found.notes == ()
    assert len(caches(root)) == 1
    assert_pixels(found, read_dataset(root, "people").train.paths)


# Without space for a cache.


def assert_decodes(root, found, *words):
    (note,) = found.notes
    for word in (*words, "images are decoded each time they are used"):
        assert word in note
    assert "\n" not in note
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_a_disk_that_is_too_small_is_noticed_before_it_is_full(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 6000, 6000))
    found = prepare(root)
    assert_decodes(
        root, found, str(root / ".image_cache"), "not enough disk space for the image cache", "0.00 GB"
    )
    assert caches(root) == []


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_while_the_cache_is_written(root, small_disk, monkeypatch):
    monkeypatch.setattr(
        cache, "_require_space", lambda *_: None
    )  # as if another run used the space meanwhile
    found = prepare(root, cache=small_disk / "caches", height=HEIGHT * 20)
    (note,) = found.notes
    assert str(small_disk / "caches") in note
    assert "No space left on device" in note
    assert list((small_disk / "caches").iterdir()) == []
    path = read_dataset(root, "people").train.paths[0]
    np.testing.assert_array_equal(found(path), Images(HEIGHT * 20, WIDTH)(path))


def test_a_cache_that_cannot_be_written(root):
    (root / ".image_cache").write_text("a file")
    found = prepare(root)
    assert_decodes(root, found, f"{root / '.image_cache'}: cannot create the folder", "set data.cache")


@pytest.mark.parametrize(
    ("hosts", "folders", "written"),
    [
        (["a", "a", "a"], None, [1, 0, 0]),
        (["a", "b", "b"], None, [1, 0, 0]),
        (["a", "b", "b"], ["on-a", "on-b", "on-b"], [1, 1, 0]),
    ],
    ids=["one node", "two nodes, one disk", "two nodes with a disk of their own"],
)
def test_one_rank_a_disk_makes_the_cache(root, hosts, folders, written):
    options = {"cache": [root / name for name in folders]} if folders else {}
    results = run_ranks(prepare_on_rank, 3, root, hosts, options)
    assert [result[0] for result in results] == written
    expected = np.stack([by_pillow(path) for path in read_dataset(root, "people").train.paths])
    for _, notes, _, pixels in results:
        assert notes == ()
        np.testing.assert_array_equal(pixels, expected)


def _work(world, failing):
    pieces = []

    def work():
        for piece in range(3 * world.rank):
            pieces.append(piece)
            if world.rank == failing:
                raise ValueError("no good")
            time.sleep(0.01)
            yield
        return f"rank {world.rank}"

    result = work_while_others_wait(work() if world.rank else None, seconds=0.0)
    return result, len(pieces)


def test_ranks_wait_for_each_others_work_and_for_its_failures():
    assert run_ranks(_work, 3, None) == [(None, 0), ("rank 1", 3), ("rank 2", 6)]
    errors = run_ranks(_work, 3, 2, raises=False)
    assert all(isinstance(error, RunError) for error in errors)
    assert {str(error) for error in errors} == {"a rank failed: ValueError: no good"}
